"""The engine: what happens at each moment of a training step.

The recorder and the Lightning monitor are shells around it. A shell tells what happens in the training, in this order:

    at_rest(t)        the weights are w_t
    before_update(t)  the gradient at w_t is complete
    after_update(t)   the weights are w_(t+1)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.agenda import replays
from learnmech.probes.budget import Governor
from learnmech.probes.distributed import Peers, is_sharded
from learnmech.probes.distributed.fsdp import reshard
from learnmech.probes.facts import Facts, Update, detached
from learnmech.probes.guard import Guard
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.isolation import Source
from learnmech.probes.isolation.source import optimized
from learnmech.probes.probe import Moment, Probe, TrainingView
from learnmech.probes.readback import Readback
from learnmech.probes.replays import Replays, ReplayTest
from learnmech.probes.runner import Runner
from learnmech.probes.schedule import alike
from learnmech.probes.settling import Settling
from learnmech.probes.together import Together
from learnmech.probes.views import Views
from learnmech.probes.watching import Watching, expect, watches
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement

UNAGREED = (
    "Processes that measure together must not be asked for a step in one of them alone: give it no schedule, or every, "
    "at or log_spaced, such as every(1000)."
)

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
        foresees: True if the batch at rest is the one about to be used, False if it is the one just used.
        shares_loss: True if several processes may evaluate the loss together.
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
        foresees: bool,
        shares_loss: bool = True,
        declared_full_batch: bool | None = None,
        dataset_size: int | None = None,
        start_step: int = 0,
        self_test: ReplayTest | None = None,
        precise: bool = True,
        strict: bool = False,
    ) -> None:
        self.model = model
        self.optimizers = list(optimizers)
        self.writer = writer
        parameters = self.parameters()
        device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
        governor = Governor(budget)
        self.runner = Runner(
            probes, writer, governor, start_step=start_step, device=device, foresees=foresees, strict=strict
        )
        self.runner.agenda.shares_loss, self.runner.agenda.sharded = shares_loss, is_sharded(model)
        self.step = start_step
        self._foresees = foresees
        self._guard = Guard(strict=strict)
        self._replays = Replays(self_test, self.runner, writer, strict=strict)
        self._together = Together(self.runner, self._replays, self._guard)
        self._watching = Watching(self.runner, self._guard)
        self._hyperparameters = Hyperparameters(self.optimizers, {id(p): name for name, p in parameters.items()})
        self._facts = Facts(declared_full_batch, dataset_size)
        self._readback = Readback()
        self._view = Views(
            model, self.optimizers, self._hyperparameters, self._facts, writer, self._readback, precise=precise
        )
        self._prepared: list[Probe] = []
        self._prepared_at = -1
        self._settling = Settling(self.runner, writer, self._readback, self._guard, start_step)
        writer.add(start_step, [Measurement("budget", budget)])

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that are trained by name."""
        return dict(optimized(self.model, self.optimizers))

    def join(self, peers: Peers | None) -> bool:
        """Measure together with other processes, all of which call this before the first step; tell whether they came.

        Args:
            peers: The processes, this one among them; None: there are no others.
        """
        joined = self._together.join(peers)
        if joined:
            agenda = self.runner.agenda
            unsure = [p for p in self.runner.probes if agenda.together(p) and not alike(p.schedule)]
            self.runner.refuse(unsure, self.step, UNAGREED)
        return joined

    @property
    def joined(self) -> bool:
        """Whether other processes count on this one."""
        return self.runner.agenda.peers is not None

    def imprecise(self) -> None:
        """Learn that half precision or TF32 is in the training step."""
        self._view.precise = False

    def refuse_replays(self, step: int, reason: str) -> None:
        """Switch off every probe that would evaluate the loss in this process alone."""
        self._replays.refuse(step, reason)

    def refuse_together(self, step: int, reason: str) -> None:
        """Switch off every probe that processes measure together; each of them does so by itself."""
        shared = [probe for probe in self.runner.probes if self.runner.agenda.together(probe)]
        self.runner.refuse(shared, step, reason)

    def at_rest(self, step: int, batch: Any, source: Callable[[], Source]) -> None:
        """Run the probes due at the weights w_t.

        Args:
            step: Updates done, t.
            batch: A batch: the one about to be used, or the one just used.
            source: Makes the source of the loss; called only if it is needed.
        """
        self.step = step
        if self.runner.agenda.idle(step):
            return
        shared, due = self._due(Moment.AT_REST, step)

        def view(peers: Peers | None = None) -> TrainingView:
            found = self._view(step, batch, source, peers=peers)
            found.used = not self._foresees
            return found

        if shared:
            self._together.measure(shared, step, batch, source, view)
        awaiting = self._replays.awaiting(step)
        if not self._guard.open or not (shared or due or awaiting):
            return
        with self._guard:
            if self._replays.may_run([*due, *awaiting], step, batch, source) and due:
                self._measure(due, view())
            self._settling.settle(step)

    def expect(self, micro_batches: int) -> None:
        """Learn of how many micro-batches updates will consist from now on."""
        peers = self.runner.agenda.peers
        with self._guard:
            expect(self.runner.probes, micro_batches, 1 if peers is None else peers.size)

    def before_backward(self, step: int) -> None:
        """Let the probes that will measure the update of a step watch its backward passes, the first of which is next.

        Args:
            step: Updates done, t.
        """
        if self.runner.agenda.idle(step) and not self._watching.probes:
            return

        def view() -> TrainingView:
            found = self._view(step)
            found.examples = self._facts.examples  # as many as the last one, for all that is known
            return found

        self._watching.arm(step, view)

    def after_backward(self, step: int, batch: Any, factor: Callable[[], float] | None = None) -> None:
        """Tell that the backward pass of a micro-batch has ended; finish the self-test, if one is under way.

        Args:
            step: Updates done.
            batch: The micro-batch.
            factor: Tells what the training multiplied the loss by; called only if it is needed. None: nothing was
                replayed.
        """
        self._watching.next_piece(batch)
        if factor is not None and self._replays.armed and self._guard.open:
            with self._guard:
                self._replays.after_backward(step, self.parameters(), factor())

    def disarm(self) -> None:
        """Forget a replay whose step turned out to have no backward pass."""
        self._replays.disarm()

    def before_update(
        self,
        step: int,
        gradients: bool = True,
        method: str = "",
        scale: Callable[[], float | Tensor] = lambda: 1.0,
        loss_scale: Callable[[], float | Tensor | None] = lambda: None,
        *,
        announced: bool = False,
    ) -> None:
        """Read the hyperparameters of the update about to happen, and prepare the probes that will measure it.

        Args:
            step: Updates done, t.
            gradients: True if the parameters hold the complete gradient at w_t.
            method: How the gradient was seen, if not before clipping.
            scale: Tells what the gradient is still multiplied by (a loss scale not yet taken out).
            loss_scale: Tells what the loss was multiplied by, if that is known.
            announced: True if `at_update` will be called, until when hyperparameters may change.
        """
        again = step == self._prepared_at  # another micro-batch of the same update
        due = self._prepared
        if again:
            if self.joined:  # whole parameters that the pass since then has left are given up, in all processes alike
                self._due(Moment.UPDATE, step)
        else:
            shared, alone = self._due(Moment.UPDATE, step)
            due = self._replays.ready([*shared, *alone]) if shared or alone else []
            self._prepared, self._prepared_at = [], step
        if not self._guard.open or (announced and not due):
            return
        with self._guard:
            self._prepared = []
            self._read_hyperparameters(step)
            if due:
                view = self._view(step, gradients=gradients, method=method)
                view.gradient_scale, view.loss_scale = scale(), loss_scale()
                self._prepared = [probe for probe in due if self.runner.prepare(probe, view, again=again)]

    def at_update(self, step: int) -> None:
        """Read the hyperparameters of the update that happens now, after `before_update` has announced it."""
        if self._guard.open:
            with self._guard:
                self._read_hyperparameters(step)

    def _read_hyperparameters(self, step: int) -> None:
        seen = self.writer.seen
        self._hyperparameters.read(self._readback.submit, lambda found: self.writer.add(step, found, seen))

    def after_update(
        self,
        step: int,
        update: Callable[[], Update],
        source: Callable[[], Source],
        gradients: bool = False,
    ) -> None:
        """Measure the update w_t -> w_(t+1) that has just happened, and record it at step t.

        Args:
            step: Updates done before it, t.
            update: Tells what is known of it.
            source: Makes the source of the loss; called only if it is needed.
            gradients: True if the parameters still hold its gradient, and it was not seen before.
        """
        shared = self._due(Moment.UPDATE, step)[0] if self.joined else []
        prepared, self._prepared = self._prepared if self._prepared_at == step else [], []
        known: Update | None = None
        if self._guard.open:
            with self._guard:
                known = update()
                changed = self._facts.changed(known)
                if changed:
                    self.writer.add(step, changed)

        def view(peers: Peers | None = None) -> TrainingView:
            if known is None:
                raise RuntimeError("what is known of the update could not be told")
            found = self._view(step, known.batch, source, gradients=gradients, method=AT_STEP, peers=peers)
            found.loss, found.used = detached(known.loss), True
            found.may_replay = peers is None and self._replays.passed
            found.update_examples, found.micro_batches = known.examples, known.accumulation
            return found

        if shared:
            batch = None if known is None else known.batch
            unready = [probe for probe in shared if probe not in prepared]
            self._together.measure(shared, step, batch, source, view, unready)
        if not self._guard.open or known is None:
            return
        with self._guard:
            alone = [probe for probe in prepared if not self.runner.agenda.together(probe)]
            if alone and not self._replays.may_run(alone, step, known.batch, source):
                alone = [probe for probe in alone if not replays(probe)]
            if alone:
                self._measure(alone, view())
            self.writer.count(known.examples)
            if self.joined:
                self.runner.agenda.stepped()
            self.step = step + 1
            if self._settling.pending(step):
                self._settling.settle(step)

    def _due(self, moment: Moment, step: int) -> tuple[list[Probe], list[Probe]]:
        """List the due probes that all processes measure together, and those that this one measures alone."""
        if self.runner.agenda.idle(step) and not self._watching.probes:
            return [], []
        due = self.runner.agenda.due(moment, step) if self._guard.open or self.joined else []
        shared = [probe for probe in due if self.runner.agenda.together(probe)]
        if moment is Moment.UPDATE:  # for probes that watch it was decided before: the budget has moved on since
            due = [probe for probe in due if not watches(probe)]
            armed = [probe for probe in self.runner.probes if self._watching.due(probe) and probe not in shared]
            due += [probe for probe in armed if self.runner.health.well(probe.name)]
        if shared:  # whole parameters that a pass has left there, as they were then, are given up by all or by none
            with self._guard:
                reshard(self.model)
        return shared, [probe for probe in due if probe not in shared]

    def _measure(self, due: Sequence[Probe], view: TrainingView) -> None:
        for probe in due:
            if self.runner.health.well(probe.name):
                self.runner.measure(probe, view)

    def finish(self, kind: str, message: str, timeout: float) -> None:
        """Hand over everything and wait for its delivery for a bounded time.

        Args:
            kind: `run_finished` or `run_failed`.
            message: What to say of it.
            timeout: Seconds to wait.
        """
        self._watching.stop()
        with self._guard:
            self._settling.last(self.step)
            self.writer.tell(kind, self.step, message, "info" if kind == "run_finished" else "error")
        with self._guard:
            self.writer.close(timeout)
