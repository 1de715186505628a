"""Panels of gradient noise: how much of a step is signal, where, and what another batch size would bring."""

from learnmech.dashboards.panels.declaration import Layer, Look, Panel, Reference, Section
from learnmech.dashboards.panels.observed import observed
from learnmech.observables.observable import Scale

_MCCANDLISH = "McCandlish et al. 2018, arXiv 1812.06162"

_SQUARED = 1e-3
"""Where the axis of |G|² turns linear: of gradients whose norm is clipped at 1, as usual, those of norm 0.03."""


def panels() -> tuple[Panel, ...]:
    """Declare the panels in the order in which they are read: the batch size, its parts, where, and by the Hessian."""
    return (*_batch_size(), *_parts(), *_where(), *_by_the_hessian())


def _batch_size() -> tuple[Panel, ...]:
    return (
        observed(
            Section.NOISE,
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
        observed(
            Section.NOISE,
            "doubling_speedup",
            "What twice the batch would buy",
            "How many times fewer steps with batches twice as large?",
            more="Worth it near 2; above the noise scale it falls to 1.",
            fails="The learning rate is not chosen anew for the larger batch, or the noise scale is `undetermined`.",
            source=f"{_MCCANDLISH}, eq. 2.11.",
            rules=(1.0, 2.0),
        ),
        observed(
            Section.NOISE,
            "temperature",
            "Temperature",
            "Did something change the noise that drives the weights?",
            more="It moves with the learning rate, the momentum and the batch size: a jump at a resume is a changed "
            "number of processes or another batch size.",
            fails="The optimizer is not SGD: under Adam the noise is divided by its own size, and this number is not "
            "recorded.",
            source="Jastrzebski et al. 2017, arXiv 1711.04623; Smith et al. 2018, arXiv 1711.00489.",
        ),
    )


def _parts() -> tuple[Panel, ...]:
    return (
        observed(
            Section.NOISE,
            "noise_trace",
            "Noise of one example",
            "How noisy are gradients, and does the noise average as 1/B?",
            shows="Solid: trace of the covariance of single examples' gradients, from pieces of one batch, with one "
            "standard error. Dashed: the same from the difference of two batches. They agree where noise averages as "
            "1/B.",
            fails="Examples are not independent (windows of one file, duplicates): the dashed line then lies higher. "
            "Single measurements scatter; the law compares means.",
            source=f"{_MCCANDLISH}, appendix A.",
            label="within a batch",
            layers=(Layer("noise_trace_between", "between batches", None, Look.DASHED),),
        ),
        observed(
            Section.NOISE,
            "grad_sq_norm",
            "Signal",
            "How large is the gradient without its noise?",
            more="The axis is logarithmic on both sides of zero and linear near it.",
            fails="It is taken for the squared norm of a batch's gradient, which holds tr Σ / B besides. Negative "
            "values are what an unbiased estimate gives where noise buries the gradient.",
            source=f"{_MCCANDLISH}, appendix A.",
            scale=Scale.LOG,
            signed=True,
            linear=_SQUARED,
        ),
    )


def _where() -> tuple[Panel, ...]:
    fails = (
        "A row is hatched: its error bar is too wide for a number. What is true of parts need not be of the whole: "
        "ratios do not add up."
    )
    return (
        observed(
            Section.NOISE,
            "signal_to_noise",
            "Signal against noise, by part",
            "Which parts of the model learn from signal, and which follow noise?",
            more="One row for each part. Brown below 1, where noise is larger than signal in a batch.",
            fails=fails,
            source=f"{_MCCANDLISH}, section 2.2, for a part of the parameters.",
            id="signal_to_noise_map",
            scale=Scale.LOG,
            rules=(1.0,),
            rows="blocks",
            lowest=True,
        ),
        observed(
            Section.NOISE,
            "noise_scale",
            "Noise scale, by part",
            "Do parts of the model want different batch sizes?",
            more="One row for each part.",
            fails=fails,
            source=f"{_MCCANDLISH}, eq. 2.9, for a part of the parameters.",
            id="noise_scale_map",
            rows="blocks",
        ),
    )


def _by_the_hessian() -> tuple[Panel, ...]:
    fails = (
        "Curvature changes sign along the path: G'HG passes through zero, and the ratio is then `undetermined`. Both "
        "parts hold products with the Hessian and scatter more than those without."
    )
    return (
        observed(
            Section.NOISE,
            "noise_scale_hessian",
            "Noise scale, weighed by the Hessian",
            "Does the simple noise scale mislead here?",
            shows="Solid: B_noise, the noise scale in which directions count by their curvature. Dotted: B_simple, "
            "which takes all directions as alike. Dashed: the batch size in use.",
            fails=fails,
            source=f"{_MCCANDLISH}, eq. 2.8.",
            label="B_noise",
            reference=Reference("batch_size", "batch size"),
            layers=(Layer("noise_scale", "B_simple", None, Look.DOTTED, error=True),),
        ),
        observed(
            Section.NOISE,
            "noise_trace_hessian",
            "Curvature along noise and along the gradient",
            "What does the noise of a step cost, and what does its signal?",
            shows="Solid: tr HΣ of one example, with its error. Dotted: G'HG, the same for the true gradient. Noise "
            "adds the first times η²/2B to the loss of a step of SGD, curvature takes the second times η²/2 from its "
            "gain.",
            fails=fails,
            source=f"{_MCCANDLISH}, eq. 2.6 to 2.8.",
            label="tr HΣ",
            scale=Scale.LOG,
            signed=True,
            linear=_SQUARED,
            layers=(Layer("grad_hessian_grad", "G'HG", None, Look.DOTTED, error=True),),
        ),
    )
