"""Is the loss a function of weights, batch and random numbers? Two evaluations tell.

A loss function that the user gives is taken at its word that it has no state outside the model. A counter in a closure,
an iterator, a generator of random numbers of its own, or a criterion with a moving average breaks that: measuring would
then change the training, and what is measured would not be the Hessian or the gradient of one function.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.distributed import Peers
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.isolation import PureLoss, Refusal, Source
from learnmech.probes.isolation.counting import count
from learnmech.probes.self_test import Verdict

TOLERANCE = 1e-5
"""Relative difference that counts as rounding: sums in another order differ by 1e-6 in float32, and a factor
that grew by 0.001 with each call changed the loss by 6e-5."""

REMEDY = "Keep that state in the model or its attributes, or leave it alone while learnmech.probes.is_probing()."


class Repeatability:
    """Evaluates the loss twice and compares.

    While the verdict is pending, another batch must tell: the loss was not finite, or it raised.

    Args:
        peers: The processes that all make the test, each on its own batch, with one verdict; None: this one alone.

    Attributes:
        verdict: How the test stands.
        reason: Why it failed, as a sentence.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self.waits = False
        self.error = math.nan
        self.verdict = Verdict.PENDING
        self.reason = ""
        self._peers = peers

    def arm(self, source: Source, batch: Any) -> None:
        """Make the test.

        Raises:
            Refusal: The two evaluations differ, in some process, or the model cannot be isolated.
        """  # noqa: DOC502 (raised by `_same`)

        def work(loss: PureLoss) -> bool:
            with torch.no_grad():
                first, second = float(loss(batch)), float(loss(batch))
            unknown = 0.0 if count(batch) == 0 else float(not (math.isfinite(first) and math.isfinite(second)))
            if self._peers is not None:
                unknown = float(self._peers.counted(lambda: _same(first, second), values=lambda _: [unknown])[1])
            else:
                _same(first, second)
            return unknown == 0.0

        if isolated_together(source, work, batch, peers=self._peers):
            self.verdict = Verdict.PASSED

    def check(self, parameters: Mapping[str, Tensor], factor: float = 1.0) -> Verdict:  # noqa: ARG002 (as ReplayTest)
        """Return the verdict: the test is made in one go."""
        return self.verdict

    def disarm(self) -> None:
        """Do nothing: the test is made in one go."""

    def fail(self, reason: str) -> None:
        """Decide against the loss for a reason found elsewhere."""
        self.verdict, self.reason = Verdict.FAILED, reason


def _same(first: float, second: float) -> None:
    finite = math.isfinite(first) and math.isfinite(second)
    if finite and not math.isclose(first, second, rel_tol=TOLERANCE):
        raise Refusal(
            f"Two evaluations of the loss at the same weights, batch and random numbers gave {first:.6g} and "
            f"{second:.6g}: it has state that a measurement cannot put back.",
            REMEDY,
        )
