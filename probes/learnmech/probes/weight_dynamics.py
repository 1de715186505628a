"""Weight dynamics: norms, update norms, angles and scale invariance, for the whole model and tensor by tensor."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from learnmech.observables import Status
from learnmech.probes.changes import Changes
from learnmech.probes.estimators import Motion, motion_sums, read_motion
from learnmech.probes.hyperparameters import DIFFERS
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import BaseProbe, Moment, TrainingView, measured_tensors
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from torch import Tensor

SCALE_INVARIANT = "scale_invariant"
"""Scope of the tensors that are certified scale invariant, taken together."""

CERTIFIED = 1e-4
"""Largest |<w, g>|/(|w||g|) of a scale-invariant tensor in float32: norm layers' epsilon leaves up to 3e-5, tensors
without the symmetry show 1e-2 and above."""
CERTIFIED_COARSE = 1e-3
"""The same where half precision or TF32 rounds the gradient."""

LOOKS = 5
"""Measurements in a row that must stay below it: one small inner product may be chance."""


class WeightDynamics(BaseProbe):
    """Measures what updates do to weights.

    - Scope `''`, all trainable weights as one: `weight_norm`, `weight_norm_sq`, `update_norm`, `relative_update`.
    - Each of the `tensors` largest tensors with two or more dimensions, scope its name: `weight_norm`, `update_norm`,
      `angular_update`, and `scale_invariance` where the gradient was seen.
    - Scope `scale_invariant`, the tensors among these whose loss does not depend on their scale: the rms of
      `angular_update`, the largest `scale_invariance`, and `learning_rate` and `weight_decay` if they have one value.

    Norms are those of w_t, updates and angles those of w_t -> w_(t+1). Keeps one copy of the weights from before the
    update to after it, on the steps it measures; the device is not waited for.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        tensors: How many tensors to measure one by one.
        name: Name, if there are two probes of this class.

    References:
        Kosson et al. 2023, arXiv 2305.17212; scale invariance: van Laarhoven 2017, arXiv 1706.05350.
    """

    default_name: ClassVar[str] = "weight_dynamics"
    observables: ClassVar[tuple[str, ...]] = ("weight_norm", "weight_norm_sq", "update_norm", "relative_update")
    moment: ClassVar[Moment] = Moment.UPDATE

    def __init__(self, schedule: Schedule | None = None, *, tensors: int = 32, name: str | None = None) -> None:
        super().__init__(schedule, name=name)
        if tensors < 0:
            raise ValueError(f"WeightDynamics(tensors={tensors!r}): expected how many tensors to measure, from 0 on")
        self.tensors = tensors
        self.reset()

    def reset(self) -> None:
        """Forget the certificates of an earlier run."""
        self._before: dict[str, Tensor] = {}
        self._projections: Tensor | None = None
        self._projected: list[str] = []
        self._looks: dict[str, deque[float]] = {}
        self._changes = Changes()

    def prepare(self, view: TrainingView) -> None:
        """Copy the weights before the update, and project the gradient on them while it is there.

        Raises:
            Refusal: Parameters are sharded.
        """
        if any(hasattr(p, "_local_tensor") for p in view.parameters.values()):
            raise Refusal("Parameters are sharded over processes, and sharded norms are not measured yet.")
        self._before = {name: p.detach().clone() for name, p in view.parameters.items()}
        self._project(view)

    def _project(self, view: TrainingView) -> None:
        names = [name for name in measured_tensors(self._before, self.tensors) if name in (view.gradients or {})]
        self._projected, self._projections = names, None
        if names and view.gradients is not None:
            gradients: list[Tensor | None] = [view.gradients[name] for name in names]
            self._projections = motion_sums([self._before[name] for name in names], None, gradients)[:, 3:]

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Compare with the weights after the update; the numbers are handed over once they have been read."""
        if self._projections is None:
            self._project(view)
        before, self._before = self._before, {}
        names = [name for name in before if name in view.parameters]
        if not names:
            return []
        sums = motion_sums([before[name] for name in names], [view.parameters[name] for name in names])[:, :3]
        projected = self._projected
        values = [sums] if self._projections is None else [sums, self._projections]
        self._projections, self._projected = None, []
        single = measured_tensors(before, self.tensors)
        precise, hyperparameters = view.precise, view.hyperparameters

        def build(numbers: list[float]) -> list[Measurement]:
            motions, whole = _motions(numbers, names, projected)
            found = _whole(whole)
            for name in single:
                found += _single(name, motions[name])
            return found + self._invariant(motions, projected, precise, hyperparameters)

        view.defer(values, build)
        return []

    def _invariant(
        self,
        motions: Mapping[str, Motion],
        projected: Sequence[str],
        precise: bool,
        hyperparameters: Mapping[str, Mapping[str, float]],
    ) -> list[Measurement]:
        """Summarize the tensors that have been scale invariant at the last looks."""
        for name in projected:
            value = motions[name].scale_invariance
            if math.isfinite(value):
                self._looks.setdefault(name, deque(maxlen=LOOKS)).append(value)
        limit = CERTIFIED if precise else CERTIFIED_COARSE
        members = [
            name
            for name in projected
            if len(self._looks.get(name, ())) == LOOKS
            and max(self._looks[name]) < limit
            and math.isfinite(motions[name].angular_update)
        ]
        if not members:
            return []
        angle = math.sqrt(math.fsum(motions[name].angular_update ** 2 for name in members) / len(members))
        found = [
            Measurement("angular_update", angle, scope=SCALE_INVARIANT, method=f"rms_of_{len(members)}"),
            Measurement("scale_invariance", max(self._looks[name][-1] for name in members), scope=SCALE_INVARIANT),
        ]
        for observable in ("learning_rate", "weight_decay"):
            values = {hyperparameters.get(name, {}).get(observable) for name in members}
            common = values.pop() if len(values) == 1 else None
            found += self._changes.note(observable, common, SCALE_INVARIANT, "" if common is not None else DIFFERS)
        return found


