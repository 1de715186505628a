"""What an observable is: a named macroscopic quantity with a symbol, a unit and a definition."""

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """Where an observable comes from."""

    MEASURED = "measured"
    HYPERPARAMETER = "hyperparameter"


class Scale(enum.StrEnum):
    """The axis on which an observable reads best."""

    LINEAR = "linear"
    LOG = "log"


class Error(enum.StrEnum):
    """What the `stderr` of an observable's measurements is."""

    STANDARD = "standard error"
    """Of a statistical estimate: scatter shows it, and repeating averages it away."""
    RESIDUAL = "residual bound"
    """Of a solver: by its own account the true value lies no further away. Scatter does not show it, and it does not
    average away."""


@dataclass(frozen=True, slots=True)
class Observable:
    """One word of the vocabulary.

    Attributes:
        name: The identifier used in code, on the wire, in SQL and on dashboards.
        symbol: LaTeX.
        unit: A unit of measurement; `1` for a pure number, `loss` for the unit of the loss.
        description: The definition, in one or two sentences, with the paper where the quantity is defined.
        kind: Measured by a probe, or a hyperparameter in force.
        scale: The axis on which it reads best.
        error: What its `stderr` is.
    """

    name: str
    symbol: str
    unit: str
    description: str
    kind: Kind = Kind.MEASURED
    scale: Scale = Scale.LINEAR
    error: Error = Error.STANDARD
