"""Panels of observables that every run wants in view beside the laws."""

from learnmech import observables
from learnmech.dashboards.panels.declaration import Curve, Description, Panel, Reference, Role, View

_CURVES = (
    Curve(Role.UPPER, "value", error="stderr", sign=1),
    Curve(Role.LOWER, "value", error="stderr", sign=-1),
    Curve(Role.MEASURED, "value"),
)

_MCCANDLISH = "McCandlish et al. 2018, arXiv 1812.06162"


def _panel(
    name: str, title: str, question: str, *, fails: str, source: str, reference: Reference | None = None, more: str = ""
) -> Panel:
    observable = observables.get(name)
    return Panel(
        id=name,
        title=title,
        question=question,
        view=View.OBSERVATIONS,
        name=name,
        curves=_CURVES,
        unit=observable.unit,
        scale=observable.scale,
        description=Description(
            shows=f"{observable.description}{f' {more}' if more else ''}",
            formula=observable.symbol,
            fails=fails,
            source=source,
        ),
        stepped=reference is not None,
        reference=reference,
    )


def panels() -> tuple[Panel, ...]:
    """Declare the panels, in the order in which they are read."""
    return (
        _panel(
            "loss",
            "Loss",
            "Is it learning?",
            more="Compare runs of the same data only.",
            fails="Runs differ in data, batch size or loss function: the curves then have different floors.",
            source="learnmech.observables: the trainer's own loss, nothing is evaluated again.",
        ),
        _panel(
            "noise_scale",
            "Noise scale against batch size",
            "Is the batch below or above the critical size?",
            more="Dashed: the batch size in use. Far below the noise scale, a larger batch saves steps almost for "
            "free; far above it, examples are wasted.",
            fails="Every step sees the whole training set, or the squared gradient is not resolved from zero yet: the "
            "estimate is then `undetermined` and drawn as a gap.",
            source=f"{_MCCANDLISH}, eq. 2.7 and 2.9.",
            reference=Reference("batch_size", "batch size"),
        ),
        _panel(
            "weight_norm",
            "Weight norm",
            "Do the weights grow, shrink or rest?",
            more="Of the whole model, of a type of module (`type:Linear`), of a block, or of one tensor.",
            fails="Normalization layers make the norm of the weights before them invisible to the loss: there it "
            "sets the effective learning rate and nothing else.",
            source="Kosson et al. 2023, arXiv 2305.17212, section 3.",
        ),
        _panel(
            "overhead",
            "Measuring overhead",
            "What does watching cost?",
            more="The budget is the `budget` of the monitor, 1 % unless set otherwise.",
            fails="The first steps, which pay for compilation and the first Lanczos run: the share is counted from "
            "the start.",
            source="learnmech.observables.",
        ),
    )
