"""Critical sharpness: how far along the update the loss of its batch rises, from forward passes alone."""

import math
from typing import Any, ClassVar

import torch

from learnmech.observables import Status
from learnmech.probes.arguments import share, whole
from learnmech.probes.curvature.stability import Crossing, Rounding, first_rise
from learnmech.probes.hyperparameters import DIFFERS
from learnmech.probes.isolation import PureLoss
from learnmech.probes.loss_change import NO_UPDATE
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.update_probe import UpdateProbe
from learnmech.probes.update_rules import UpdateRules, rules_of
from learnmech.wire import Measurement

FEWEST = 5
"""Forward passes below which even a quadratic is not bracketed: one at zero, two to see it, two around its crossing."""


class CriticalSharpness(UpdateProbe):
    """Measures `critical_step` and `critical_sharpness`, the curvature dial that needs no derivative.

    With s = w_(t+1) - w_t as the optimizer applied it at learning rate eta, and L the loss of the batch that produced
    it,

        c* = the first c > 0 with L(w_t + c s) > L(w_t),   critical_step = c*,   critical_sharpness = 2 / (c* eta).

    On a quadratic c* = 2 (-G's) / (s'Hs), so for plain descent, s = -eta G, the critical sharpness is the curvature
    G'HG / G'G along the gradient. It is a curvature along one direction and at a finite distance, *not* the largest
    eigenvalue: away from the edge of stability it was 2 to 10 times smaller. Nor does the quadratic hold as far as a
    distant crossing: on digits, with SGD, momentum and AdamW, c* was 1.6 to 2 times that of the quadratic model in the
    median, and 0.7 to 4.7 times in nine of ten measurements. What it says directly: below c* = 1 the
    update has raised the loss of its own batch, and by what factor the learning rate may rise before the next one does.

    The crossing is bracketed, from the last one on, by geometric steps and closed by interpolation and halving; the
    value is the middle of the bracket, and `stderr` half its width with the rounding of the loss in quadrature (for
    `critical_sharpness` carried through): the crossing lies within it. NaN counts as a rise. Where the loss rises along
    s from the start, or does not rise as far as was looked, the value is a bound and the status `undetermined`. On a
    loss that rises, falls and rises again it is one of the crossings from below.

    All evaluations are of one function: the same batch, random numbers and buffers. With several processes it is the
    loss over the batches of all of them. With accumulated gradients the batch is a part of the update's, and `method`
    says so.

    Costs 5 to 8 forward passes (5 on a quadratic), and half a one for the rounding: two to three gradients, no graph.
    Memory: one copy of the weights from before the update until the measurement, and three vectors of their size.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        tol: Half-width of the bracket to stop at, relative to c*.
        forwards: Most forward passes; a bracket wider than `tol` after these is `not_converged`.
        batch: A fixed batch to measure on, instead of that of the update.
        name: Name, if there are two probes of this class.

    References:
        Kalra et al. 2026, arXiv 2601.16979.
    """

    default_name: ClassVar[str] = "critical_sharpness"
    observables: ClassVar[tuple[str, ...]] = ("critical_step", "critical_sharpness")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        tol: float = 0.05,
        forwards: int = 8,
        batch: Any = None,
        name: str | None = None,
    ) -> None:
        tol = share(self, "tol", tol, "relative width", 0.05)
        forwards = whole(self, "forwards", forwards, FEWEST, 8)
        super().__init__(schedule, batch=batch, name=name)
        self.tol = tol
        self.forwards = forwards

    def reset(self) -> None:
        """Forget the crossing of an earlier run."""
        super().reset()
        self._rules = UpdateRules()
        self._rounding = Rounding()
        self._last = 1.0

    def prepare(self, view: TrainingView) -> None:
        """Copy the weights before the update, and note the learning rates that it will be made with."""
        super().prepare(view)
        self._rules = rules_of(view.optimizers, view.parameters)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what points to the training out of copies and pickles."""
        return super().__getstate__() | {"_rules": UpdateRules()}

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at w_(t+1), with w_t held."""
        applied = self.applied(loss, view)
        before, step = applied.before, applied.step
        if before.resolution > torch.finfo(torch.float32).eps:
            reason = "weights in half precision cannot move by a part of an update: it is below their spacing"
            return self._nothing(Status.UNSUPPORTED, reason)
        if float(before.space.norm(step)) == 0.0:
            return self._nothing(Status.UNDETERMINED, NO_UPDATE)
        base = float(before.loss_along())
        if not math.isfinite(base):
            return self._nothing(Status.NON_FINITE, f"the loss before the update is {base}")

        def change(c: float) -> float:
            # the weights after the update are there exactly; w + s would round
            return float(applied.after.loss_along() if c == 1.0 else before.loss_along(step, c)) - base

        noise = math.sqrt(2) * self._rounding.of(before, base)
        found = first_rise(change, start=self._last, tol=self.tol, evaluations=self.forwards - 1, noise=noise)
        if found.lower > 0.0:
            self._last = found.value if found.bracketed else found.lower
        else:  # started too far out, after a step so small that nothing rose: look near the update again
            self._last = 1.0 if found.unresolved else min(found.upper, 1.0)
        return self._measurements(found, f"{found.evaluations + 1}_forwards{self.where(view)}")

    def _nothing(self, status: Status, reason: str) -> list[Measurement]:
        return [Measurement(name, None, status=status, reason=reason) for name in self.observables]

    def _measurements(self, found: Crossing, method: str) -> list[Measurement]:
        value, error, status, reason = self._judged(found)
        step = Measurement("critical_step", value, stderr=error, status=status, reason=reason, method=method)
        rules = self._rules.read([float(value) for value in self._rules.values])  # the measurement has waited anyway
        rates = {rule.rate for rule in rules.values()}
        rate = rates.pop() if len(rates) == 1 else None
        if rate is None or not rate > 0.0:
            why = DIFFERS if rates else "there is no positive number"
            why = f"the learning rate {why}; critical_step needs none"
            return [step, Measurement("critical_sharpness", None, status=Status.UNSUPPORTED, reason=why)]
        sharpness = 2 / (value * rate)
        carried = None if error is None else sharpness * error / value
        return [
            step,
            Measurement("critical_sharpness", sharpness, stderr=carried, status=status, reason=reason, method=method),
        ]

    def _judged(self, found: Crossing) -> tuple[float, float | None, Status, str]:
        """Return c*, its error, and how good it is."""
        if not found.lower > 0.0:
            if found.upper > 1.0:
                return (
                    found.upper,
                    None,
                    Status.UNDETERMINED,
                    (
                        f"the loss rises at every multiple of the update looked at, down to {found.upper:.2g}: the "
                        "critical step is at most that, and the next measurement looks closer"
                    ),
                )
            why = "there it is within rounding" if found.unresolved else "that far was looked"
            reason = (
                f"the loss rises along the update at every multiple down to {found.upper:.2g} ({why}): the update does "
                "not point downhill on its batch; the critical step is at most that"
            )
            return found.upper, None, Status.UNDETERMINED, reason
        if math.isinf(found.upper):
            reason = f"the loss has not risen at {found.lower:.3g} times the update; the critical step is at least that"
            return found.lower, None, Status.UNDETERMINED, reason
        width = found.half_width / found.value
        if width <= self.tol * math.sqrt(2):  # the bracket reached tol, and rounding adds no more than that
            return found.value, found.half_width, Status.OK, ""
        reason = (
            f"after {found.evaluations + 1} forward passes the critical step is known to {width:.1%}, wanted is "
            f"{self.tol:.1%}"
        )
        return found.value, found.half_width, Status.NOT_CONVERGED, reason
