"""One panel per law, each with its dimensionless companion. What a law says of itself is read from `learnmech.laws`."""

from learnmech import laws, observables
from learnmech.dashboards.panels.declaration import Curve, Description, Panel, Role, View
from learnmech.observables.observable import Scale

_QUESTIONS = {
    "edge_of_stability": "How far is the learning rate from instability?",
    "gradient_noise_scale": "Can the noise scale be trusted when I choose the batch size?",
    "rotational_equilibrium": "Have the weights settled into norm equilibrium?",
}
"""What a practitioner asks; a law of another distribution asks with its title."""

_CURVES = (
    Curve(Role.ZONE_UPPER, "upper"),
    Curve(Role.ZONE_LOWER, "lower"),
    Curve(Role.UPPER, "measured", error="measured_stderr", sign=1),
    Curve(Role.LOWER, "measured", error="measured_stderr", sign=-1),
    Curve(Role.PREDICTED, "predicted"),
    Curve(Role.MEASURED, "measured"),
)

_RATIO_CURVES = (
    Curve(Role.ZONE_UPPER, "upper", divisor="predicted"),
    Curve(Role.ZONE_LOWER, "lower", divisor="predicted"),
    Curve(Role.UPPER, "measured", error="measured_stderr", sign=1, divisor="predicted"),
    Curve(Role.LOWER, "measured", error="measured_stderr", sign=-1, divisor="predicted"),
    Curve(Role.MEASURED, "ratio"),
)


def panel(law: laws.Law) -> Panel:
    """Declare the panel of a law: measured with its error bar and the prediction, in the measured observable's unit."""
    gauges = [observables.get(name) for name in law.measures]
    return Panel(
        id=law.name,
        title=law.title,
        question=_QUESTIONS.get(law.name, f"Does this run obey: {law.title}?"),
        view=View.RESIDUALS,
        name=law.name,
        curves=_CURVES,
        unit=gauges[0].unit,
        scale=gauges[0].scale,
        description=Description(
            shows=(
                f"Solid: {' or '.join(law.measures)}, as measured, with {_error(gauges[0])} around it. "
                "Dashed: what the law predicts from the hyperparameters and measurements in force. "
                "Grey: the tolerance inside which the law counts as true."
            ),
            formula=law.statement,
            fails=_fails(law),
            source=law.reference,
        ),
        stepped=not _is_noisy(law),
        companion=_companion(law),
    )


def _companion(law: laws.Law) -> Panel:
    band = law.band
    return Panel(
        id=f"{law.name}_ratio",
        title="Measured / predicted",
        question=f"By which factor is {law.title[0].lower()}{law.title[1:]} missed?",
        view=View.RESIDUALS,
        name=law.name,
        curves=_RATIO_CURVES,
        unit="1",
        scale=Scale.LINEAR,
        description=Description(
            shows=(
                "Measured over predicted, without a unit: 1 is the law, and runs of any size can be compared. "
                f"The tolerance reaches from {band.lower:g} to {band.upper:g} unless the optimizer has its own: "
                f"{band.origin}."
            ),
            formula=law.statement,
            fails=_fails(law),
            source=law.reference,
        ),
        stepped=not _is_noisy(law),
        rules=(1.0,),
    )


def _fails(law: laws.Law) -> str:
    """Say when the law does not apply, in the law's own words."""
    needs = ", ".join(law.needs)
    return (
        f"{law.advice[laws.Verdict.NOT_APPLICABLE]} It also needs {needs}; while one is missing the verdict is "
        "`not_applicable` and says which."
    )


def _error(gauge: observables.Observable) -> str:
    return "its residual bound" if gauge.error is observables.Error.RESIDUAL else "one standard error"


def _is_noisy(law: laws.Law) -> bool:
    """Tell whether the prediction rests on measurements, joined by lines, and not on hyperparameters alone."""
    return any(observables.get(name).kind == "measured" and name not in _GATES for name in law.needs)


_GATES = frozenset({"scale_invariance"})
"""Measurements that only decide whether a law applies; the predicted value does not contain them."""


def panels() -> tuple[Panel, ...]:
    """Declare the panels of all laws, in the catalogue's order."""
    return tuple(panel(law) for law in laws.catalogue())
