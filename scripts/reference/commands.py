"""The command line, read from the assembled application itself."""

from collections.abc import Iterator
from typing import Any

import typer.main

from learnmech.cli import build
from scripts.reference import pages


def leaves() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, subcommands of groups included."""
    yield from _leaves("learnmech", typer.main.get_command(build()))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield name, command
    for child in sorted(children):
        yield from _leaves(f"{name} {child}", children[child])


def page() -> str:
    """Return one section for each command.

    Raises:
        RuntimeError: A part is not installed, so that the page would lack its commands.
    """
    lines = ["# Commands", "", "What `learnmech` can do; a command whose extra is missing says which to install."]
    for name, command in leaves():
        if command.hidden:
            continue
        if (command.help or "").startswith("Not available"):
            raise RuntimeError(
                f"{name}: {command.help}; the reference is written where every part is installed: make docs"
            )
        lines += ["", f"## {name}", "", _sentence(command.help)]
        rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            lines += ["", *pages.table(("option", "default", "environment", "meaning"), rows)]
    return "\n".join(lines)


def _sentence(text: str | None) -> str:
    shown = (text or "").partition("\f")[0]  # Typer hides what follows a form feed
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in shown.strip().split("\n\n"))


def _row(parameter: Any) -> tuple[str, str, str, str]:
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    shown = parameter.default
    silent = shown is None or shown is False or shown == "" or callable(shown) or parameter.required
    default = "" if silent else f"`{shown}`"
    environment = [parameter.envvar] if isinstance(parameter.envvar, str) else (parameter.envvar or [])
    required = " (required)" if parameter.required else ""
    return pages.code(names), default, pages.code(environment), _sentence(parameter.help) + required
