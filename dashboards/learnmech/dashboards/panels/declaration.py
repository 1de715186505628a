"""What a panel is: the question it answers, the curves it draws, and the text that says when not to believe it."""

import enum
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


class View(enum.StrEnum):
    """The public SQL view, and endpoint of the collector, that a panel reads."""

    RESIDUALS = "residuals"
    OBSERVATIONS = "observations"


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: `(column + sign * error) / divisor`, of columns of the panel's view.

    Attributes:
        role: Its role.
        column: The column it shows.
        error: Column of the standard error that is added `sign` times; empty for none.
        sign: -1 or 1 where there is an `error`, else 0.
        divisor: Column that everything is divided by; empty for none.
    """

    role: Role
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
    """

    observable: str
    label: str
    scope: str = ""


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
        stepped: Whether predictions and references hold until they change (hyperparameters) instead of being joined.
        rules: Fixed horizontal lines.
        reference: An observable to draw beside the measured one.
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
    stepped: bool = False
    rules: tuple[float, ...] = ()
    reference: Reference | None = None
    companion: "Panel | None" = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the view that the curves need, each once."""
        named = (name for curve in self.curves for name in (curve.column, curve.error, curve.divisor) if name)
        return tuple(dict.fromkeys(named))
