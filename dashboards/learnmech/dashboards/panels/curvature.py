"""Panels of the loss's curvature: how stable a step is, and what the Hessian's spectrum looks like over time."""

from learnmech import observables
from learnmech.dashboards.panels.declaration import Interval, Layer, Look, Panel, Reference, Section
from learnmech.dashboards.panels.observed import observed
from learnmech.observables.observable import Scale

LARGEST = 10
"""How many eigenvalues from the top are drawn: as many as Gur-Ari et al. 2018 follow, one per class of ten."""

SMALLEST = ("smallest", "second smallest", "third smallest")
"""Those from the bottom: enough to see whether negative curvature is one direction or several."""

_STABLE = Reference("learning_rate", "2 / learning rate", over=2.0)
"""Where plain gradient descent stops being stable along a direction: curvature 2 / eta."""

_LANCZOS = "Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159"

_BULK = 1e-2
"""Where the axis of a spectrum turns linear: at the edge of stability the sharpness is 2 / learning rate, 1 to 1e4 for
the usual ones, and Lanczos resolves a bulk to about 1e-4 of it."""

_CHANGE = 1e-5
"""Where the axis of a step's loss change turns linear: so small ones take 100 000 steps to change the loss by 1."""

_SPECTRUM = (
    ("0.001", "0.999", "99.8 % of the eigenvalues", 0.10),
    ("0.01", "0.99", "98 %", 0.15),
    ("0.05", "0.95", "90 %", 0.20),
    ("0.25", "0.75", "half", 0.30),
)
"""Probabilities between which the fan is shaded, what they enclose of the eigenvalues, and how strongly. Shades lie on
each other, so that the innermost reaches 0.6: dark enough to see, light enough for the median."""


def panels() -> tuple[Panel, ...]:
    """Declare the panels, in the order in which they are read: the step first, then the spectrum."""
    return (*_step(), *_spectrum())


def _step() -> tuple[Panel, ...]:
    """Declare what curvature does to a step."""
    return (
        observed(
            Section.CURVATURE,
            "batch_sharpness",
            "Batch sharpness",
            "Is minibatch training at the edge of stability?",
            shows="Solid: the curvature of a mini-batch's loss along its own gradient, averaged over batches. Dashed: "
            "2 / learning rate, where it settles under plain SGD. Faint: the largest eigenvalue, which need not reach "
            "that line in minibatch training. Dotted: the curvature along the updates that were applied.",
            fails="The optimizer is not plain SGD: momentum moves the line to 2(1-mu)/eta for small batches and "
            "towards 2(1+mu)/eta for large ones (arXiv 2604.14108), and under an adaptive optimizer every parameter "
            "has a line of its own.",
            source="Andreyev & Beneventano 2024, arXiv 2412.20553, section 3.",
            reference=_STABLE,
            layers=(
                Layer("sharpness", "sharpness", look=Look.FAINT),
                Layer("update_sharpness", "along the update", look=Look.DOTTED),
            ),
        ),
        observed(
            Section.CURVATURE,
            "critical_step",
            "Critical step",
            "How much larger could the learning rate be before a step raises the loss?",
            shows="The factor by which the update could be multiplied before it raised the loss of its own batch. "
            "Below the line at 1 the step that was taken did raise it.",
            fails="Other batches matter: a step that lowers the loss of its own batch can raise the others'. Where the "
            "loss does not rise as far as was looked, the reading is a bound: `undetermined`, and drawn as a gap.",
            source="Kalra et al. 2026, arXiv 2601.16979: forward passes along the update, no quadratic model.",
            rules=(1.0,),
        ),
        observed(
            Section.CURVATURE,
            "curvature_share",
            "Curvature's share of a step",
            "How much of the gain of a step does curvature take back?",
            shows="The second-order term of the loss change over the first-order one. At the line at 1 the quadratic "
            "model calls the step neutral, beyond it harmful; negative values are steps along negative curvature.",
            fails="The linear gain is close to zero (the share then has no meaning), or the panel below shows that "
            "the loss does not follow its quadratic model.",
            source="Taylor's theorem at second order; learnmech.observables.",
            signed=True,
            rules=(1.0,),
        ),
        observed(
            Section.CURVATURE,
            "loss_change",
            "One update: predicted and actual loss change",
            "Does the quadratic model know what a step does?",
            shows="Solid: the change of the loss by one update, on the batch that produced it and under the same "
            "random numbers. Dashed: what gradient and Hessian predict. Dotted: what the gradient alone predicts.",
            fails="The loss is not smooth within one step (large steps, many ReLU kinks), or the change is below the "
            "rounding of the loss: a float32 loss near 1 resolves 1e-7. A step helps its own batch more than others.",
            source="Taylor's theorem at second order; learnmech.observables.",
            label="actual",
            scale=Scale.LOG,
            signed=True,
            linear=_CHANGE,
            layers=(
                Layer("loss_change_predicted", "quadratic model", look=Look.DASHED),
                Layer("loss_change_linear", "gradient alone", look=Look.DOTTED),
            ),
        ),
    )


