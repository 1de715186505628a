"""May probes evaluate the loss? A test decides, once; those that evaluate it wait for its verdict, or go."""

import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from torch import Tensor

from learnmech.probes.agenda import replays
from learnmech.probes.deadline import within
from learnmech.probes.distributed import Peers
from learnmech.probes.health import LIMIT
from learnmech.probes.isolation import Refusal, Skip, Source
from learnmech.probes.isolation.silence import REMEDY
from learnmech.probes.probe import Moment, Probe
from learnmech.probes.repeatability import Repeatability
from learnmech.probes.runner import TRACE, Runner
from learnmech.probes.self_test import Verdict
from learnmech.probes.writer import Writer

logger = logging.getLogger("learnmech.probes")

SELF_TEST = "self-test"


class ReplayTest(Protocol):
    """Decides whether the loss, as it can be evaluated again, is that of the training.

    Attributes:
        waits: Nothing may evaluate it before the test has passed.
        verdict: How the test stands.
        error: Relative error that it found; NaN if it finds none.
        reason: Why it failed, as a sentence.
    """

    @property
    def waits(self) -> bool: ...  # noqa: D102 (told of above)
    @property
    def verdict(self) -> Verdict: ...  # noqa: D102 (told of above)
    @property
    def error(self) -> float: ...  # noqa: D102 (told of above)
    @property
    def reason(self) -> str: ...  # noqa: D102 (told of above)

    def arm(self, source: Source, batch: Any) -> None:
        """Begin the test, or make it, on the step about to be made or just made."""
        ...

    def check(self, parameters: Mapping[str, Tensor], factor: float = 1.0) -> Verdict:
        """Finish it with the gradients that training's backward pass left."""
        ...

    def disarm(self) -> None:
        """Begin again: there was no backward pass."""
        ...

    def fail(self, reason: str) -> None:
        """Decide against the replay for a reason found elsewhere."""
        ...


class Replays:
    """Lets probes evaluate the loss of a run, or refuses it to them.

    Args:
        test: The test of a replayed training step; None where the user gave the loss: it must be repeatable then.
        runner: Runs the probes.
        writer: Where the verdict goes.
        strict: True to raise what is otherwise recorded; for tests.
    """

    def __init__(self, test: ReplayTest | None, runner: Runner, writer: Writer, *, strict: bool) -> None:
        self._test: ReplayTest = test or Repeatability()
        self._runner = runner
        self._writer = writer
        self._strict = strict
        self._together: Repeatability | None = None

    def may_run(self, due: Sequence[Probe], step: int, batch: Any, source: Callable[[], Source]) -> bool:
        """Make the test first, if there is one to make; tell whether the due probes may run now."""
        if not any(map(replays, due)):
            return True
        if self._test.verdict is Verdict.PENDING:
            self._arm(self._test, step, batch, source, None)
        if self._test.verdict is Verdict.FAILED:
            self.refuse(step, self._test.reason)
        return not self._test.waits or self._test.verdict in (Verdict.PASSED, Verdict.FAILED)

    def may_run_together(
        self, due: Sequence[Probe], step: int, batch: Any, source: Callable[[], Source], peers: Peers
    ) -> None:
        """Make the test of all processes first, if there is one to make; refuse the due probes if it has failed."""
        self._together = self._together or Repeatability(peers)
        if self._together.verdict is Verdict.PENDING:
            self._arm(self._together, step, batch, source, peers)
        if self._together.verdict is Verdict.FAILED:
            self._refuse(due, step, self._together.reason)

    def ready(self, due: Sequence[Probe]) -> list[Probe]:
        """List the probes that may be prepared, so that they evaluate the loss after the update."""
        if not self._test.waits or self._test.verdict is Verdict.PASSED:
            return list(due)
        return [probe for probe in due if not replays(probe) or self._runner.agenda.together(probe)]

    def awaiting(self, step: int) -> list[Probe]:
        """List the probes that evaluate the loss across updates and wait for the test, which is begun at rest."""
        if not self._test.waits or self._test.verdict is not Verdict.PENDING:
            return []
        return [probe for probe in self._runner.agenda.due(Moment.UPDATE, step) if replays(probe)]

    @property
    def passed(self) -> bool:
        """Whether this process alone may evaluate the loss: the test was asked for, and has passed."""
        return self._test.verdict is Verdict.PASSED

    @property
    def armed(self) -> bool:
        """Whether the test waits for the gradient of the step."""
        return self._test.verdict is Verdict.ARMED

    def after_backward(self, step: int, parameters: Mapping[str, Tensor], factor: float) -> None:
        """Finish the test with the gradient of the very batch that was replayed."""
        test = self._test
        verdict = test.check(parameters, factor)
        if verdict is Verdict.PASSED:
            message = f"The replayed gradient is the real one (relative error {test.error:.1e})."
            self._writer.tell("self_test", step, message, error=test.error)
        elif verdict is Verdict.FAILED:
            self.refuse(step, test.reason)

    def disarm(self) -> None:
        """Forget a replay whose step turned out to have no backward pass."""
        self._test.disarm()

    def refuse(self, step: int, reason: str) -> None:
        """Switch off every probe that would evaluate the loss in this process alone, and cannot do without."""
        for probe in self._runner.probes:
            tell: Callable[[str], None] | None = getattr(probe, "refuse_replays", None)
            if tell is not None:
                tell(reason)
        alone = [probe for probe in self._runner.probes if replays(probe) and not self._runner.agenda.together(probe)]
        self._refuse(alone, step, reason)

    def _refuse(self, probes: Sequence[Probe], step: int, reason: str) -> None:
        if any(self._runner.health.well(probe.name) for probe in probes):
            data = {"error": self._test.error} if math.isfinite(self._test.error) else {}
            self._writer.tell("self_test", step, reason, "warning", **data)
        self._runner.refuse(probes, step, reason)

    def _arm(self, test: ReplayTest, step: int, batch: Any, source: Callable[[], Source], peers: Peers | None) -> None:
        """Begin a test; what cannot be replayed fails it, and so do repeated failures of one that others wait for."""
        health = self._runner.health
        try:
            limit = within(self._runner.agenda.patience(step))
            with limit, nullcontext() if peers is None else peers.together():
                test.arm(source(), batch)
            health.succeeded(SELF_TEST)
        except Skip:
            return
        except Refusal as refusal:
            test.fail(str(refusal))
        except Exception as error:
            if not test.waits:
                return  # each probe meets it next, and records it
            if self._strict:
                raise
            reason = f"{type(error).__name__}: {error}"[:500]
            trace = traceback.format_exc()[-TRACE:]
            self._writer.tell("probe_failed", step, f"self-test: {reason}", "warning", traceback=trace)
            if health.failed(SELF_TEST, reason):
                test.fail(f"The training step could not be replayed {LIMIT} times in a row: {reason}. {REMEDY}")
