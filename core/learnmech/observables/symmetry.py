"""Symmetries of the loss, and the charges that gradient flow would conserve because of them."""

from learnmech.observables.observable import Observable, Scale

SYMMETRY = (
    Observable(
        "symmetry_residual",
        r"\max \lvert \delta_{\mathrm{sym}} \cdot g \rvert / (\lvert\cdot\rvert\lvert g\rvert)",
        "1",
        "Largest relative violation, over the certified groups of a kind, of what a symmetry of the loss forces on "
        "every gradient: zero up to rounding and to the epsilon of normalizations, for any optimizer. Above it the "
        "symmetry is broken, or the instrument is (Kunin et al. 2021, arXiv 2012.04728).",
        scale=Scale.LOG,
    ),
    Observable(
        "symmetry_groups",
        r"n_{\mathrm{sym}}",
        "1",
        "Number of groups of parameters whose symmetry is certified now.",
    ),
    Observable(
        "charge",
        r"Q",
        "1",
        "Charge that gradient flow conserves by a symmetry, summed over the certified groups of a kind: |w|^2 for "
        "scale, |w_in|^2 + b^2 - |w_out|^2 for two sides that balance, the sum of w for shifts (Kunin et al. 2021).",
    ),
    Observable(
        "charge_drift",
        r"\Delta Q",
        "1",
        "Change of `charge` in one update; `stderr` is what rounding of the updated weights may contribute.",
    ),
    Observable(
        "charge_drift_predicted",
        r"\Delta Q_{\mathrm{pred}}",
        "1",
        "The same as the symmetry predicts it exactly from what is known before the update: for SGD at learning rate "
        "eta and weight decay lambda, Q -> (1 - eta lambda)^2 Q + eta^2 (|g_in|^2 - |g_out|^2). `stderr` is what the "
        "measured violation of the symmetry adds.",
    ),
    Observable(
        "charge_drift_error",
        r"\lVert \Delta q - \Delta q_{\mathrm{pred}} \rVert / \lVert \Delta q_{\mathrm{pred}} \rVert",
        "1",
        "Relative difference of the measured and the predicted changes of the charges of all units, as vectors over "
        "units; where it is large, rounding or something else than the optimizer moves the weights.",
        scale=Scale.LOG,
    ),
)
