"""What follows from the noise of gradients: how much of a step is signal, and what another batch size would bring."""

from learnmech.observables.observable import Observable, Scale

GRADIENTS = (
    Observable(
        "signal_to_noise",
        r"\lvert G \rvert^2 B / \operatorname{tr} \Sigma",
        "1",
        "Squared true gradient over the noise of a batch of the size in use, B / B_simple: ratio of the window means "
        "of `grad_sq_norm` and `noise_trace` / B. Below 1 a step is mostly noise; it may be negative within its error.",
    ),
    Observable(
        "doubling_speedup",
        r"(1 + r) / (1 + r/2),\ r = B_{\mathrm{simple}} / B",
        "1",
        "How many times fewer steps a goal would take with batches twice as large: 2 far below the noise scale, 1 far "
        "above it (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11).",
    ),
    Observable(
        "temperature",
        r"\tfrac{\eta (1 - \tau)}{1 - \mu} \operatorname{tr} \Sigma / B",
        "loss^2",
        "Temperature of SGD: power of the gradient noise that drives the weights, momentum mu and dampening tau "
        "included (Jastrzebski et al. 2017, arXiv 1711.04623; Smith et al. 2018, arXiv 1711.00489).",
        scale=Scale.LOG,
    ),
    Observable(
        "noise_trace_hessian",
        r"\operatorname{tr}(H \Sigma)",
        "loss^3",
        "Unbiased estimate of the trace of Hessian times per-example gradient covariance: noise raises the expected "
        "loss after a step of SGD by eta^2 / (2 B) of it. Negative where noise lies along negative curvature "
        "(McCandlish et al. 2018, arXiv 1812.06162, eq. 2.8).",
    ),
    Observable(
        "grad_hessian_grad",
        r"G^\top H G",
        "loss^3",
        "Unbiased estimate of the curvature along the true gradient, times its squared norm; `batch_curvature` is the "
        "same of one batch, noise included. Gradients and Hessian are from disjoint pieces of a batch. May be negative "
        "(McCandlish et al. 2018, eq. 2.8).",
    ),
    Observable(
        "noise_scale_hessian",
        r"B_{\mathrm{noise}} = \operatorname{tr}(H \Sigma) / G^\top H G",
        "examples",
        "Hessian-weighted gradient noise scale: ratio of the window means of `noise_trace_hessian` and "
        "`grad_hessian_grad`. With a multiple of the identity for the Hessian it is `noise_scale` (McCandlish et al. "
        "2018, eq. 2.8).",
        scale=Scale.LOG,
    ),
)
