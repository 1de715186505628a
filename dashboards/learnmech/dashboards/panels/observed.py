"""A panel of an observable: its unit, scale, formula and definition are read from the vocabulary."""

from learnmech import observables
from learnmech.dashboards.panels.declaration import (
    Curve,
    Description,
    Interval,
    Layer,
    Panel,
    Reference,
    Role,
    Section,
    View,
)
from learnmech.observables.observable import Scale

_VALUE = Curve(Role.MEASURED, "value")
_CURVES = (
    Curve(Role.UPPER, "value", error="stderr", sign=1),
    Curve(Role.LOWER, "value", error="stderr", sign=-1),
    _VALUE,
)


def observed(
    section: Section,
    name: str,
    title: str,
    question: str,
    *,
    fails: str,
    source: str,
    shows: str = "",
    more: str = "",
    id: str = "",
    scope: str = "",
    label: str = "",
    scale: Scale | None = None,
    signed: bool = False,
    linear: float = 1.0,
    rules: tuple[float, ...] = (),
    reference: Reference | None = None,
    layers: tuple[Layer, ...] = (),
    intervals: tuple[Interval, ...] = (),
    rows: str = "",
    lowest: bool = False,
) -> Panel:
    """Declare the panel of an observable.

    Args:
        section: Where it belongs.
        name: The observable.
        title: A heading.
        question: What a practitioner asks it.
        fails: When the panel does not apply or misleads.
        source: Paper and equation, or the definition's place.
        shows: What is drawn; the observable's definition when left out.
        more: Sentences after that.
        id: Stable identifier, if not the observable's name.
        scope: As in `Panel`, like all that follow.
        label: How legends call the measured line.
        scale: The y axis, if not the observable's.
        signed: Whether values of both signs matter.
        linear: Where a logarithmic axis of both signs turns linear.
        rules: Fixed horizontal lines.
        reference: An observable to draw beside the measured one.
        layers: Further lines.
        intervals: Shaded spaces.
        rows: What the scopes are, for a map.
        lowest: Whether the lowest rows come first.
    """
    observable = observables.get(name)
    return Panel(
        id=id or name,
        title=title,
        question=question,
        view=View.OBSERVATIONS,
        name=name,
        curves=(_VALUE,) if rows else _CURVES,
        unit=observable.unit,
        scale=scale or observable.scale,
        description=Description(
            shows=" ".join(filter(None, (shows or observable.description, more))),
            formula=observable.symbol,
            fails=fails,
            source=source,
        ),
        scope=scope,
        label=label,
        section=section,
        signed=signed,
        linear=linear,
        stepped=reference is not None,
        rules=rules,
        reference=reference,
        layers=layers,
        intervals=intervals,
        rows=rows,
        lowest=lowest,
    )
