"""All laws, by name: the built-in ones and those that other distributions add through the entry-point group."""

import difflib
from functools import cache
from importlib.metadata import entry_points

from learnmech.laws.edge_of_stability import EdgeOfStability
from learnmech.laws.gradient_noise_scale import GradientNoiseScale
from learnmech.laws.law import Law
from learnmech.laws.rotational_equilibrium import RotationalEquilibrium

GROUP = "learnmech.laws"
"""Entry-point group through which another distribution adds laws; each entry is a `Law` class without arguments."""

_BUILT_IN: tuple[type[Law], ...] = (EdgeOfStability, GradientNoiseScale, RotationalEquilibrium)


class UnknownLaw(ValueError):
    """A law that nobody has declared."""


@cache
def _by_name() -> dict[str, Law]:
    laws: dict[str, Law] = {}
    for kind in (*_BUILT_IN, *(entry.load() for entry in entry_points(group=GROUP))):
        law = kind()
        if not isinstance(law, Law):
            raise TypeError(f"entry point group {GROUP!r} holds {kind!r}, which is no learnmech.laws.Law")
        laws.setdefault(law.name, law)
    return laws


def catalogue() -> tuple[Law, ...]:
    """Return every law, built-in ones first."""
    return tuple(_by_name().values())


def get(name: str) -> Law:
    """Return the law called `name`.

    Raises:
        UnknownLaw: There is none.
    """
    laws = _by_name()
    if name in laws:
        return laws[name]
    near = difflib.get_close_matches(name, laws, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UnknownLaw(f"unknown law {name!r}: {hint}the laws are {', '.join(laws)}")