def _motions(
    numbers: Sequence[float], names: Sequence[str], projected: Sequence[str]
) -> tuple[dict[str, Motion], Motion]:
    """Put the rows of `motion_sums` together: |w|^2, |w'|^2, |w' - w|^2 of all, <w, g>, |g|^2 where projected."""
    rows = {name: [*numbers[3 * i : 3 * i + 3], math.nan, math.nan] for i, name in enumerate(names)}
    offset = 3 * len(names)
    for index, name in enumerate(projected):
        if name in rows:
            rows[name][3:] = numbers[offset + 2 * index : offset + 2 * index + 2]
    found, whole = read_motion(list(rows.values()))
    return dict(zip(rows, found, strict=True)), whole


def _whole(motion: Motion) -> list[Measurement]:
    return [
        Measurement("weight_norm", motion.weight_norm),
        Measurement("weight_norm_sq", motion.weight_norm**2),
        Measurement("update_norm", motion.update_norm),
        _number("relative_update", motion.relative_update, "", "the weights are zero"),
    ]


def _single(name: str, motion: Motion) -> list[Measurement]:
    found = [
        Measurement("weight_norm", motion.weight_norm, scope=name),
        Measurement("update_norm", motion.update_norm, scope=name),
        _number("angular_update", motion.angular_update, name, "the tensor is zero"),
    ]
    if math.isfinite(motion.scale_invariance):
        found.append(Measurement("scale_invariance", motion.scale_invariance, scope=name))
    return found


def _number(observable: str, value: float, scope: str, reason: str) -> Measurement:
    """Return a ratio that does not exist where a norm is zero."""
    if math.isnan(value):
        return Measurement(observable, None, scope=scope, status=Status.UNDETERMINED, reason=reason)
    return Measurement(observable, value, scope=scope)
