"""Panels that every run wants in view beside the laws: what it learns, and what watching it costs."""

from learnmech.dashboards.panels.declaration import Layer, Panel, Reference, Section
from learnmech.dashboards.panels.observed import observed


def panels() -> tuple[Panel, ...]:
    """Declare the panels of the training itself."""
    return (
        observed(
            Section.TRAINING,
            "loss",
            "Loss",
            "Is it learning?",
            more="Compare runs of the same data only.",
            fails="Runs differ in data, batch size or loss function: the curves then have different floors.",
            source="learnmech.observables: the trainer's own loss, nothing is evaluated again.",
        ),
        observed(
            Section.TRAINING,
            "grad_norm",
            "Gradient norm",
            "Do gradients explode, vanish or rest?",
            more="Of the whole model, of a type of module, of a block, or of one tensor.",
            fails="Most of it is noise: in a batch of B examples |g|² is |G|² + tr Σ / B, and the section Gradient "
            "noise tells the two apart.",
            source="learnmech.observables: of the gradient that the optimizer gets, before clipping.",
        ),
    )


def cost() -> tuple[Panel, ...]:
    """Declare the panels of what measuring costs."""
    return (
        observed(
            Section.COST,
            "overhead",
            "Measuring overhead",
            "What does watching cost?",
            more="The budget holds for probes without a schedule, up to one measurement of each; a schedule costs what "
            "it costs.",
            fails="The first steps, which pay for compilation and the first Lanczos run: `overhead` is counted from "
            "the start, the other line over the last 500 steps.",
            source="learnmech.observables.",
            reference=Reference("budget", "budget"),
            layers=(Layer("overhead_recent", "last 500 steps"),),
        ),
        observed(
            Section.COST,
            "probe_cost",
            "Cost of a measurement",
            "Which probe is expensive?",
            more="One row for each probe.",
            fails="A device works on its own time: where a probe does not wait for it, its cost on the device is not "
            "in this number.",
            source="learnmech.observables.",
            rows="probes",
        ),
    )
