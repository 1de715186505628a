"""`Recorder`: measures any training loop."""

import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.accumulating import Accumulating
from learnmech.probes.agenda import replays
from learnmech.probes.arguments import loss_function, whole
from learnmech.probes.beside import engine_beside
from learnmech.probes.budget import checked_budget
from learnmech.probes.context import describe, distributed
from learnmech.probes.curvature.preconditioners import wrappers
from learnmech.probes.distributed import companions, hidden, why_not_alone
from learnmech.probes.distributed.group import ENDS_EARLY, may_end_early
from learnmech.probes.distributed.hidden import told
from learnmech.probes.engine import AT_STEP, Engine
from learnmech.probes.facts import Update
from learnmech.probes.isolation import FunctionSource, LossFunction
from learnmech.probes.isolation.source import unwrapped
from learnmech.probes.logs import Log, Logs, logs_of
from learnmech.probes.loss_scale import LossScale
from learnmech.probes.opening import Destination, Opened, opened
from learnmech.probes.precision import computed_in_half, is_coarse
from learnmech.probes.probe import Probe
from learnmech.probes.probes import probe_set
from learnmech.probes.run import DEFAULT_SINK
from learnmech.probes.signals import Signals
from learnmech.probes.termination import GRACE
from learnmech.probes.watching import expect

logger = logging.getLogger("learnmech.probes")


