"""The Hessian-weighted noise scale: which batch size the noise asks for, in the directions where curvature counts."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch

from learnmech.observables import Status
from learnmech.probes.arguments import function
from learnmech.probes.curvature import Operator, Unmeasurable
from learnmech.probes.curvature.operators.choice import USELESS
from learnmech.probes.curvature.processes import objective_in
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.estimators.ratio import Moments, Ratio, ratio_now
from learnmech.probes.isolation import PureLoss, Refusal
from learnmech.probes.isolation.counting import count
from learnmech.probes.noise.hessian_weighted import PIECES, WeightedParts, weighted_parts
from learnmech.probes.noise.reasons import SUSPECTED, too_few, too_loose, with_left_out
from learnmech.probes.noise.scale import HALF_LIFE
from learnmech.probes.noise.small import SmallBatches
from learnmech.probes.noise.split import Split
from learnmech.probes.noise.surges import Jumps
from learnmech.probes.noise.units import PieceUnits, Units
from learnmech.probes.noise.window import FEWEST, RESOLVED, ExponentialWindow
from learnmech.probes.pieces import split
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

REMEDY = "Pass HessianNoiseScale(split=...), a function split(batch, pieces) that returns a list of smaller batches."

WHOLE = "every step sees the whole data set: there is no noise of batches, and the pieces are always the same"


class HessianNoiseScale(CurvatureProbe):
    """Measures `noise_trace_hessian`, `grad_hessian_grad`, and their ratio `noise_scale_hessian`.

    A step of SGD at learning rate eta on a batch of B examples changes the loss, to second order, by

        E[dL] = -eta |G|^2 + eta^2 / 2 (G'HG + tr(H Sigma) / B)

    so that at the best learning rate it gains 1 / (1 + B_noise / B) of what the whole gradient would:

        B_noise = tr(H Sigma) / G'HG

    `noise_scale` takes H for a multiple of the identity; the two differ where noise and gradient see other curvatures.

    The batch is cut into three pieces; each in turn gives the Hessian for the gradients of the other two. So both parts
    are unbiased, also with respect to the Hessian (`learnmech.probes.noise.hessian_weighted`). The ratio is one of
    means over an exponential window, with Fieller's 95 % interval, widened by how far the window seems to lag behind a
    drift: a number only while that spans less than a factor of four. The Hessian is indefinite, so either part may be
    negative in truth. Then the ratio is not a batch size: it is `undetermined`, and the reason says which part it was.
    Nothing is clamped.

    `stderr` of the two parts is the scatter of one measurement. Products that are off by more than 5 % of the Hessian,
    as differences of gradients are on ReLU networks (where double backward is exact), leave everything `undetermined`.

    With several processes a piece is the union of their pieces, and the number is that of all their batches. With
    accumulated gradients the batch is the last micro-batch: noise is told per example all the same. Dropout draws other
    masks for each piece, so its noise counts as part of Sigma. Batch normalization, and losses that compare examples,
    make it the noise and the curvature of pieces of a third of the batch, which is another function than that of the
    batch. In full-batch training there is nothing to measure, and the status says so.

    Costs one gradient and two products on its graph, all of them in thirds: 5 to 6 training steps, 7 to 14 by
    differences. Memory: one copy of the weights from before the update until the measurement (under `Recorder`), the
    graph of one double backward of the batch, and five vectors of the weights' size. When memory runs out, pieces are
    taken in parts from then on.

    Args:
        schedule: When to measure, such as `every(50)`; None leaves it to the budget.
        half_life: Measurements after which one counts half in the window.
        split: `split(batch, pieces)` returns a list of smaller batches, where batches cannot be cut along the first
            dimension of all their tensors.
        units: Tells how many units the loss of a piece is a mean over (tokens, say); None: its examples. Noise is told
            per example all the same. In several processes it takes as many in each.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        McCandlish et al. 2018, arXiv 1812.06162, section 2.2, eq. 2.8; interval of the ratio: Fieller 1954.
    """

    default_name: ClassVar[str] = "hessian_noise_scale"
    observables: ClassVar[tuple[str, ...]] = ("noise_trace_hessian", "grad_hessian_grad", "noise_scale_hessian")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        half_life: float = HALF_LIFE,
        split: Split | None = None,
        units: Units | None = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        for argument, value in (("units", units), ("split", split)):
            function(self, argument, value, "a function of a batch")
        self.half_life = half_life
        self.split = split
        self.units = units
        self._window = ExponentialWindow(half_life)
        super().__init__(schedule, method=method, name=name)

    def reset(self) -> None:
        """Forget the window of an earlier run."""
        super().reset()
        self._window.clear()
        self._jumps, self._begun = Jumps(), False
        self._small = SmallBatches()
        self._units = PieceUnits(self.units)

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`."""
        if view.full_batch:
            return self.nothing(Status.UNDETERMINED, WHOLE)
        pieces = self._pieces(view)
        counts = [count(piece) or 0 for piece in pieces]
        units = self._units.of(pieces, counts)
        *sizes, examples = view.total(torch.tensor([*units, float(sum(counts))], dtype=torch.float64)).tolist()
        if min(sizes) <= 0 or examples < PIECES:
            raise Refusal("split(batch, pieces) returned a piece whose examples cannot be counted.")
        share = examples / sum(sizes)  # of a unit: its covariance is that of an example over this
        # other random numbers at each step, in each piece and in each process
        first = 1 + (view.step * view.processes + view.process) * PIECES
        objectives = []
        for index, piece in enumerate(pieces):
            parts = [piece] if self._parts == 1 else split(piece, min(self._parts, count(piece) or 1))
            draw = (first + index) * self._parts
            objectives.append(objective_in(loss, parts, held=self._held, draw=draw))
        while True:
            operators: list[Operator] = []
            try:
                operators += map(self.operator_on, objectives)
                if len({operator.method for operator in operators}) > 1:
                    continue  # a method was given up while the pieces were looked at
                population = view.dataset_size / share if view.dataset_size else None
                found = weighted_parts(operators, sizes, population=population)
                found = replace(found, trace=found.trace * share)
                return self._measurements(found, f"{self.method_of(operators[0])}_in_thirds")
            except Unmeasurable as error:
                if not self._choice.doubt(str(error)):
                    raise
            finally:
                for operator in operators:
                    operator.release()

    def _pieces(self, view: TrainingView) -> list[Any]:
        """Cut the batch of this process into three.

        Raises:
            Refusal: It cannot be cut, or is too small several times in a row.
            Skip: It is too small.
        """  # noqa: DOC502 (Skip is raised by SmallBatches)
        batch = self.batch_of(view)
        self._small.look(view.model, count(batch), PIECES, f"cut into {PIECES} pieces", str(PIECES))
        if self.split is None:
            try:
                return split(batch, PIECES)
            except Refusal as refusal:
                raise Refusal(refusal.reason, REMEDY) from refusal
        pieces = list(self.split(batch, PIECES))
        if len(pieces) != PIECES:
            raise Refusal(f"split(batch, {PIECES}) returned {len(pieces)} pieces, expected {PIECES}.", REMEDY)
        return pieces

    def _measurements(self, found: WeightedParts, method: str) -> list[Measurement]:
        window = self._window
        if not found.finite:
            window.left_out += 1
            return self.nothing(Status.NON_FINITE, "a gradient or a Hessian-vector product is NaN or infinite")
        if not found.error <= USELESS:
            window.left_out += 1
            reason = f"products by {method.replace('_', ' ')} are off by about {found.error:.0%} of the Hessian"
            return self.nothing(Status.UNDETERMINED, reason)
        if self._jumps.judge(found.trace, found.square, window.moments(), window.count):
            window.clear()
            self._jumps, self._begun = Jumps(), True
        window.append(found.trace, found.square)
        moments = window.moments()
        # errors of one measurement, not of the mean; the scatter of two is no error bar
        errors = [math.sqrt(v) if window.count > 2 else None for v in (moments.var_a, moments.var_b)]
        return [
            Measurement("noise_trace_hessian", found.trace, stderr=errors[0], method=method),
            Measurement("grad_hessian_grad", found.square, stderr=errors[1], method=method),
            self._scale(moments, f"{method}_window_of_{moments.count:.0f}"),
        ]

    def _scale(self, moments: Moments, method: str) -> Measurement:
        ratio = ratio_now(moments, RESOLVED)
        # a ratio of two negative numbers is positive, and no batch size
        if ratio.determined and moments.mean_b > 0.0 and self._window.count >= FEWEST and not self._jumps.suspected:
            return Measurement("noise_scale_hessian", ratio.value, stderr=ratio.stderr, method=method)
        reason = with_left_out(self._trouble(moments, ratio), self._window)
        return Measurement("noise_scale_hessian", None, status=Status.UNDETERMINED, reason=reason, method=method)

    def _trouble(self, moments: Moments, ratio: Ratio) -> str:
        """Say why the ratio is not determined, and what is known of it all the same."""
        count = self._window.count
        if moments.mean_a == moments.mean_b == 0.0:
            return "gradients or curvature are zero"
        if self._jumps.suspected:
            return SUSPECTED
        if count < FEWEST:
            return too_few(count, "since the noise has jumped") if self._begun else too_few(count)
        if not ratio.bounded:
            bound = f": B_noise is at least {ratio.at_least:.3g}, or negative" if ratio.at_least > 0.0 else ""
            return f"G'HG is not resolved from zero over {count} measurements{bound}"
        if moments.mean_b < 0.0:
            return "G'HG is negative beyond its error: along the gradient the loss curves down, at any batch size"
        if ratio.upper <= 0.0:
            return "tr(H Sigma) is negative beyond its error: noise lies where the loss curves down, and lowers it"
        return too_loose(moments, ratio, RESOLVED, numerator="tr(H Sigma)", name="B_noise")
