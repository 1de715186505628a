"""The pages of the reference, each a function from declarations to Markdown."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from learnmech import laws as law_package
from learnmech import observables as observable_package
from scripts.reference import commands, http, panels, probes, settings, views

HEADER = "<!-- Written by `make docs` from the code; change the code, not this page. -->\n\n"


def everything(root: Path) -> dict[str, str]:
    """Return every page by file name."""
    bodies: dict[str, Callable[[], str]] = {
        "observables.md": observables,
        "laws.md": laws,
        "probes.md": probes.page,
        "panels.md": panels.page,
        "commands.md": commands.page,
        "settings.md": lambda: settings.page(root),
        "views.md": views.page,
        "http.md": http.page,
    }
    written = {name: body() for name, body in bodies.items()}
    written["README.md"] = _contents(written)
    return {name: HEADER + text.rstrip() + "\n" for name, text in written.items()}


def _contents(written: dict[str, str]) -> str:
    lines = ["# Reference", ""]
    for name, text in written.items():
        title, _, rest = text.partition("\n")
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {rest.strip().partition(chr(10))[0]}")
    return "\n".join(lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; cells must not break its rows."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return lines


def code(words: Iterable[str]) -> str:
    """Return words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


def observables() -> str:
    """Return the vocabulary, one section a kind."""
    lines = [
        "# Observables",
        "",
        "Every name that a measurement may carry; names that begin with `user.` are free.",
        "",
        "The scope of a measurement says what it belongs to: empty for the whole model, else the name of a parameter,",
        "a module or a probe, or a rank.",
    ]
    catalogue = observable_package.catalogue()
    for kind in dict.fromkeys(observable.kind for observable in catalogue):
        lines += ["", f"## {str(kind).capitalize()}", ""]
        lines += table(
            ("name", "symbol", "unit", "definition"),
            (
                (f"`{one.name}`", f"${one.symbol}$" if one.symbol else "", one.unit, one.description)
                for one in catalogue
                if one.kind == kind
            ),
        )
    return "\n".join(lines)


def laws() -> str:
    """Return the laws, one section each."""
    lines = [
        "# Laws",
        "",
        "What is predicted of the observables, when a law applies, and what counts as a deviation.",
        "",
        "A verdict is `holds`, `deviates`, `undetermined`, `not_applicable` or, for a law with one side, `sub_edge`.",
    ]
    for law in law_package.catalogue():
        lines += [
            "",
            f"## {law.title}",
            "",
            f"`{law.name}`, version {law.version}.",
            "",
            f"$$\n{law.statement}\n$$",
            "",
        ]
        lines += [_definition(type(law).__doc__ or ""), ""]
        lines += table(
            ("", ""),
            (
                ("measures", code(law.measures)),
                ("needs", code(law.needs)),
                ("uses when there", code(law.uses)),
                ("band of measured/predicted", f"{law.band.lower:g} to {law.band.upper:g}: {law.band.origin}"),
                ("window", f"{law.window} measurements, at least {law.minimum}"),
                ("source", law.reference),
                *((f"when `{verdict}`", text) for verdict, text in law.advice.items()),
            ),
        )
    return "\n".join(lines)


def _definition(docstring: str) -> str:
    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.strip().split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith(("Attributes:", "Args:")))