class Recorder:
    """Measures a training loop that calls it after each update.

    >>> import torch
    >>> model, x = torch.nn.Linear(2, 1), torch.ones(8, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def loss_fn(model, batch):
    ...     return model(batch).square().mean()
    >>> with Recorder(model, optimizer, loss_fn, sink="spool:measurements") as recorder:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         loss = loss_fn(model, x)
    ...         loss.backward()
    ...         recorder.after_backward(x)
    ...         optimizer.step()
    ...         recorder.after_step(x, loss)
    >>> recorder.step
    3

    Weights, gradients, optimizer, buffers, random streams and training flags are left bit for bit as they were, and no
    failure of a measurement reaches the loop. What is wrong with the arguments is raised, at once. In distributed
    training give every process a recorder: curvature is that of the loss over the batches of all processes, measured by
    all of them at the same steps; everything else is measured by rank 0, on its own batches, and only rank 0 records.
    Curvature of the batch of an update is measured after it, at copies of the weights from before it (one copy, at
    these steps): the new weights have moved along the gradient of this very batch.
    `loss_fn` must not enter a collective then, except those of `fully_shard`.

    Args:
        model: The model.
        optimizer: Its optimizer.
        loss_fn: `loss_fn(model, batch)`, the scalar mean loss of a batch, with any autocast inside; it may change
            nothing but the model's own state.
        probes: What to measure; None for `[Sharpness(), GradientNoiseScale(), WeightDynamics()]`.
        sink: URL of where measurements go: `sqlite:///file`, `postgresql://...`, `http://host:8765`, `spool:folder`.
        run: Name of the run; None makes one.
        project: Project it belongs to.
        budget: Share of the run's time that probes without a schedule may take.
        tags: Free labels.
        full_batch: Whether every step sees the same whole training set; None to find out.
        dataset_size: Number of training examples.
        tokens_per_sample: Tokens in one example, to count tokens.
        accumulation: Micro-batches per update; None: found out if `after_backward` is called for each of them, else 1.
        scaler: The `torch.amp.GradScaler` that multiplies the loss, if there is one: gradients told of by
            `after_backward` before its `unscale_` are divided by its scale then.
        gradient_clip: Bound at which the loop clips the gradient: laws of the plain update do not apply then.
        log: `log(values, step)`, to pass numbers on to a logger as well, as `learnmech/sharpness` and so on; called in
            a thread of its own, after the step.
        precise: False where half precision or TF32 is in the training step, so that less is concluded from small
            numbers; None to find out: TF32, an enabled scaler, and what the graph of the first `loss` shows, if it is
            passed to `after_step` with its graph.
        strict: True to raise what is otherwise recorded; for tests.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        probes: Iterable[Probe] | None = None,
        *,
        sink: str = DEFAULT_SINK,
        run: str | None = None,
        project: str | None = None,
        budget: float = 0.01,
        tags: Mapping[str, str] | None = None,
        full_batch: bool | None = None,
        dataset_size: int | None = None,
        tokens_per_sample: int | None = None,
        accumulation: int | None = None,
        scaler: "torch.amp.GradScaler | None" = None,
        gradient_clip: float | None = None,
        log: Log | Logs | None = None,
        precise: bool | None = None,
        strict: bool = False,
    ) -> None:
        loss_function("loss_fn", loss_fn)
        if accumulation is not None:
            whole("Recorder", "accumulation", accumulation, 1, 1)
        self.step = 0
        self.hidden = ""  # why weights cannot be seen, where the adapter of a trainer knows
        self._wrapped = model
        self._model = unwrapped(model)
        self._optimizer = wrappers.unwrapped(optimizer)
        if self._optimizer is not optimizer:  # Accelerate's wrapper has the scaler
            scaler = scaler or getattr(optimizer, "scaler", None)
        self._loss_fn = loss_fn
        self._probes = probe_set(probes)
        self._destination = Destination(sink, run, project, dict(tags or {}), tokens_per_sample, logs_of(log))
        self._budget = checked_budget(budget)
        self._full_batch = full_batch
        self._dataset_size = dataset_size
        self._accumulating = Accumulating(accumulation)
        self._loss_scale = LossScale(self._optimizer, scaler, clips=bool(gradient_clip))
        self._gradient_clip = gradient_clip
        self._precise = precise
        self._strict = strict
        self._resumed: dict[str, Any] = {}
        self._engine: Engine | None = None
        self._opened: Opened | None = None
        self._hook: Any = None
        self._signals: Signals | None = None
        self._prepared = False
        self._heard = False
        self._processes = 1

    def __enter__(self) -> Self:
        """Begin the run, or go on with a loaded one; after its end, with the same run as a new attempt.

        Raises:
            RuntimeError: The run has begun already.
        """
        if self._signals is not None:
            raise RuntimeError("the run has begun already: one `with recorder:` at a time")
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run: deliver what is left, for a few seconds at most. An exception of the loop passes."""
        self.close(error)

    def _begin(self) -> None:
        rank, world_size = distributed()
        self.hidden = self.hidden or hidden(self._wrapped, [self._optimizer])
        peers = None if self.hidden else companions(self._wrapped)
        self._processes = 1 if peers is None else peers.size  # each of them has a batch like this one's
        self._accumulating.begin(fixed=True)  # what was told of an update of an earlier run
        expect(self._probes, self._accumulating.expected, self._processes)
        common: Any = {"budget": self._budget, "foresees": False, "start_step": self.step, "strict": self._strict}
        if rank != 0:
            self._engine = engine_beside(self._model, [self._optimizer], self._probes, peers, **common)
            self._signals = Signals(self._probes)
            self._watch_updates()
            return
        said = told(describe(self._model, [self._optimizer]), self.hidden)
        context = said | {"framework": "torch", "world_size": world_size}
        if self._gradient_clip:
            context["gradient_clip"] = self._gradient_clip
        context["budget"] = self._budget
        alone = why_not_alone(self._model)
        # several processes would not agree on the step
        asked = () if peers or self.hidden else [probe for probe in self._probes if not (alone and replays(probe))]
        self._opened = opened(self._destination, context, self._resumed, self.step, probes=asked)
        self._engine = Engine(
            self._model,
            [self._optimizer],
            self._probes,
            self._opened.writer,
            declared_full_batch=self._full_batch,
            dataset_size=self._dataset_size,
            **common,
        )
        if not self._engine.join(peers) and peers is not None:
            expect(self._probes, 1, 1)  # the gradient is a mean over processes of which one alone knows its own part
        if self.hidden:
            self._engine.runner.refuse(self._probes, self.step, self.hidden)
        elif reason := why_not_alone(self._model):
            self._engine.refuse_replays(self.step, reason)
        self._signals = Signals(self._probes, self._terminated)
        self._watch_updates()

    def _watch_updates(self) -> None:
        if self._engine is None:
            return
        if self._precise is False or (self._precise is None and self._is_coarse()):
            self._engine.imprecise()
        if hasattr(self._optimizer, "register_step_pre_hook"):
            self._hook = self._optimizer.register_step_pre_hook(self._before_step)
        else:
            self._prepare_next()
        self._engine.before_backward(self.step)

    def _is_coarse(self) -> bool:
        return self._loss_scale.scales or is_coarse(self._model)

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See weights, gradient and hyperparameters of an update right before it is made."""
        self._heard = True
        if self._prepared:
            if self._engine is not None:
                self._engine.at_update(self.step)
            return
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        # a closure computes the gradient inside the step: what is there now belongs to the step before
        self._prepare(gradients=closure is None, method=AT_STEP)

    def _prepare(self, *, gradients: bool, method: str = "", announced: bool = False) -> None:
        if self._engine is not None:
            scale = self._loss_scale
            self._engine.before_update(
                self.step, gradients, method, scale.in_gradient, scale.of_loss, announced=announced
            )
            self._prepared = True

    def _prepare_next(self) -> None:
        """Prepare the next update now: with an optimizer that has no hooks, nothing tells when it begins."""
        self._prepare(gradients=False)
        self._prepared = False

    def after_backward(self, batch: Any) -> None:
        """Tell that the gradient of a batch is complete, unscaled and not clipped yet: optional, but exact.

        With accumulation, call it for each micro-batch: examples are counted here, the gradient is the last call's.

        Args:
            batch: The batch or micro-batch.
        """
        if self._engine is None:
            return
        self._engine.after_backward(self.step, batch)
        self._accumulating.add(batch)
        self._prepare(gradients=True, announced=self._heard)

    def after_step(self, batch: Any, loss: Tensor | float | None = None) -> None:
        """Tell that the weights were updated, and measure what is due.

        Args:
            batch: The batch of the update, or its last micro-batch.
            loss: Its loss as the loop computed it, if it is at hand.
        """
        engine = self._engine
        if engine is None:
            self.step += 1
            return
        if engine.joined and may_end_early(self._wrapped):
            engine.refuse_together(self.step, ENDS_EARLY)
        engine.after_update(self.step, lambda: self._update(batch, loss), self._source, gradients=not self._prepared)
        if self._accumulating.begin(fixed=engine.joined):
            engine.expect(self._accumulating.expected)
        self._prepared = False
        self.step += 1
        if self._hook is None:
            self._prepare_next()
        engine.at_rest(self.step, batch, self._source)
        engine.before_backward(self.step)

    def _update(self, batch: Any, loss: Tensor | float | None) -> Update:
        if self._precise is None and isinstance(loss, Tensor) and loss.grad_fn is not None:
            self._precise = not computed_in_half(loss)
            if not self._precise and self._engine is not None:
                self._engine.imprecise()
        pieces, examples, last = self._accumulating.of_update(batch)
        # how many processes make an update, only their wrapper knows where it hides weights
        total = None if examples is None or self.hidden else examples * self._processes
        return Update(loss, batch, total, last, pieces)

    def _source(self) -> FunctionSource:
        return FunctionSource(self._model, self._loss_fn, [self._optimizer])

    def _terminated(self) -> None:
        """End the run, in another thread than the training's: the process is about to end."""
        current = self._opened
        if current is not None:
            self._engine = None
            self._resumed = current.progress(self.step)
            current.writer.fail(self.step, f"Terminated by SIGTERM at step {self.step}", GRACE)

    def close(self, error: BaseException | None = None, timeout: float = 5.0) -> None:
        """End the run; the `with` statement does it.

        Args:
            error: The exception that ended the loop, if one did.
            timeout: Seconds to wait for delivery at most.
        """
        engine, self._engine = self._engine, None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        if engine is None:
            self._opened = None  # of a run that SIGTERM has ended, in a process that went on
            return
        if error is None:
            engine.finish("run_finished", f"finished at step {self.step}", timeout)
        else:
            engine.finish("run_failed", f"{type(error).__name__} at step {self.step}: {error}"[:500], timeout)
        self._resumed = self.state_dict()
        self._opened = None

    @property
    def run_id(self) -> str:
        """Identity of the run; '' before it begins, and in processes that do not record."""
        return str(self.state_dict().get("run_id", ""))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for the run to go on as the same run: plain values only."""
        return dict(self._resumed) if self._opened is None else self._opened.progress(self.step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of a checkpoint; call it before the run begins.

        Raises:
            RuntimeError: The run has begun.
        """
        if self._engine is not None:
            raise RuntimeError("the run has begun; call load_state_dict before `with recorder:`")
        self._resumed = dict(state)
        self.step = int(state.get("step", 0))
