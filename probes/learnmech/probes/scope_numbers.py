"""The numbers of one scope of weights, from the sums of its tensors and the rules by which they move."""

import math
from collections.abc import Sequence

from learnmech.observables import Status
from learnmech.probes.estimators.weights import Motion, summed
from learnmech.probes.noise.window import ExponentialWindow
from learnmech.probes.update_rules import Rule
from learnmech.wire import Measurement

Part = tuple[Motion, Rule | None]
"""A tensor's motion, and the rule by which it moves where that is known."""


def of_scope(scope: str, whole: Motion, method: str, *, gradient_seen: bool) -> list[Measurement]:
    """Return norms of weights, gradient and update, and the angle of the update.

    Args:
        scope: The scope; the gradient norm of `''` is left out, it is recorded with the loss.
        whole: Its tensors as one vector.
        method: How the gradient was seen, if not before clipping.
        gradient_seen: Whether there was a gradient of any tensor of the model.
    """
    found = [Measurement("weight_norm", whole.weight_norm, scope=scope)]
    if not scope:
        found.append(Measurement("weight_norm_sq", whole.weight_sq))
    found.append(Measurement("weight_rms", whole.weight_rms, scope=scope))
    if scope and whole.gradients:
        found.append(Measurement("grad_norm", whole.gradient_norm, scope=scope, method=method))
    elif scope:
        reason = (
            "no gradient of these parameters" if gradient_seen else "the gradient was not seen: call after_backward"
        )
        found.append(Measurement("grad_norm", None, scope=scope, status=Status.UNSUPPORTED, reason=reason))
    zero = "the weights are zero" if whole.weight_sq == 0.0 else ""
    gone = zero or ("the update has set the weights to zero" if whole.weight_sq + whole.growth <= 0.0 else "")
    return [
        *found,
        Measurement("update_norm", whole.update_norm, scope=scope),
        _ratio("relative_update", whole.relative_update, scope, zero),
        _ratio("angular_update", whole.angular_update, scope, gone),
    ]


def decay_share(scope: str, whole: Motion, parts: Sequence[Part]) -> list[Measurement]:
    """Return `weight_decay_share`, or nothing if no weight of the scope decays.

    Decoupled |eta lambda w| / |s|; else |lambda w| / |g + lambda w| with |g + lambda w|^2 = |g|^2 + 2 lambda <w, g> +
    lambda^2 |w|^2, where decay is part of the gradient.
    """
    declared = [(motion, rule) for motion, rule in parts if rule is not None and rule.decay]
    if not declared:
        return []
    decaying = [(motion, rule) for motion, rule in declared if _moves(motion)]
    kinds = {rule.decoupled for _, rule in decaying}
    if len(kinds) > 1:
        return [_ratio("weight_decay_share", math.nan, scope, "decay is decoupled for some of these weights only")]
    if kinds == {True}:
        shrink = [((rule.rate or 0.0) * rule.decay, motion.weight_sq) for motion, rule in decaying]
        decay_sq = summed([factor * factor * square for factor, square in shrink])
        reason = "nothing was updated" if whole.update_sq == 0.0 else ""
        return [_ratio("weight_decay_share", _root(decay_sq, whole.update_sq), scope, reason)]
    if not whole.gradients:
        return [_ratio("weight_decay_share", math.nan, scope, "no gradient of these parameters was seen")]
    decay_sq = summed([rule.decay * rule.decay * motion.weight_sq for motion, rule in decaying])
    crossed = summed([2.0 * rule.sign * rule.decay * motion.along_gradient for motion, rule in decaying])
    whole_sq = whole.gradient_sq + crossed + decay_sq
    reason = "gradient and decay cancel" if whole_sq <= 0.0 else ""
    return [_ratio("weight_decay_share", _root(decay_sq, whole_sq), scope, reason)]


def effective_rate(scope: str, parts: Sequence[Part]) -> list[Measurement]:
    """Return the geometric mean of the effective learning rates eta / |w|^k, or nothing where one is not known."""
    logarithms = []
    for motion, rule in parts:
        exponent = None if rule is None else rule.effective_exponent
        if rule is None or exponent is None or not rule.rate or not motion.weight_sq > 0.0:
            return []
        logarithms.append(math.log(rule.rate) - exponent / 2.0 * math.log(motion.weight_sq))
    value = math.exp(math.fsum(logarithms) / len(logarithms))
    method = f"geometric_mean_of_{len(parts)}" if len(parts) > 1 else ""
    return [Measurement("effective_learning_rate", value, scope=scope, method=method)]


class Dissipation:
    """The fluctuation-dissipation relation of SGD in every scope, over exponential windows.

    Args:
        half_life: Of the windows, in measurements.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._windows: dict[str, ExponentialWindow] = {}

    def measure(self, scope: str, parts: Sequence[Part]) -> list[Measurement] | str:
        """Return O_L / O_R of a scope, or why there is no such number.

        O_L = <w, g + lambda w>, O_R = (1 + mu) / (2 eta (1 - tau)) |s|^2, each summed over the tensors and averaged
        over the window; gradient and update are those of the same step. Both sides add up over tensors, and so does
        the relation: it says that |w|^2 of the scope is stationary.
        """
        left, right = [], []
        for motion, rule in parts:
            if not _moves(motion):
                continue
            factor = None if rule is None else rule.dissipation
            if rule is None or factor is None:
                return "there is such a relation for torch.optim.SGD without Nesterov momentum only"
            if rule.decoupled:
                return "there is such a relation for weight decay through the gradient only"
            left.append(rule.sign * motion.along_gradient + rule.decay * motion.weight_sq)
            right.append(factor * motion.update_sq)
        if not any(motion.gradients for motion, _ in parts):
            return "the gradient was not seen, or cleared before after_step: call after_backward"
        window = self._windows.setdefault(scope, ExponentialWindow(self._half_life))
        sides = summed(left), summed(right)
        if not all(map(math.isfinite, sides)):
            reason, status = "weights, update or gradient are not finite", Status.NON_FINITE
            return [Measurement("fluctuation_dissipation", None, scope=scope, status=status, reason=reason)]
        window.append(*sides)
        ratio = window.ratio(math.inf)
        value = ratio.value if math.isfinite(ratio.value) else None
        method = f"window_of_{ratio.count:.0f}"
        if value is not None and ratio.determined:
            return [Measurement("fluctuation_dissipation", value, scope=scope, stderr=ratio.stderr, method=method)]
        reason = "one measurement has no error bar" if window.count < 2 else "|s|^2 is not resolved from zero"
        status = Status.UNDETERMINED
        return [Measurement("fluctuation_dissipation", value, scope=scope, status=status, reason=reason, method=method)]


def _moves(motion: Motion) -> bool:
    """Tell whether an optimizer did not pass over a tensor, its decay too, because there was no gradient."""
    return motion.gradients > 0 or motion.update_sq != 0.0


def _root(numerator: float, denominator: float) -> float:
    return math.sqrt(numerator / denominator) if denominator > 0.0 else math.nan


def _ratio(observable: str, value: float, scope: str, reason: str) -> Measurement:
    """Return a number, or why it does not exist; one that is not finite for another reason is kept as it is."""
    if reason:
        return Measurement(observable, None, scope=scope, status=Status.UNDETERMINED, reason=reason)
    return Measurement(observable, value, scope=scope)
