"""Patching what a script imports, right after it has done so: a loop of one's own waits for no trainer's import."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Patch = Callable[[ModuleType], None]
"""Changes a module that has just been executed."""


class AfterImport:
    """A finder that finds modules as always, and patches some of them once they have been executed.

    Args:
        patches: What to do to a module, by its name.
    """

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def install(self) -> None:
        """Come before all other finders."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module; None for one that is none of ours."""
        patch = self._patches.get(name)
        spec = None if patch is None else PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or patch is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]  # of this one loader
        return spec
