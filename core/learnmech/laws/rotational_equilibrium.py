"""Rotational equilibrium: weight decay and gradient noise settle the angle that weights turn per step."""

import math
from typing import ClassVar

from learnmech.laws.law import Band, Law, Prediction, State, not_applicable
from learnmech.laws.optimizers import ADAMW, SGD, clipping, optimizer_name
from learnmech.laws.verdict import Verdict

INVARIANT = 1e-3
"""Largest |<w, g>|/(|w||g|) that certifies scale invariance: norm layers' epsilon leaves up to 3e-5 and half precision
more, while matrices without the symmetry show 1e-2 and above (Kunin et al. 2021 give the exact zero)."""

RELAXATIONS = 3.0
"""Relaxation times that must have passed since learning rate or decay last changed: e^-3 = 5 % of the way is left."""

_SGD_BAND = Band(0.95, 1.05, "an identity at stationarity; 0.997-1.019 measured on real networks")
_ADAMW_NOISY = Band(0.87, 1.15, "assumes a random walk; 0.91-1.10 measured below the noise scale")
_ADAMW_SIGNAL = Band(0.80, 1.25, "gradients correlate above the noise scale: 0.885 measured there")


def sgd_rotation(learning_rate: float, weight_decay: float, momentum: float = 0.0) -> float:
    """Return the equilibrium angle per step under SGD with momentum: sqrt(2 eta lambda / (1 + mu)), in rad."""
    return math.sqrt(2.0 * learning_rate * weight_decay / (1.0 + momentum))


def adamw_rotation(learning_rate: float, weight_decay: float, beta1: float) -> float:
    """Return the equilibrium angle per step under AdamW: sqrt(2 eta lambda (1 - b1) / (1 + b1)), in rad.

    >>> round(adamw_rotation(1e-3, 0.1, 0.9), 6)
    0.003244
    """
    return math.sqrt(2.0 * learning_rate * weight_decay * (1.0 - beta1) / (1.0 + beta1))


class RotationalEquilibrium(Law):
    """Scale-invariant weights end up turning by one angle per step, whatever their gradients (Kosson et al. 2023)."""

    name = "rotational_equilibrium"
    title = "Weight-norm equilibrium"
    statement = (
        r"\angle(w_t, w_{t+1}) \to \sqrt{2\eta\lambda\,\tfrac{1-\beta_1}{1+\beta_1}}\ \text{(AdamW)}, \quad "
        r"\sqrt{\tfrac{2\eta\lambda}{1+\mu}}\ \text{(SGD)}"
    )
    reference = "Kosson et al. 2023, arXiv 2305.17212, table 1; Wan et al. 2020, arXiv 2006.08419"
    measures = ("angular_update",)
    needs = ("learning_rate", "weight_decay", "scale_invariance")
    uses = (
        "momentum",
        "dampening",
        "nesterov",
        "beta1",
        "decoupled_weight_decay",
        "batch_size",
        "noise_scale",
        "weight_norm",
    )
    band = _ADAMW_NOISY
    window = 20
    advice: ClassVar = {
        Verdict.HOLDS: "Effective learning rates have settled at the common value; the schedule is what it says it is.",
        Verdict.DEVIATES: (
            "This group has another effective learning rate than the rest: look for mis-grouped weight decay, "
            "a tiny gradient against epsilon, or frozen weights."
        ),
        Verdict.UNDETERMINED: "Wait for more measurements, or measure more often.",
        Verdict.NOT_APPLICABLE: (
            "Before equilibrium the norms still set an implicit warm-up; effective learning rates drift."
        ),
    }

    def predict(self, state: State) -> Prediction | None:
        """Return the equilibrium angle, or which precondition fails; None for scopes in which nobody looked for it."""
        if state.scope and "scale_invariance" not in state.values:
            return None  # a module type or a block: judged are certified tensors, and the whole model to say why not
        rate, decay = state.get("learning_rate"), state.get("weight_decay")
        refusal = self._refusal(state, rate, decay)
        if refusal or rate is None or decay is None:
            return not_applicable(refusal)
        since = max(state.since("learning_rate"), state.since("weight_decay"))
        # Norms relax at rate 2 eta lambda (AdamW: |w|^2; SGD: |w|^4 at twice that), so this is the slower of the two.
        needed = RELAXATIONS / (2.0 * rate * decay)
        if state.step - since < needed:
            return not_applicable(
                f"Not in equilibrium yet: {state.step - since} of the {needed:.0f} steps that {RELAXATIONS:g} "
                f"relaxation "
                f"times 1/(2 eta lambda) take since learning rate and decay last changed at step {since}."
            )
        return self._angle(state, rate, decay)

    def _refusal(self, state: State, rate: float | None, decay: float | None) -> str:
        """Return the first precondition that fails, '' when all hold."""
        if rate is None or decay is None:
            return "Not one learning rate and weight decay for these weights: groups differ, or they were not recorded."
        if rate <= 0.0:
            return f"The learning rate is {rate:g}: nothing moves."
        if rate * decay <= 0.0:
            return "No weight decay on these weights: norms grow without limit and there is no equilibrium."
        invariance = state.get("scale_invariance")
        if invariance is None:
            return (
                "Scale invariance not certified: tensors before normalizations are judged in scope `scale_invariant`, "
                "once five measurements have seen their gradient (call after_backward or use the Lightning monitor), "
                "and each tensor by itself with WeightDynamics(per_parameter=True)."
            )
        if abs(invariance) > INVARIANT:
            return (
                f"These weights are not scale invariant: |<w, g>|/(|w||g|) = {abs(invariance):.2g}, above "
                f"{INVARIANT:g}; "
                "the loss depends on their norm."
            )
        return ""

    def _angle(self, state: State, rate: float, decay: float) -> Prediction:
        optimizer = optimizer_name(state.context)
        where = f"Prediction for {optimizer} at learning rate {rate:g} and weight decay {decay:g}"
        if optimizer in ADAMW:
            beta1 = state.get("beta1")
            if beta1 is None:
                return not_applicable("Not one beta1: parameter groups differ, or it was not recorded.")
            batch, scale = state.get("batch_size"), state.get("noise_scale")
            signal = batch is not None and scale is not None and batch > scale
            return Prediction(
                adamw_rotation(rate, decay, beta1), note=where, band=_ADAMW_SIGNAL if signal else _ADAMW_NOISY
            )
        if optimizer in SGD:
            if state.get("nesterov") or state.get("dampening"):
                return not_applicable("No verified equilibrium angle for Nesterov momentum or dampening.")
            if clipping(state.context) is not None:
                return not_applicable("Gradients are clipped: the angle follows the clipped norm.")
            return Prediction(sgd_rotation(rate, decay, state.get("momentum") or 0.0), note=where, band=_SGD_BAND)
        return not_applicable(f"No verified equilibrium angle for {optimizer or 'an unrecorded optimizer'}.")
