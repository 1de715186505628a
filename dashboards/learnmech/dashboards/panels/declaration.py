"""What a panel is: the question it answers, the curves it draws, and the text that says when not to believe it."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from learnmech.dashboards.panels import notation
from learnmech.observables.observable import Scale


class Role(enum.StrEnum):
    """What a curve is to the reader; renderers give each role one look."""

    MEASURED = "measured"
    LOWER = "lower"
    UPPER = "upper"
    PREDICTED = "predicted"
    ZONE_LOWER = "zone_lower"
    ZONE_UPPER = "zone_upper"


class Look(enum.StrEnum):
    """How a further line looks; it has the colour of its run."""

    SOLID = "solid"
    FAINT = "faint"
    DASHED = "dashed"
    DOTTED = "dotted"


class Section(enum.StrEnum):
    """Where a panel of an observable belongs."""

    TRAINING = "training"
    NOISE = "noise"
    WEIGHTS = "weights"
    SYMMETRIES = "symmetries"
    CURVATURE = "curvature"
    COST = "cost"


class View(enum.StrEnum):
    """The public SQL view, and endpoint of the collector, that a panel reads."""

    RESIDUALS = "residuals"
    OBSERVATIONS = "observations"


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: `(column + sign * error) / divisor`, of columns of the panel's view.

    Attributes:
        role: Its role; in a `Part`, the key of what it draws.
        column: The column it shows.
        error: Column of the standard error that is added `sign` times; empty for none.
        sign: -1 or 1 where there is an `error`, else 0.
        divisor: Column that everything is divided by; empty for none.
    """

    role: str
    column: str
    error: str = ""
    sign: int = 0
    divisor: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """Another observable drawn dashed beside the measured one, such as the batch size beside the noise scale.

    Attributes:
        observable: Its name.
        label: How the legend calls it.
        scope: Its scope.
        over: If not 0, `over / value` is drawn instead of the value, such as 2 over the learning rate.
    """

    observable: str
    label: str
    scope: str = ""
    over: float = 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """A further line: another observable, or another scope of the panel's own.

    Attributes:
        observable: Its name.
        label: How the legend calls it; layers that mean the same may share one.
        scope: Its scope; None for the one that the panel shows.
        look: How it looks.
        error: Whether its error bar is drawn around it.
    """

    observable: str
    label: str
    scope: str | None = ""
    look: Look = Look.SOLID
    error: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """The space between two scopes of an observable, shaded, such as that between two quantiles.

    Attributes:
        observable: Its name.
        lower: The scope of the lower end.
        upper: The scope of the upper end.
        label: How the legend calls it.
        strength: Opacity of the shade, from 0 to 1.
    """

    observable: str
    lower: str
    upper: str
    label: str
    strength: float


@dataclass(frozen=True, slots=True)
class Part:
    """A series that a panel reads besides its own, with the curves that it gives to layers and intervals.

    Attributes:
        observable: Its name.
        scope: Its scope; None for the one that the panel shows.
        curves: What is made of it; their roles are `layer_1`, `layer_1_upper`, `interval_1_lower` and so on.
    """

    observable: str
    scope: str | None
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """The text of a panel.

    Attributes:
        shows: What is drawn, in one or two sentences.
        formula: LaTeX; empty for none.
        fails: When the panel does not apply or misleads.
        source: Paper and equation, or the definition's place.
    """

    shows: str
    formula: str
    fails: str
    source: str

    def markdown(self) -> str:
        """Write the text as Markdown, for Grafana."""
        parts = [self.shows]
        if self.formula:
            parts.append(f"**Formula.** {notation.text(notation.parse(self.formula))}")
        parts.append(f"**Does not apply when.** {self.fails}")
        parts.append(f"**Source.** {self.source}")
        return "\n\n".join(parts)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        id: Stable identifier.
        title: A heading.
        question: What a practitioner asks it.
        view: Where its numbers come from.
        name: The law (`residuals`) or the observable (`observations`).
        scope: The scope shown first.
        curves: What it draws.
        unit: The unit of y as `learnmech.observables` writes it.
        scale: The y axis on which it reads best.
        description: The text.
        label: How legends call the measured line; empty for the observable's name.
        section: Where a panel of an observable belongs.
        signed: Whether values of both signs matter: a logarithmic axis is then logarithmic on both sides of zero.
        linear: Where such an axis turns linear, for a renderer that wants one number for all runs.
        stepped: Whether predictions and references hold until they change (hyperparameters) instead of being joined.
        rules: Fixed horizontal lines; of a map the value at which its colours turn.
        reference: An observable to draw beside the measured one.
        layers: Further lines, drawn in this order over the intervals.
        intervals: Shaded spaces, the widest first.
        rows: What the scopes are, such as `blocks`, where each is a row of a map and colour stands for the value; empty
            where one scope is drawn as a line.
        lowest: Whether the rows to look at first are those with the lowest values, else those with the highest.
        companion: The dimensionless panel that belongs below it.
    """

    id: str
    title: str
    question: str
    view: View
    name: str
    curves: tuple[Curve, ...]
    unit: str
    scale: Scale
    description: Description
    scope: str = ""
    label: str = ""
    section: Section = Section.TRAINING
    signed: bool = False
    linear: float = 1.0
    stepped: bool = False
    rules: tuple[float, ...] = ()
    reference: Reference | None = None
    layers: tuple[Layer, ...] = ()
    intervals: tuple[Interval, ...] = ()
    rows: str = ""
    lowest: bool = False
    companion: "Panel | None" = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the view that the curves need, each once."""
        named = (name for curve in self.curves for name in (curve.column, curve.error, curve.divisor) if name)
        return tuple(dict.fromkeys(named))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The series behind intervals and layers, in drawing order."""
        return (*self._interval_parts(), *self._layer_parts())

    @property
    def fixed(self) -> bool:
        """Whether the panel shows its scope and no other: further lines belong to that one."""
        return bool(self.intervals) or any(layer.scope is not None for layer in self.layers)

    def _interval_parts(self) -> Iterator[Part]:
        for number, interval in enumerate(self.intervals, start=1):
            for end, scope in ((Role.UPPER, interval.upper), (Role.LOWER, interval.lower)):
                yield Part(interval.observable, scope, (Curve(f"interval_{number}_{end}", "value"),))

    def _layer_parts(self) -> Iterator[Part]:
        for number, layer in enumerate(self.layers, start=1):
            key = f"layer_{number}"
            band = (
                Curve(f"{key}_{Role.UPPER}", "value", error="stderr", sign=1),
                Curve(f"{key}_{Role.LOWER}", "value", error="stderr", sign=-1),
            )
            yield Part(layer.observable, layer.scope, (*(band if layer.error else ()), Curve(key, "value")))
