"""Edge of stability: full-batch training sharpens until the optimizer is marginally stable, then hovers there."""

from typing import ClassVar

from learnmech.laws.law import Band, Law, Prediction, State, not_applicable
from learnmech.laws.optimizers import ADAM, ADAMW, RMSPROP, SGD, clipping, maximizes, optimizer_name
from learnmech.laws.verdict import Verdict

MINIMUM_BATCH = 256
"""Below this the top eigenvalue of a batch overestimates the data set's by more than 3 % (1.05 at 128, 1.56 at 16)."""

_PRECONDITIONED = ADAM | ADAMW | RMSPROP


def heavy_ball_threshold(learning_rate: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Return the largest stable curvature of `torch.optim.SGD`: 2 (1 + mu) / (eta (1 - tau)).

    The update x+ = (1 + mu - eta (1 - tau) h) x - mu x- has a characteristic root at -1 there.

    >>> round(heavy_ball_threshold(0.1, momentum=0.9), 9)
    38.0
    """
    return 2.0 * (1.0 + momentum) / (learning_rate * (1.0 - dampening))


def nesterov_threshold(learning_rate: float, momentum: float) -> float:
    """Return the largest stable curvature of Nesterov momentum as torch applies it: (2 + 2 mu) / ((1 + 2 mu) eta).

    The update x+ = (1 - eta h)(x + mu (x - x-)) has a characteristic root at -1 there.
    """
    return (2.0 + 2.0 * momentum) / ((1.0 + 2.0 * momentum) * learning_rate)


def adam_threshold(learning_rate: float, beta1: float, weight_decay: float = 0.0) -> float:
    """Return the largest stable curvature of P^-1/2 H P^-1/2 under AdamW: (1 + b1)(2 - eta lambda) / ((1 - b1) eta).

    `weight_decay` is the decoupled coefficient; 0 gives Adam's 38/eta at beta1 = 0.9 (Cohen et al. 2022, section 3).

    >>> round(adam_threshold(1.0, beta1=0.9), 9)
    38.0
    """
    return (1.0 + beta1) * (2.0 - learning_rate * weight_decay) / ((1.0 - beta1) * learning_rate)


class EdgeOfStability(Law):
    """Sharpness rises until 2/eta and stays there (Cohen et al. 2021; adaptive optimizers: Cohen et al. 2022)."""

    name = "edge_of_stability"
    title = "Edge of stability"
    statement = (
        r"\lambda_{\max}(H) \to \frac{2(1+\mu)}{\eta(1-\tau)} - \lambda_{L2}, \qquad "
        r"\lambda_{\max}(P^{-1/2} H P^{-1/2}) \to \frac{(1+\beta_1)(2-\eta\lambda)}{(1-\beta_1)\,\eta}"
    )
    reference = (
        "Cohen et al. 2021, arXiv 2103.00065, section 3 and appendix A; Cohen et al. 2022, arXiv 2207.14484, section 3"
    )
    measures = ("sharpness", "sharpness_preconditioned")
    needs = ("learning_rate", "full_batch", "deterministic_loss")
    uses = (
        "momentum",
        "dampening",
        "nesterov",
        "beta1",
        "weight_decay",
        "decoupled_weight_decay",
        "batch_size",
        "noise_scale",
    )
    band = Band(
        0.9,
        1.15,
        "time means after onset are 0.98-1.07 of the edge on real networks and sit 0-5 % above it",
    )
    one_sided = True
    advice: ClassVar = {
        Verdict.HOLDS: (
            "At the edge. A larger learning rate buys flatness, not stability; raising it causes a spike first."
        ),
        Verdict.SUB_EDGE: (
            "Below the edge. If it stays so all run, the learning rate could be raised by about predicted/measured."
        ),
        Verdict.DEVIATES: (
            "Above the edge. A catapult or divergence is near: lower the learning rate, or wait one cycle."
        ),
        Verdict.UNDETERMINED: "Wait for more measurements, or measure more often.",
        Verdict.NOT_APPLICABLE: "In minibatch training batch sharpness, not the top eigenvalue, sits at the edge.",
    }

    def predict(self, state: State) -> Prediction | None:
        """Return the optimizer's stability threshold, or why there is none."""
        optimizer = optimizer_name(state.context)
        if not optimizer:
            return not_applicable("The run did not record its optimizer.")
        if (state.observable == "sharpness_preconditioned") != (optimizer in _PRECONDITIONED):
            return None  # raw sharpness may grow without bound under a preconditioner: not the gauge
        refusal = self._refusal(state)
        if refusal:
            return not_applicable(refusal)
        return self._threshold(state, optimizer)

    def _refusal(self, state: State) -> str:
        """Return the first precondition that fails, '' when all hold."""
        if clipping(state.context) is not None:
            return f"Gradients are clipped at {clipping(state.context):g}: the threshold assumes the plain update."
        if maximizes(state.context):
            return "The optimizer maximizes: the edge is a law of descent."
        deterministic, full_batch = state.get("deterministic_loss"), state.get("full_batch")
        if deterministic is None:
            return "Not known whether the loss is deterministic; the Sharpness probe records it."
        if not deterministic:
            return (
                "The loss is random at fixed weights (dropout or augmentation): the edge is a law of "
                "deterministic descent."
            )
        if full_batch:
            return ""
        if full_batch is None:
            return "Not known whether every step sees the whole training set; pass full_batch=True if it does."
        if state.observable == "sharpness":
            return (
                "Batches are sampled: in minibatch training batch sharpness, not the top eigenvalue, sits at the edge."
            )
        batch, noise_scale = state.get("batch_size"), state.get("noise_scale")
        if batch is None or batch < MINIMUM_BATCH or noise_scale is None or batch < noise_scale:
            return (
                f"Batches are sampled (batch size {_number(batch)}, noise scale {_number(noise_scale)}): with "
                f"an adaptive "
                f"optimizer the edge is seen from about {MINIMUM_BATCH} examples and one noise scale on."
            )
        return ""

    def _threshold(self, state: State, optimizer: str) -> Prediction:
        rate = state.get("learning_rate")
        if rate is None:
            return not_applicable("Not one learning rate: parameter groups differ, or it was not recorded.")
        if rate <= 0.0:
            return not_applicable(f"The learning rate is {rate:g}: nothing moves.")
        decay = state.get("weight_decay")
        coupled = not state.get("decoupled_weight_decay")
        if optimizer in SGD:
            return self._sgd(state, rate, decay)
        if decay is None and "weight_decay" in state.values and not coupled:
            decay = 0.0  # groups differ; decoupled decay lowers the edge by eta lambda / 2 of it, far below the band
        if decay is None:
            return not_applicable("Not one weight decay: parameter groups differ, or it was not recorded.")
        if decay and coupled:
            return not_applicable(f"L2 regularization inside {optimizer}'s preconditioner has no verified threshold.")
        if optimizer in RMSPROP:
            value = heavy_ball_threshold(rate, momentum=state.get("momentum") or 0.0)
            return Prediction(
                value, note=f"The edge of {optimizer} at learning rate {rate:g}{_since(state)} is {value:.4g}"
            )
        if optimizer in ADAM | ADAMW:
            beta1 = state.get("beta1")
            if beta1 is None:
                return not_applicable("Not one beta1: parameter groups differ, or it was not recorded.")
            value = adam_threshold(rate, beta1, decay)
            return Prediction(
                value, note=f"The edge of {optimizer} at learning rate {rate:g}{_since(state)} is {value:.4g}"
            )
        return not_applicable(f"No verified stability threshold for {optimizer}.")

    def _sgd(self, state: State, rate: float, decay: float | None) -> Prediction:
        momentum, dampening = state.get("momentum") or 0.0, state.get("dampening") or 0.0
        if decay is None:
            return not_applicable("Not one weight decay: parameter groups differ, or it was not recorded.")
        nesterov = bool(state.get("nesterov"))
        value = (
            nesterov_threshold(rate, momentum) if nesterov else heavy_ball_threshold(rate, momentum, dampening)
        ) - decay  # coupled L2 adds lambda to every eigenvalue of the loss that SGD descends
        if value <= 0.0:
            return not_applicable(f"Weight decay {decay:g} alone is past the edge at learning rate {rate:g}.")
        kind = "Nesterov momentum" if nesterov else "heavy ball" if momentum else "gradient descent"
        return Prediction(value, note=f"The edge of {kind} at learning rate {rate:g}{_since(state)} is {value:.4g}")


def _since(state: State) -> str:
    since = state.since("learning_rate")
    return f" (in force since step {since})" if since else ""


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
