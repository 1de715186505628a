"""Weights and what updates do to them."""

from learnmech.observables.observable import Observable, Scale

_LOG = Scale.LOG

WEIGHTS = (
    Observable("weight_norm", r"\lVert w \rVert", "1", "Euclidean norm of the weights.", scale=_LOG),
    Observable("weight_norm_sq", r"\lVert w \rVert^2", "1", "Squared Euclidean norm of the weights.", scale=_LOG),
    Observable(
        "weight_rms",
        r"\lVert w \rVert / \sqrt{n}",
        "1",
        "Root mean square of the n weights of the scope. In scope `scale_invariant` of all tensors certified scale "
        "invariant, where AdamW settles it at sqrt(eta / (2 lambda)) (Kosson et al. 2023, arXiv 2305.17212).",
        scale=_LOG,
    ),
    Observable(
        "update_norm",
        r"\lVert w_{t+1} - w_t \rVert",
        "1",
        "Euclidean norm of the whole applied update, weight decay included.",
        scale=_LOG,
    ),
    Observable(
        "relative_update",
        r"\lVert w_{t+1} - w_t \rVert / \lVert w_t \rVert",
        "1",
        "Norm of the update relative to the norm of the weights.",
        scale=_LOG,
    ),
    Observable(
        "angular_update",
        r"\angle(w_t, w_{t+1})",
        "rad",
        "Angle by which one update turns the weights (Kosson et al. 2023, arXiv 2305.17212). In scope "
        "`scale_invariant` the root mean square over all tensors certified scale invariant.",
        scale=_LOG,
    ),
    Observable(
        "scale_invariance",
        r"\lvert\langle w, g\rangle\rvert / (\lVert w\rVert\,\lVert g\rVert)",
        "1",
        "Cosine between weights and gradient: zero for every batch when the loss does not depend on the scale of the "
        "weights (Kunin et al. 2021, arXiv 2012.04728). In scope `scale_invariant` the largest of those certified.",
        scale=_LOG,
    ),
    Observable(
        "weight_decay_share",
        r"\lVert \eta\lambda w \rVert / \lVert w_{t+1} - w_t \rVert,\ \lVert \lambda w \rVert / "
        r"\lVert g + \lambda w \rVert",
        "1",
        "How large weight decay is beside what it is part of: the update where decay is decoupled (AdamW), else the "
        "gradient with its L2 term, before clipping. Above 1 decay and gradient pull in opposite directions.",
        scale=_LOG,
    ),
    Observable(
        "effective_learning_rate",
        r"\eta / \lVert w \rVert^2,\ \eta / \lVert w \rVert",
        "1",
        "The learning rate that scale-invariant weights feel: eta / |w|^2 under SGD (van Laarhoven 2017, arXiv "
        "1706.05350), eta / |w| under optimizers that normalize the gradient (Adam, RMSprop). In scope "
        "`scale_invariant` the geometric mean over all tensors certified scale invariant.",
        scale=_LOG,
    ),
    Observable(
        "fluctuation_dissipation",
        r"\langle w \cdot \nabla f \rangle \,/\, \tfrac{1+\mu}{2\eta(1-\tau)}\langle \lVert \Delta w \rVert^2 \rangle",
        "1",
        "Ratio of the two sides of the fluctuation-dissipation relation of SGD over an exponential window, f with its "
        "L2 term, momentum mu and dampening tau included (Yaida 2018, arXiv 1810.00004, FDR1). It is 1 where the "
        "norm of the weights is stationary, less while it grows, more while it shrinks.",
    ),
)
