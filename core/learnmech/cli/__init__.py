"""The `learnmech` command."""

from learnmech.cli.app import build, main

__all__ = ["build", "main"]
