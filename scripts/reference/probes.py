"""What a training imports: the probes and the two ways to attach them, from their docstrings and signatures."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from scripts.reference import pages

_SECTION = re.compile(r"^(Args|Attributes|References|Raises|Returns|Examples?|Note):$")


def page() -> str:
    """Return one section for each public class."""
    lines = ["# Probes", "", "What measures, and what attaches it to a training.", ""]
    lines += ["Without a list of probes, a recorder or monitor takes the default set."]
    for entry in (_monitor(), *_public()):
        lines += ["", *_section(entry)]
    return "\n".join(lines)


def _monitor() -> Any:
    from learnmech.probes.lightning import MechanicsMonitor

    return MechanicsMonitor


def _public() -> Iterator[Any]:
    """Yield the recorder, then every probe that the package exports."""
    from learnmech import probes

    yield probes.Recorder
    for name in probes.__all__:
        exported = getattr(probes, name)
        if inspect.isclass(exported) and issubclass(exported, probes.BaseProbe) and exported is not probes.BaseProbe:
            yield exported


def _section(entry: Any) -> list[str]:
    sections = _sections(inspect.getdoc(entry) or "")
    signature = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(entry).parameters.values()
    ]
    call = f"{entry.__name__}{inspect.Signature(signature)}"
    lines = [f"## {entry.__name__}", "", f"`from {_home(entry)} import {entry.__name__}`", "", f"`{call}`"]
    lines += ["", sections[""]]
    if rows := list(_arguments(sections.get("Args", ""))):
        lines += ["", *pages.table(("argument", "meaning"), rows)]
    if sections.get("References"):
        lines += ["", f"References: {' '.join(sections['References'].split())}"]
    return lines


def _home(entry: Any) -> str:
    """The shortest public path: the package, where it exports the name."""
    from learnmech import probes

    return "learnmech.probes" if entry.__name__ in probes.__all__ else str(entry.__module__)


def _sections(docstring: str) -> dict[str, str]:
    """Split a Google-style docstring; the text before the first section is under the empty name."""
    found, name = {"": ""}, ""
    for line in docstring.splitlines():
        if heading := _SECTION.match(line):
            name = heading[1]
            found[name] = ""
        else:
            found[name] += line + "\n"
    return {name: _prose(text) for name, text in found.items()}


def _prose(text: str) -> str:
    """Leave out the examples: they are for readers of the code, and run as doctests."""
    return "\n\n".join(part for part in text.strip("\n").split("\n\n") if not part.lstrip().startswith(">>>"))


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Yield each argument of an `Args` section with its description, continuation lines joined."""
    for entry in re.split(r"\n(?=\s{4}\S)", "\n" + text):
        name, colon, meaning = " ".join(entry.split()).partition(": ")
        if colon:
            yield f"`{name}`", meaning
