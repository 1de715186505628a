"""The engine: what happens at each moment of a training step.

The recorder and the Lightning monitor are shells around it. A shell tells what happens in the training, in this order:

    at_rest(t)        the weights are w_t
    before_update(t)  the gradient at w_t is complete
    after_update(t)   the weights are w_(t+1)
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.budget import Governor
from learnmech.probes.distributed import Peers
from learnmech.probes.distributed.fsdp import is_shard, reshard
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.distributed.meeting import all_present
from learnmech.probes.facts import Facts, Update
from learnmech.probes.guard import Guard
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.isolation import PureLoss, Source
from learnmech.probes.isolation.source import optimized
from learnmech.probes.probe import Moment, Probe, T, TrainingView, measured_tensors
from learnmech.probes.readback import Readback
from learnmech.probes.repeatability import unrepeatable
from learnmech.probes.runner import Runner, checked, replays
from learnmech.probes.self_test import SelfTest, Verdict
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement

logger = logging.getLogger("learnmech.probes")

OVERHEAD_INTERVAL = 1.0
"""Seconds between records of `overhead`."""

AT_STEP = "at_step"
"""Method of a gradient that was first seen at `optimizer.step()` or after it, where it may be clipped already."""


class Engine:
    """Measures one attempt of one run.

    Every public method is safe to call from a training loop: whatever goes wrong inside is recorded, not raised, unless
    `strict`; KeyboardInterrupt and SystemExit pass.

    Args:
        model: The model.
        optimizers: Its optimizers.
        probes: Probes, with unique names.
        writer: Where measurements and events go.
        budget: Share of the run's time for probes without a schedule.
        declared_full_batch: The user's word on `full_batch`.
        dataset_size: Number of training examples, where known.
        start_step: First step of this attempt.
        self_test: Decides whether probes may replay the training step; None where the user gave the loss.
        precise: False where half precision or TF32 is in the training step.
        strict: True to raise what is otherwise recorded; for tests.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        probes: Sequence[Probe],
        writer: Writer,
        *,
        budget: float,
        declared_full_batch: bool | None = None,
        dataset_size: int | None = None,
        start_step: int = 0,
        self_test: SelfTest | None = None,
        precise: bool = True,
        strict: bool = False,
    ) -> None:
        self.model = model
        self.optimizers = list(optimizers)
        self.writer = writer
        self.self_test = self_test
        parameters = self.parameters()
        device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
        self.runner = Runner(probes, writer, Governor(budget), start_step=start_step, device=device, strict=strict)
        self._hyperparameters = Hyperparameters(
            self.optimizers, {id(parameters[name]): name for name in measured_tensors(parameters)}
        )
        self._facts = Facts(declared_full_batch, dataset_size)
        self._readback = Readback()
        self._prepared: list[Probe] = []
        self._prepared_at = -1
        self._precise = precise
        self._repeatable = False
        self._guard = Guard(strict=strict)
        self._told = time.perf_counter()
        self._told_at = -1
        self.step = start_step

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that are trained by name."""
        return dict(optimized(self.model, self.optimizers))

    def at_rest(
        self, step: int, batch: Any, examples: int | None, source: Callable[[], Source], *, used: bool = False
    ) -> None:
        """Run the probes due at the weights w_t.

        Args:
            step: Updates done, t.
            batch: A batch: the one about to be used, or the one just used.
            examples: Examples in it.
            source: Makes the source of the loss; called only if it is needed.
            used: True if it is the batch just used.
        """
        due = self.runner.due(Moment.AT_REST, step) if self._guard.open or self.runner.peers is not None else []
        shared, due = [p for p in due if self.runner.together(p)], [p for p in due if not self.runner.together(p)]
        if shared:
            self._measure_together(shared, step, batch, examples, source, used)
        if not self._guard.open:
            return
        with self._guard:
            self.step = step
            if self._may_replay([*due, *self._awaiting_test(step)], step, batch, source) and due:
                view = self._view(step, batch, examples, source)
                view.used = used
                for probe in due:
                    if self.runner.health.well(probe.name):
                        self.runner.measure(probe, view)
            self._settle(step)

    def _measure_together(
        self,
        due: Sequence[Probe],
        step: int,
        batch: Any,
        examples: int | None,
        source: Callable[[], Source],
        used: bool,
    ) -> None:
        """Run the probes that all processes measure together; one that has stopped says so instead of staying away."""
        with self._guard:
            if not self._guard.open:
                for probe in due:
                    self.runner.absent(probe, step)
                return
            reshard(self.model)
            view = self._view(step, batch, examples, source, peers=self.runner.peers)
            view.used = used
            for probe in due:
                if self.runner.health.well(probe.name):
                    self.runner.measure(probe, view)

    def join(self, peers: Peers | None) -> bool:
        """Measure together with other processes, all of which call this before the first step; tell whether they came.

        Args:
            peers: The processes, this one among them; None: there are no others.
        """
        if peers is None or not any(getattr(probe, "collective", False) for probe in self.runner.probes):
            return False
        if not all_present(peers, _signature(self.runner.probes)):
            logger.warning(
                "learnmech measures curvature in one process alone: the others have no monitor, or other probes"
            )
            return False
        self.runner.peers = peers
        return True

    @property
    def joined(self) -> bool:
        """Whether other processes count on this one."""
        return self.runner.peers is not None

    def refuse_alone(self, step: int, reason: str) -> None:
        """Switch off every probe that would evaluate the loss in this process alone."""
        alone = [probe for probe in self.runner.probes if replays(probe) and not self.runner.together(probe)]
        self.runner.refuse(alone, step, reason)

    def _may_replay(self, due: Sequence[Probe], step: int, batch: Any, source: Callable[[], Source]) -> bool:
        """Make the self-test first, if there is one to make; tell whether the due probes may run now."""
        test = self.self_test
        if not any(replays(probe) for probe in due):
            return True
        if test is None:
            reason = "" if self._repeatable else unrepeatable(source, batch)
            self._repeatable = reason is not None
            if reason:
                self.refuse_replays(step, reason)
        if test is None or test.verdict is Verdict.PASSED:
            return True
        verdict = self.runner.arm(test, step, source, batch) if test.verdict is Verdict.PENDING else test.verdict
        if verdict is Verdict.FAILED:
            self.refuse_replays(step, test.reason)
            return True
        return False

    def _awaiting_test(self, step: int) -> list[Probe]:
        """List the probes that replay across updates and wait for the self-test, which is made at rest."""
        if self.self_test is None or self.self_test.verdict is not Verdict.PENDING:
            return []
        return [probe for probe in self.runner.due(Moment.UPDATE, step) if replays(probe)]

    def after_backward(self, step: int, factor: Callable[[], float]) -> None:
        """Finish the self-test, if one is under way, with the gradient of the very batch that was replayed.

        Args:
            step: Updates done.
            factor: Tells what the training multiplied the loss by; called only if it is needed.
        """
        test = self.self_test
        if test is None or test.verdict is not Verdict.ARMED or not self._guard.open:
            return
        with self._guard:
            verdict = test.check(self.parameters(), factor())
            if verdict is Verdict.PASSED:
                message = f"The replayed gradient is the real one (relative error {test.error:.1e})."
                self.writer.tell("self_test", step, message, error=test.error, tolerance=test.tolerance)
            elif verdict is Verdict.FAILED:
                self.refuse_replays(step, test.reason)

    def disarm(self) -> None:
        """Forget a replay whose step turned out to have no backward pass."""
        if self.self_test is not None:
            self.self_test.disarm()

    def refuse_replays(self, step: int, reason: str) -> None:
        """Switch off every probe that evaluates the loss."""
        affected = [probe for probe in self.runner.probes if replays(probe) and not self.runner.together(probe)]
        if any(self.runner.health.well(probe.name) for probe in affected):
            error = math.nan if self.self_test is None else self.self_test.error
            data = {"error": error} if math.isfinite(error) else {}
            self.writer.tell("self_test", step, reason, "warning", **data)
        self.runner.refuse(affected, step, reason)

    def before_update(
        self, step: int, gradients: bool = True, method: str = "", scale: Callable[[], float | Tensor] = lambda: 1.0
    ) -> None:
        """Read the hyperparameters of the update about to happen, and prepare the probes that will measure it.

        Args:
            step: Updates done, t.
            gradients: True if the parameters hold the complete gradient at w_t.
            method: How the gradient was seen, if not before clipping.
            scale: Tells what the gradient is still multiplied by (a loss scale not yet taken out).
        """
        if not self._guard.open:
            return
        with self._guard:
            self.writer.add(step, self._hyperparameters.changed())
            again = step == self._prepared_at  # another micro-batch of the same update
            due = self._prepared if again else self.runner.due(Moment.UPDATE, step)
            if self.self_test is not None and self.self_test.verdict is not Verdict.PASSED:
                due = [probe for probe in due if not replays(probe)]
            self._prepared, self._prepared_at = [], step
            if due:
                view = self._view(step, None, None, None, gradients, method)
                view.gradient_scale = scale()
                self._prepared = [probe for probe in due if self.runner.prepare(probe, view, again=again)]

    def after_update(
        self, step: int, update: Update, source: Callable[[], Source] | None = None, gradients: bool = False
    ) -> None:
        """Measure the update w_t -> w_(t+1) that has just happened, and record it at step t.

        Args:
            step: Updates done before it, t.
            update: What is known of it.
            source: Makes the source of the loss; called only if it is needed.
            gradients: True if the parameters still hold its gradient, and it was not seen before.
        """
        if not self._guard.open:
            return
        with self._guard:
            self.writer.add(step, self._facts.changed(update))
            if self._prepared:
                self._measure_update(step, update, source, gradients)
            self._prepared = []
            self.writer.count(update.examples)
            self.step = step + 1
            self._settle(step)

    def _measure_update(self, step: int, update: Update, source: Callable[[], Source] | None, gradients: bool) -> None:
        view = self._view(step, update.batch, update.examples, source, gradients, AT_STEP)
        view.loss, view.used, view.micro_batches = update.loss, True, update.accumulation
        ready = self._prepared
        if source is not None and not self._may_replay(ready, step, update.batch, source):
            ready = [probe for probe in ready if not replays(probe)]
        for probe in ready:
            if self.runner.health.well(probe.name):
                self.runner.measure(probe, view)

    def _view(
        self,
        step: int,
        batch: Any,
        examples: int | None,
        source: Callable[[], Source] | None,
        gradients: bool = False,
        method: str = "",
        peers: Peers | None = None,
    ) -> TrainingView:
        seen = self.writer.seen

        def isolate(work: Callable[[PureLoss], T], *, twice: bool = True) -> T:
            if source is None:
                raise RuntimeError("the loss cannot be evaluated while an update is prepared, only in measure(view)")
            return isolated_together(source(), work, batch, peers=peers, twice=twice)

        def defer(values: Sequence[Tensor], build: Callable[[list[float]], list[Measurement]]) -> None:
            self._readback.submit(values, lambda numbers: self.writer.add(step, map_checked(build(numbers)), seen))

        parameters = self.parameters()
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None} if gradients else {}
        if any(map(is_shard, found.values())):
            found = {}  # arithmetic on them may wait for the other processes, which do not do it
        return TrainingView(
            step=step,
            model=self.model,
            optimizers=self.optimizers,
            parameters=parameters,
            isolate=isolate,
            defer=defer,
            batch=batch,
            examples=examples,
            gradients=found or None,
            gradient_method=method,
            hyperparameters=self._hyperparameters.by_scope,
            full_batch=self._facts.full_batch,
            dataset_size=self._facts.dataset_size,
            precise=self._precise,
        )

    def _settle(self, step: int) -> None:
        """Take in what devices have finished, record the overhead now and then, and hand everything over."""
        self._readback.poll()
        self.runner.poll()
        self.runner.governor.bookkeeping = max(self._guard.seconds - self.runner.host, 0.0)
        now = time.perf_counter()
        if now - self._told >= OVERHEAD_INTERVAL and step != self._told_at:
            self._told, self._told_at = now, step
            self.writer.add(step, self._costs())
        self.writer.flush()

    def _costs(self) -> list[Measurement]:
        elapsed = self.runner.elapsed
        governor = self.runner.governor
        found = [Measurement("overhead", (governor.bookkeeping + governor.total) / elapsed)] if elapsed > 0 else []
        return found + self.runner.costs_of_updates()

    def finish(self, kind: str, message: str, timeout: float) -> None:
        """Hand over everything and wait for its delivery for a bounded time.

        Args:
            kind: `run_finished` or `run_failed`.
            message: What to say of it.
            timeout: Seconds to wait.
        """
        with self._guard:
            self._readback.drain()
            self.runner.poll()
            if self.step != self._told_at:
                self.writer.add(self.step, self._costs())
            self.writer.tell(kind, self.step, message, "info" if kind == "run_finished" else "error")
        with self._guard:
            self.writer.close(timeout)


def _signature(probes: Sequence[Probe]) -> str:
    """Say what these probes do together with other processes: all must do the same at the same steps."""
    shared = [probe for probe in probes if getattr(probe, "collective", False)]
    plain = (int, float, str, bool, type(None))
    settings = [
        sorted((k, v) for k, v in vars(probe).items() if isinstance(v, plain) and k[0] != "_") for probe in shared
    ]
    return repr([(type(probe).__name__, repr(probe.schedule), s) for probe, s in zip(shared, settings, strict=True)])


def map_checked(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Check every measurement; see `checked`."""
    return [checked(measurement) for measurement in measurements]
