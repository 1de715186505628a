"""What probes measure of losses and gradients, and what measuring costs."""

from learnmech.observables.observable import Observable, Scale

_LOG = Scale.LOG

MEASURED = (
    Observable("loss", r"L", "loss", "The loss of the batch that produced the update, as the trainer computed it."),
    Observable(
        "grad_norm",
        r"\lVert g_B \rVert",
        "loss",
        "Euclidean norm of the gradient used for the update, unscaled and before clipping.",
        scale=_LOG,
    ),
    Observable(
        "grad_sq_norm",
        r"\lvert G \rvert^2",
        "loss^2",
        "Unbiased estimate of the squared norm of the true gradient; may be negative when it is buried in noise "
        "(McCandlish et al. 2018, arXiv 1812.06162, appendix A).",
    ),
    Observable(
        "noise_trace",
        r"\operatorname{tr} \Sigma",
        "loss^2",
        "Unbiased estimate of the trace of the per-example gradient covariance, from disjoint pieces of one batch "
        "(McCandlish et al. 2018, appendix A).",
        scale=_LOG,
    ),
    Observable(
        "noise_trace_between",
        r"\tfrac{B}{2}\lVert g_{B} - g_{B'} \rVert^2",
        "loss^2",
        "The same trace from the difference of the gradients of two independent batches at the same weights. "
        "Equals `noise_trace` exactly when noise averages as 1/B.",
        scale=_LOG,
    ),
    Observable(
        "noise_scale",
        r"B_{\mathrm{simple}} = \operatorname{tr}\Sigma / \lvert G \rvert^2",
        "examples",
        "Gradient noise scale: ratio of the window means of `noise_trace` and `grad_sq_norm`, moved by how far the "
        "window seems to lag; never a mean of ratios (McCandlish et al. 2018, eq. 2.9).",
        scale=_LOG,
    ),
    Observable("overhead", r"\omega", "1", "Share of the run's time spent measuring, since the start."),
    Observable(
        "overhead_recent",
        r"\omega_{500}",
        "1",
        "Share of the time of the last 500 steps or more spent measuring: what `budget` bounds, up to one measurement "
        "of each probe and what has a schedule.",
    ),
    Observable("probe_cost", r"c", "s", "Time that one measurement took; scope is the probe's name.", scale=_LOG),
)
