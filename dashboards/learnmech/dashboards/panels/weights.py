"""Panels of weights: their size, how far an update moves them, and what their symmetries say."""

from learnmech.dashboards.panels.declaration import Layer, Look, Panel, Section
from learnmech.dashboards.panels.observed import observed
from learnmech.observables.observable import Scale

_KOSSON = "Kosson et al. 2023, arXiv 2305.17212"
_KUNIN = "Kunin et al. 2021, arXiv 2012.04728"

_DRIFT = 1e-6
"""Where the axis of a charge's drift turns linear: float32 weights round a charge near 1 to 1e-7 in an update."""

_BROKEN = 1e-3
"""Residual of a symmetry above which colours say that it is broken: what docs/symmetries.md measured where one holds in
float32 is at most 3e-5 (rounding, and the epsilon of normalizations), where it does not at least 1e-3."""


def panels() -> tuple[Panel, ...]:
    """Declare the panels, in the order in which they are read: norms, updates, what decay does, equilibrium."""
    return (*_sizes(), *_updates(), *_equilibrium())


def _sizes() -> tuple[Panel, ...]:
    return (
        observed(
            Section.WEIGHTS,
            "weight_norm",
            "Weight norm",
            "Do the weights grow, shrink or rest?",
            more="Of the whole model, of a type of module (`type:Linear`), of a block, or of one tensor.",
            fails="Normalization layers make the norm of the weights before them invisible to the loss: there it "
            "sets the effective learning rate and nothing else.",
            source=f"{_KOSSON}, section 3.",
        ),
        observed(
            Section.WEIGHTS,
            "weight_rms",
            "Size of weights, by part",
            "Which parts grow, and which shrink?",
            more="One row for each part.",
            fails="Parts of unlike shapes are compared: a root mean square has no scale that is right for all of them.",
            source=f"{_KOSSON}, section 3.",
            rows="blocks",
        ),
    )


def _updates() -> tuple[Panel, ...]:
    return (
        observed(
            Section.WEIGHTS,
            "relative_update",
            "Relative update, by part",
            "Which parts move fast for their size?",
            more="One row for each part.",
            fails="Weights that start at zero have a relative update that says nothing until they have grown.",
            source="Norm of the applied update over that of the weights; learnmech.observables.",
            rows="blocks",
        ),
        observed(
            Section.WEIGHTS,
            "angular_update",
            "Angular update, by part",
            "Which parts turn fast, and do all turn alike?",
            more="One row for each part.",
            fails="Weights that are not scale invariant: their length matters as much as their direction.",
            source=f"{_KOSSON}, section 3.",
            rows="blocks",
        ),
        observed(
            Section.WEIGHTS,
            "weight_decay_share",
            "Weight decay in the update, by part",
            "Is a part held by weight decay or driven by its gradient?",
            more="One row for each part that decays.",
            fails="Parts that hold tensors with and without decay: the share is that of all their weights together.",
            source="learnmech.observables: of the applied update (AdamW), or of the gradient with its L2 term.",
            rows="blocks",
        ),
    )


def _equilibrium() -> tuple[Panel, ...]:
    return (
        observed(
            Section.WEIGHTS,
            "effective_learning_rate",
            "Effective learning rate",
            "Which learning rate do scale-invariant weights feel?",
            fails="Weights whose scale the loss sees. Few measurements in, none is certified yet.",
            source="van Laarhoven 2017, arXiv 1706.05350, section 3.",
            scope="scale_invariant",
        ),
        observed(
            Section.WEIGHTS,
            "fluctuation_dissipation",
            "Fluctuation against dissipation",
            "Are the weights stationary?",
            more="The line at 1 is stationarity.",
            fails="The optimizer is not SGD, or the window still holds a learning rate that is no longer in force.",
            source="Yaida 2018, arXiv 1810.00004, eq. FDR1.",
            rules=(1.0,),
        ),
    )


def symmetries() -> tuple[Panel, ...]:
    """Declare the panels of symmetries: the instrument's self-test, then what updates do to the charges."""
    return (
        observed(
            Section.SYMMETRIES,
            "symmetry_residual",
            "Inner products that must be zero",
            "Does the instrument work, and which symmetries hold?",
            more="One row for each kind of symmetry. Brown from 0.001 on: below it lie rounding in float32 and the "
            "epsilon of normalizations, above it a symmetry is broken.",
            fails="Half precision, whose rounding reaches 0.03, and float64, where a violation shows at 1e-12 already: "
            "read the numbers, not the colours.",
            source=f"{_KUNIN}; tolerances as docs/symmetries.md measured them.",
            rules=(_BROKEN,),
            rows="kinds",
        ),
        observed(
            Section.SYMMETRIES,
            "charge_drift",
            "Drift of a charge in one update",
            "Does the optimizer move the weights as it says?",
            shows="Solid: change of the charge of all groups of a kind in one update, with what rounding may "
            "contribute. Dashed: the same as the symmetry predicts it before the update, with nothing to fit. The axis "
            "is logarithmic on both sides of zero and linear near it.",
            fails="The optimizer is not SGD (nothing is predicted then), or the drift is as small as the rounding of "
            "the weights.",
            source=f"{_KUNIN}, with finite learning rate, weight decay and momentum: docs/symmetries.md.",
            scope="symmetry:scale",
            label="measured",
            scale=Scale.LOG,
            signed=True,
            linear=_DRIFT,
            layers=(Layer("charge_drift_predicted", "predicted", None, Look.DASHED),),
        ),
        observed(
            Section.SYMMETRIES,
            "charge_drift_error",
            "Drift of charges: measured against predicted",
            "By how much is the exact prediction missed?",
            more="One row for each kind of symmetry.",
            fails="A row is hatched: rounding is as large as the drift.",
            source=f"{_KUNIN}; unit by unit.",
            rows="kinds",
        ),
        observed(
            Section.SYMMETRIES,
            "charge",
            "Charge",
            "How far from balanced are the weights?",
            more="Gradient flow would conserve it.",
            fails="A group is certified or loses its certificate: the sum then jumps, and the drift does not.",
            source=f"{_KUNIN}, table 1.",
            scope="symmetry:scale",
            signed=True,
        ),
    )
