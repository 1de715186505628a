"""Gradient noise between exact measurements, from norm layers alone: a proxy, with the error that was found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.distributed.fsdp import local
from learnmech.probes.estimators.noise import NoiseParts
from learnmech.probes.estimators.ratio import Moments
from learnmech.probes.estimators.squares import square_sum
from learnmech.probes.isolation import Refusal
from learnmech.probes.noise.examples import LiveExamples
from learnmech.probes.noise.per_example import METHOD, NormFactor, norm_parameters
from learnmech.probes.noise.tally import Tally
from learnmech.probes.probe import TrainingView
from learnmech.wire import Measurement

NORMS = "norm layers"
"""Scope of the norms' parameters in exact measurements; it is not recorded."""


def only_norms(view: TrainingView) -> Mapping[str, Tensor]:
    """Return the parameters of norm layers.

    Raises:
        Refusal: There are none.
    """
    found = norm_parameters(view.model, view.parameters)
    if not found:
        raise Refusal("The model has no LayerNorm, RMSNorm or GroupNorm with parameters.", 'Use source="examples".')
    return found


class LiveNorms(LiveExamples):
    """Watches the norm layers of one update, and takes |g|^2 of all parameters.

    Args:
        view: The training, before the backward passes of the update.
        sizes: Examples in each micro-batch that will come.
        uses: Measurements before in which nothing was wrong.
    """

    def __init__(self, view: TrainingView, *, sizes: Sequence[int], uses: int) -> None:
        norms = only_norms(view)
        super().__init__(replace(view, parameters=norms), sizes=sizes, members={"": list(norms)}, uses=uses)
        self._whole = torch.zeros((), dtype=torch.float64)
        self.grad_sq_norm = math.nan
        """|g|^2 of all parameters, before clipping and without a loss scale, once it has been read."""

    def look(self, view: TrainingView) -> None:
        """Take the squared norms of the complete gradient while it is there; at a later call, of the one of then."""
        super().look(replace(view, parameters=only_norms(view)))
        if self._looked is None:
            return
        gradients = {name: p.grad for name, p in view.parameters.items() if p.grad is not None}
        sparse = next((name for name, g in gradients.items() if g.layout is not torch.strided), None)
        if sparse is not None:  # rows may be in it twice, and to add them up would wait
            self._hooks.trouble = f"the gradient of {sparse} is sparse"
            return
        device = self._membership.device
        squares = [square_sum(local(g)).to(device, non_blocking=True) for g in gradients.values()]
        self._whole = torch.stack([torch.zeros((), dtype=torch.float64, device=device), *squares]).sum()
        self._whole = self._whole / view.gradient_scale**2

    def tally(self, view: TrainingView) -> Tally:
        """Return the row of this update in this process."""
        return super().tally(replace(view, parameters=only_norms(view)))

    @property
    def doubts(self) -> Sequence[Tensor]:
        """Numbers to be read back with the row, for `judge`; the last is |g|^2."""
        return [*super().doubts, self._whole.reshape(1)]

    def parts(
        self, tally: Tally, numbers: Sequence[float], *, precise: bool, population: int | None
    ) -> Mapping[str, NoiseParts]:
        """Return the estimates of the norms' parameters alone."""
        found = super().parts(tally, numbers[:-1], precise=precise, population=population)
        self.grad_sq_norm = numbers[-1] * self.factor**2
        return found


class NormProxy:
    """tr Sigma and |G|^2 of all parameters, where the norms alone were looked at.

    tr Sigma = f tr Sigma_norms with a factor f fitted to exact measurements (see `NormFactor`). |g|^2 of all parameters
    is at hand in every update, and E |g|^2 = |G|^2 + tr Sigma / B, hence

        |G|^2 = |g|^2 - tr Sigma / B

    which has B_simple / B times the relative error of tr Sigma. The errors stated hold that of f, and the scatter of
    exact measurements from one to the next. A noise scale is not made from these: the error of f is shared by all
    estimates up to the next exact one, and would not average out in a window.
    """

    def __init__(self) -> None:
        self._factor = NormFactor()

    def reset(self) -> None:
        """Forget what was fitted."""
        self._factor.clear()

    def fit(self, step: int, exact: NoiseParts, norms: NoiseParts) -> None:
        """Learn from an exact measurement, and the norms' part in it."""
        self._factor.append(step, exact.noise_trace, norms.noise_trace)

    def measurements(
        self, step: int, norms: NoiseParts, grad_sq_norm: float, moments: Moments, population: int | None
    ) -> list[Measurement]:
        """Return what to record of an update of which only the norms were looked at.

        Args:
            step: Which one.
            norms: Estimates of the norms' parameters.
            grad_sq_norm: |g|^2 of all parameters.
            moments: Of the exact measurements so far, pairs (tr Sigma, |G|^2).
            population: Examples of the data set, where batches are drawn from it without replacement.
        """
        names = ("noise_trace", "grad_sq_norm")
        if norms.status is not Status.OK:
            value = math.nan if norms.status is Status.NON_FINITE else None
            return [Measurement(n, value, status=norms.status, reason=norms.reason, method=METHOD) for n in names]
        trace = self._factor.estimate(step, norms.noise_trace)
        if trace.value is None or trace.stderr is None:
            return [Measurement(n, None, status=Status.UNDETERMINED, reason=trace.reason, method=METHOD) for n in names]
        share = 1.0 / norms.batch_size
        if population and population >= norms.batch_size:
            share -= 1.0 / population
        values = (trace.value, grad_sq_norm - trace.value * share)
        errors = (
            math.sqrt(trace.stderr**2 + moments.var_a),
            math.sqrt((trace.stderr * share) ** 2 + moments.var_b),
        )
        return [
            Measurement(n, value, stderr=error, method=METHOD)
            for n, value, error in zip(names, values, errors, strict=True)
        ]
