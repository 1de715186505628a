"""The self-test of the replay: is its gradient the gradient that the training computes on the same batch?

A replay that forgets a term, feeds on state it cannot see, or draws other random numbers has another gradient than the
real step. The comparison needs one gradient, once per fit, and decides about every probe that evaluates the loss.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.isolation import PureLoss, Source, isolated
from learnmech.probes.isolation.silence import REMEDY

PRECISE = 1e-4
"""Largest relative error in float32: attention replayed by another kernel differs by 3e-7, a lost term by 1e-3."""
COARSE = 1e-2
"""The same where half precision or TF32 rounds the products."""
ATTEMPTS = 10
"""Steps without a usable gradient (zero, overflowed) after which the test counts as failed."""


class Verdict(enum.Enum):
    """How the self-test stands."""

    PENDING = "not made yet"
    ARMED = "waiting for the gradient of the step"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(slots=True)
class SelfTest:
    """Compares a replayed gradient with the real one of the same micro-batch.

    Attributes:
        precise: False where half precision or TF32 is in the training step.
        verdict: How the test stands.
        error: Relative error |replayed - real| / |real|.
        reason: Why it failed, as a sentence.
        waits: Nothing may be replayed before it has passed.
    """

    precise: bool = True
    verdict: Verdict = Verdict.PENDING
    error: float = math.nan
    reason: str = ""
    waits: bool = True
    _replayed: dict[str, Tensor] | None = None
    _attempts: int = 0

    @property
    def tolerance(self) -> float:
        """Largest relative error that passes."""
        return PRECISE if self.precise else COARSE

    def arm(self, source: Source, batch: Any) -> None:
        """Replay the step about to be made and keep its gradient.

        Raises:
            Refusal: The step cannot be replayed.
            Skip: It has no loss this time.
        """  # noqa: DOC502 (raised by `isolated`)
        self._replayed = isolated(source, lambda loss: gradient(loss, batch), batch)
        self.verdict = Verdict.ARMED

    def disarm(self) -> None:
        """Forget the replay: the step had no gradient after all."""
        if self.verdict is Verdict.ARMED:
            self.verdict = Verdict.PENDING
        self._replayed = None

    def fail(self, reason: str) -> None:
        """Decide against the replay for a reason found elsewhere."""
        self.verdict, self.reason, self._replayed = Verdict.FAILED, reason, None

    def check(self, parameters: Mapping[str, Tensor], factor: float = 1.0) -> Verdict:
        """Compare with the gradients that the backward pass of the same micro-batch left.

        Args:
            parameters: The trainable parameters with their `.grad`.
            factor: What the training multiplied the loss by: loss scale over accumulated micro-batches.

        Returns:
            The verdict; `PENDING` if the gradient was of no use and the test is to be made at another step.
        """
        if self.verdict is not Verdict.ARMED or self._replayed is None:
            return self.verdict
        replayed, self._replayed = self._replayed, None
        difference, size = _distance(replayed, parameters, factor)
        if not math.isfinite(size) or not math.isfinite(difference) or size == 0.0:
            self._attempts += 1
            self.verdict = Verdict.PENDING
            if self._attempts >= ATTEMPTS:
                self.fail(
                    f"No usable gradient at {ATTEMPTS} steps to compare the replay with (norm {size:g}). {REMEDY}"
                )
            return self.verdict
        self.error = difference / size
        if self.error <= self.tolerance:
            self.verdict = Verdict.PASSED
        else:
            self.fail(
                f"The replayed gradient differs from the real one by {self.error:.1e} of its norm, allowed is "
                f"{self.tolerance:.0e}: the step depends on something that a replay does not see. {REMEDY}"
            )
        return self.verdict


def gradient(loss: PureLoss, batch: Any, draw: int = 0) -> dict[str, Tensor]:
    """Return the gradient of the loss of a batch by parameter name; a parameter that does not enter is left out."""
    value = loss(batch, draw=draw)
    found = torch.autograd.grad(value, list(loss.leaves.values()), allow_unused=True)
    present: list[Tensor | None] = list(found)
    return {name: g.detach() for name, g in zip(loss.leaves, present, strict=True) if g is not None}


def _distance(replayed: Mapping[str, Tensor], real: Mapping[str, Tensor], factor: float) -> tuple[float, float]:
    """Return |factor * replayed - real| and |real|; a gradient that is missing on one side counts as zero there."""
    differences, sizes = [0.0], [0.0]
    for name, parameter in real.items():
        mine, theirs = replayed.get(name), parameter.grad
        if mine is None and theirs is None:
            continue
        zero = torch.zeros_like(parameter, dtype=torch.float64)
        left = zero if mine is None else _dense(mine) * factor
        right = zero if theirs is None else _dense(theirs.detach())
        differences.append(float(torch.linalg.vector_norm(left - right)))
        sizes.append(float(torch.linalg.vector_norm(right)))
    return math.hypot(*differences), math.hypot(*sizes)


def _dense(tensor: Tensor) -> Tensor:
    return (tensor if tensor.layout is torch.strided else tensor.to_dense()).double()
