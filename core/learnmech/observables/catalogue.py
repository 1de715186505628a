"""The one declared vocabulary: nothing undeclared is emitted, stored or judged."""

import difflib
from functools import cache

from learnmech.observables.curvature import CURVATURE
from learnmech.observables.gradients import GRADIENTS
from learnmech.observables.hyperparameters import HYPERPARAMETERS
from learnmech.observables.measured import MEASURED
from learnmech.observables.observable import Observable
from learnmech.observables.symmetry import SYMMETRY
from learnmech.observables.weights import WEIGHTS

USER_PREFIX = "user."
"""Names that start so are free for everybody: stored and shown as they come, read by no law."""

MAX_NAME_LENGTH = 250
"""Longest observable name or scope the store takes (the limit that MLflow users know, mlflow/utils/validation.py)."""


class UnknownObservable(ValueError):
    """A name that the vocabulary does not have."""

    def __init__(self, name: str) -> None:
        """Say which name came, which are nearest, and what to type instead."""
        near = difflib.get_close_matches(name, [o.name for o in catalogue()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(
            f"unknown observable {name!r}: {hint}`learnmech.observables.catalogue()` lists the vocabulary; "
            f"for a quantity of your own use a name that starts with {USER_PREFIX!r}, such as {USER_PREFIX + name!r}"
        )
        self.name = name


@cache
def _by_name() -> dict[str, Observable]:
    declared = MEASURED + GRADIENTS + WEIGHTS + SYMMETRY + CURVATURE + HYPERPARAMETERS
    return {observable.name: observable for observable in declared}


def catalogue() -> tuple[Observable, ...]:
    """Return every declared observable: measured ones first, then hyperparameters."""
    return tuple(_by_name().values())


def is_declared(name: str) -> bool:
    """Tell whether `name` may be emitted: declared, or in the free `user.` space."""
    return name in _by_name() or (name.startswith(USER_PREFIX) and len(name) > len(USER_PREFIX))


def get(name: str) -> Observable:
    """Return the declaration of `name`.

    Names in the free `user.` space get a declaration made on the spot.

    Raises:
        UnknownObservable: `name` is neither declared nor in the `user.` space.
    """
    found = _by_name().get(name)
    if found is not None:
        return found
    if is_declared(name):
        return Observable(name, "", "", "A quantity of the user's own.")
    raise UnknownObservable(name)
