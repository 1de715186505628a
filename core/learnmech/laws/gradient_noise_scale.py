"""Gradient noise against batch size: the noise of a batch gradient falls as 1/B."""

import math
from typing import ClassVar

from learnmech.laws.batch_size import speedup
from learnmech.laws.law import Band, Law, Prediction, State, not_applicable
from learnmech.laws.verdict import Verdict

MAXIMUM_SHARE = 0.1
"""Largest part of the data set that a batch may be. Two batches of B of different epochs share B^2/n of n examples on
average, which takes B/n off the noise between them; this leaves half of the band for everything else."""


class GradientNoiseScale(Law):
    r"""The squared error of a batch gradient is tr Sigma / B, for every batch size.

    This is what makes the noise scale B_simple = tr Sigma/|G|^2 a statement about *other* batch sizes:
    E|g_B|^2 = |G|^2 (1 + B_simple/B) (McCandlish et al. 2018, appendix A). It is false when the examples of a batch
    are not
    independent (duplicates, windows of one document, sorted data, BatchNorm) or not weighted equally.

    The two sides come from independent numbers. Predicted: tr Sigma from disjoint pieces *within* a batch. Measured:
    (B/2)|g_B - g_B'|^2 *between* two batches at the same weights. Both are differences of disjoint samples, so drawing
    without replacement biases neither against the other; batches of different epochs overlap, so they must be small.
    """

    name = "gradient_noise_scale"
    title = "Gradient noise falls as 1/B"
    statement = (
        r"\tfrac{B}{2}\,\mathbb{E}\lVert g_B - g_{B'}\rVert^2 = \operatorname{tr}\Sigma, \qquad "
        r"\mathbb{E}\lVert g_B\rVert^2 = \lvert G\rvert^2\,(1 + B_{\mathrm{simple}}/B)"
    )
    reference = "McCandlish et al. 2018, arXiv 1812.06162, section 2.2 and appendix A.1"
    measures = ("noise_trace_between",)
    needs = ("noise_trace", "batch_size")
    uses = ("noise_scale", "grad_sq_norm", "full_batch", "dataset_size", "accumulation")
    band = Band(
        0.8, 1.25, "equivalence half-width of 25 %: the decision it serves, a batch size, is made in factors of two"
    )
    window = 30
    minimum = 8
    advice: ClassVar = {
        Verdict.HOLDS: (
            "The noise scale can be trusted for decisions about batch size. Far below it, more data parallelism "
            "saves steps almost for free; far above it, examples are wasted."
        ),
        Verdict.DEVIATES: (
            "Examples in a batch are not independent or not equally weighted: look at shuffling, packing of "
            "sequences, BatchNorm, loss averaging. Do not size batches by the noise scale."
        ),
        Verdict.UNDETERMINED: "Wait for more measurements, or measure more often.",
        Verdict.NOT_APPLICABLE: "With the whole training set in every batch there is no sampling noise.",
    }

    def predict(self, state: State) -> Prediction | None:
        """Return tr Sigma from within the batch as the prediction for tr Sigma between batches."""
        if state.get("full_batch"):
            return not_applicable("Every step sees the whole training set: there is no sampling noise.")
        if state.context.get("batch_coupling"):
            return not_applicable(
                f"{state.context['batch_coupling']} couples the examples of a batch: their gradients are not "
                f"independent."
            )
        drawn = (state.get("batch_size") or 0.0) / (state.get("accumulation") or 1.0)
        share = drawn / (state.get("dataset_size") or math.inf)
        if share > MAXIMUM_SHARE:
            return not_applicable(
                f"A batch is {share:.0%} of the data set: batches of different epochs share too many examples to be "
                f"independent (above {MAXIMUM_SHARE:.0%})."
            )
        trace = state.values.get("noise_trace")
        if trace is None or trace.value is None or trace.step != state.step:
            return not_applicable("No trace from within the batch at this step to compare with.")
        if trace.value <= 0.0:
            return not_applicable("The pieces of the batch have the same gradient: there is no noise to compare.")
        return Prediction(trace.value, stderr=trace.stderr or 0.0, note=_against_batch_size(state))


def _against_batch_size(state: State) -> str:
    """Say what the noise scale means for the batch size in use.

    What doubling it would buy is `learnmech.laws.batch_size.speedup` (McCandlish et al. 2018, eq. 2.7).
    """
    batch, scale = state.get("batch_size"), state.get("noise_scale")
    if batch is None or scale is None or scale <= 0.0:
        return "The noise scale itself is not resolved yet"
    ratio = scale / batch
    gain = speedup(batch, 2.0 * batch, scale)
    return (
        f"Batch size {batch:g} is {1.0 / ratio:.2g} of the noise scale {scale:.3g}: doubling it would make a "
        f"step worth "
        f"{gain:.2f} times as much"
    )
