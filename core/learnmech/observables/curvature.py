"""The curvature of the loss: what probes measure of its Hessian."""

from learnmech.observables.observable import Error, Observable, Scale

CURVATURE = (
    Observable(
        "sharpness",
        r"\lambda_{\max}(H)",
        "loss",
        "Largest algebraic eigenvalue of the Hessian of the loss on the probe batch "
        "(Cohen et al. 2021, arXiv 2103.00065). `stderr` is the solver's estimate of its error, residual^2 / gap, at "
        "most the residual |Hv - lambda v|.",
        error=Error.RESIDUAL,
    ),
    Observable(
        "sharpness_preconditioned",
        r"\lambda_{\max}(P^{-1/2} H P^{-1/2})",
        "loss",
        "Largest eigenvalue of the Hessian preconditioned as the optimizer does it, bias corrections and epsilon "
        "included (Cohen et al. 2022, arXiv 2207.14484). `stderr` as for `sharpness`.",
        error=Error.RESIDUAL,
    ),
    Observable("sharpness_products", r"n_{Hv}", "1", "Hessian-vector products that the sharpness measurement used."),
    Observable(
        "sharpness_gauss_newton",
        r"\lambda_{\max}(J^\top H_z J)",
        "loss",
        "Largest eigenvalue of the Gauss-Newton matrix J' H_z J, the part of the Hessian that bends the "
        "loss and not the "
        "outputs z (Martens 2020, arXiv 1412.1193, section 8). `stderr` as for `sharpness`.",
        error=Error.RESIDUAL,
    ),
    Observable(
        "sharpness_rayleigh",
        r"v^\top H v",
        "loss",
        "Curvature along the eigenvector of the last sharpness measurement: a lower bound of the "
        "sharpness now. `stderr` "
        "is the residual |Hv - (v'Hv) v|: within it lies an eigenvalue.",
        error=Error.RESIDUAL,
    ),
    Observable(
        "hessian_eigenvalue",
        r"\lambda_k(H)",
        "loss",
        "The k-th largest algebraic eigenvalue of the Hessian; scope is the rank k, starting at 1.",
        error=Error.RESIDUAL,
    ),
    Observable(
        "hessian_eigenvalue_smallest",
        r"\lambda_{n+1-k}(H)",
        "loss",
        "The k-th smallest algebraic eigenvalue of the Hessian, the most negative curvature first; "
        "scope is the rank k, "
        "starting at 1.",
        error=Error.RESIDUAL,
    ),
    Observable(
        "gradient_alignment",
        r"\lVert P_k g \rVert^2 / \lVert g \rVert^2",
        "1",
        "Share of the squared gradient that lies in the span of the top k eigenvectors of the Hessian "
        "of the same batch; "
        "scope is `top_k` with k a number (Gur-Ari et al. 2018, arXiv 1812.04754).",
    ),
    Observable(
        "batch_sharpness",
        r"\mathbb{E}_B\,\frac{g_B^\top H_B g_B}{g_B^\top g_B}",
        "loss",
        "Rayleigh quotient of the mini-batch Hessian along its own gradient, averaged over batches "
        "(Andreyev & Beneventano 2024, arXiv 2412.20553).",
    ),
    Observable(
        "batch_curvature", r"g_B^\top H_B g_B", "loss^3", "Curvature of one batch along its own gradient, unnormalised."
    ),
    Observable(
        "batch_grad_sq_norm",
        r"\lVert g_B \rVert^2",
        "loss^2",
        "Squared norm of the gradient of the batch that `batch_curvature` was measured on.",
        scale=Scale.LOG,
    ),
    Observable(
        "critical_sharpness",
        r"2 / \eta_c",
        "loss",
        "Two over the first learning rate along the update direction at which the loss of the batch "
        "rises, from forward "
        "passes alone. Not the largest eigenvalue: a curvature along one direction.",
    ),
    Observable(
        "critical_step",
        r"\eta_c / \eta",
        "1",
        "By how much the update could be multiplied before it raised the loss of its own batch; below 1 "
        "it did raise it.",
        scale=Scale.LOG,
    ),
    Observable(
        "update_sharpness",
        r"s^\top H s / s^\top s",
        "loss",
        "Curvature along the applied update s = w_(t+1) - w_t, at w_t, of the batch that produced it.",
    ),
    Observable(
        "loss_change",
        r"L(w_{t+1}) - L(w_t)",
        "loss",
        "Change of the loss by one update, on the batch that produced it and under the same random numbers.",
    ),
    Observable("loss_change_linear", r"G^\top s", "loss", "The change of the loss that the gradient alone predicts."),
    Observable(
        "loss_change_predicted",
        r"G^\top s + \tfrac{1}{2} s^\top H s",
        "loss",
        "The change of the loss that gradient and Hessian predict: the local quadratic model.",
    ),
    Observable(
        "curvature_share",
        r"s^\top H s \,/\, (2\,\lvert G^\top s\rvert)",
        "1",
        "How much of the linear gain of an update its curvature takes back: at 1 the update is neutral, beyond it the "
        "quadratic model says that the loss rises.",
    ),
    Observable(
        "hessian_trace",
        r"\operatorname{tr} H",
        "loss",
        "Trace of the Hessian of the loss: the sum of its eigenvalues.",
    ),
    Observable(
        "hessian_frobenius",
        r"\lVert H \rVert_F",
        "loss",
        "Frobenius norm of the Hessian: the root of the sum of its squared eigenvalues.",
        scale=Scale.LOG,
    ),
    Observable(
        "hessian_quantile",
        r"q_p(H)",
        "loss",
        "Quantile of the density of the Hessian's eigenvalues: the share p of them lies below; scope is "
        "p. By stochastic "
        "Lanczos quadrature (Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159).",
    ),
)