def _spectrum() -> tuple[Panel, ...]:
    """Declare what the Hessian looks like as a whole."""
    return (
        observed(
            Section.CURVATURE,
            "hessian_quantile",
            "Spectral density over time",
            "How is the curvature spread over directions, and does the spread grow?",
            id="spectral_density",
            shows="Shaded: between which values 99.8 %, 98 %, 90 % and half of the Hessian's eigenvalues lie; the "
            "line in the middle is their median, with its error bar. Lines outside are the eigenvalues that stand "
            "out, where they are measured. The axis is logarithmic on both sides of zero and linear near it.",
            fails="Values far smaller than the largest eigenvalue are not resolved: Lanczos finds the ends of a "
            "spectrum first, so that a narrow bulk looks wider than it is. Rarer eigenvalues than 0.1 % are outside "
            "the shades however large they are, and in half precision the bulk is rounding.",
            source=f"{_LANCZOS}; quantiles of the density by stochastic Lanczos quadrature.",
            scope="0.5",
            label="median",
            scale=Scale.LOG,
            signed=True,
            linear=_BULK,
            intervals=tuple(
                Interval("hessian_quantile", lower, upper, label, strength)
                for lower, upper, label, strength in _SPECTRUM
            ),
            layers=(
                Layer("hessian_eigenvalue", "largest", "1"),
                Layer("sharpness", "largest"),
                Layer("hessian_eigenvalue_smallest", "smallest", "1"),
            ),
        ),
        observed(
            Section.CURVATURE,
            "hessian_eigenvalue",
            "Hessian eigenvalues",
            "How many directions stand out, and is there negative curvature?",
            shows=f"Solid: the largest eigenvalue with its residual bound. Faint: the next ones, up to rank {LARGEST}. "
            f"Dotted: the {len(SMALLEST)} smallest, the most negative curvature first. Drawn as far as measured.",
            fails="The probe batch is small, which biases the largest eigenvalues upwards. Ranks are not "
            "directions: where two eigenvalues cross, the lines exchange what they follow.",
            source="Sagun et al. 2017, arXiv 1706.04454.",
            scope="1",
            label="largest",
            signed=True,
            layers=(
                *(Layer("hessian_eigenvalue", f"λ{rank}", str(rank), Look.FAINT) for rank in range(2, LARGEST + 1)),
                *(
                    Layer("hessian_eigenvalue_smallest", label, str(rank), Look.DOTTED)
                    for rank, label in enumerate(SMALLEST, start=1)
                ),
            ),
        ),
        observed(
            Section.CURVATURE,
            "gradient_alignment",
            "Gradient in the top subspace",
            "Does the gradient live in the few sharpest directions?",
            shows=f"{observables.get('gradient_alignment').description} 1: it lies there entirely.",
            fails="It is read as where learning happens: updates confined to that subspace do not train the model "
            "(Song, Ahn & Yun 2024, arXiv 2405.16002). Alignment is mostly oscillation across the sharp directions.",
            source="Gur-Ari, Roberts & Dyer 2018, arXiv 1812.04754.",
            scope="top_5",
        ),
        observed(
            Section.CURVATURE,
            "hessian_trace",
            "Trace and Frobenius norm",
            "How much curvature is there in all directions together?",
            shows="Solid: the trace, the sum of the eigenvalues. Dashed: the Frobenius norm, the root of the sum of "
            "their squares. Both with one standard error. A norm far below the trace means that many directions share "
            "the curvature; close to the largest eigenvalue, that few carry it.",
            fails="Positive and negative eigenvalues cancel in the trace. In half precision the sum over many tiny "
            "eigenvalues is rounding.",
            source="Sums of eigenvalues from products with random vectors: Meyer et al. 2021, arXiv 2010.09649.",
            label="trace",
            signed=True,
            layers=(Layer("hessian_frobenius", "Frobenius norm", look=Look.DASHED, error=True),),
        ),
    )
