"""One attempt of a run under Lightning: translates hooks into the moments of the engine."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnmech.probes.agenda import replays
from learnmech.probes.beside import engine_beside
from learnmech.probes.context import WAITS, describe, waits_for_others
from learnmech.probes.distributed import Peers, companions, hidden, why_not_alone
from learnmech.probes.distributed.hidden import told
from learnmech.probes.engine import Engine
from learnmech.probes.facts import Update
from learnmech.probes.isolation import FunctionSource, Refusal, Source, TrainingStepSource, refuse_unreplayable
from learnmech.probes.isolation.counting import count
from learnmech.probes.logs import Logs, Paced, logs_of
from learnmech.probes.opening import Destination, Opened, opened
from learnmech.probes.precision import is_coarse
from learnmech.probes.self_test import SelfTest
from learnmech.probes.watching import expect

if TYPE_CHECKING:
    from learnmech.probes.lightning import MechanicsMonitor

logger = logging.getLogger("learnmech.probes")

_WHOLE = ("SingleDeviceStrategy", "DDPStrategy", "SingleDeviceXLAStrategy")
"""Strategies whose processes hold whole parameters."""


def _strategy(trainer: Any) -> str:
    return type(trainer.strategy).__name__


def _is_precise(trainer: Any, module: nn.Module) -> bool:
    """Tell whether the step computes in float32 or better throughout."""
    return not str(trainer.precision).startswith(("16", "bf16", "transformer-engine")) and not is_coarse(module)


def _dataset_size(trainer: Any) -> int | None:
    """Ask the training loader how many examples there are; its iterator is never touched."""
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    try:
        return len(dataset) if dataset is not None else None
    except Exception:  # noqa: BLE001 (an iterable data set has no length, and the user's __len__ may raise anything)
        return None


def _why_not_replayable(trainer: Any, module: nn.Module, has_loss: bool) -> str:
    """Return why the loss cannot be evaluated in this set-up, '' if it can."""
    if _strategy(trainer) not in _WHOLE:
        remedy = "" if has_loss else " With fully_shard: pass loss=, a function loss(model, batch)."
        return f"Under {_strategy(trainer)} parameters are sharded: one process cannot measure alone.{remedy}"
    if trainer.world_size > 1 and not has_loss:
        return (
            "With several processes a replayed training_step could wait for a collective that the others do not enter. "
            "Pass loss=, a function loss(model, batch) without collectives."
        )
    if waits_for_others(module):
        return WAITS
    if has_loss:
        return ""
    try:
        refuse_unreplayable(module)
    except Refusal as refusal:
        return str(refusal)
    return ""


def _precision_context(trainer: Any) -> Any:
    return trainer.precision_plugin.train_step_context()


class Attempt:
    """One attempt: from `on_train_start` to the end of the fit.

    Args:
        engine: Measures.
        opened: What it is of a run; the progress of an earlier attempt in a process that only takes part in what all
            processes measure together, and records nothing.
        loss: The user's loss function, if there is one.
    """

    def __init__(
        self, engine: Engine, opened: Opened | Mapping[str, Any], loss: Callable[[Any, Any], Tensor] | None
    ) -> None:
        self.engine = engine
        self._opened = opened
        self._loss = loss
        self._step = -1
        self._losses: list[Tensor] = []
        self._examples: list[int | None] = []
        self._seen_gradient = False
        self._batch: Any = None
        self._accumulation = 0

    def progress(self) -> dict[str, Any]:
        """Return the identity of the run and how far it is: plain values only."""
        return self._opened.progress(self.engine.step) if isinstance(self._opened, Opened) else dict(self._opened)

    def batch_start(self, trainer: Any, module: nn.Module, batch: Any, index: int) -> None:
        """Measure at rest, at the first micro-batch of an update, from step 1 on."""
        step = trainer.global_step
        self._batch = batch
        if step == self._step:
            return
        self._step, self._losses, self._examples, self._seen_gradient = step, [], [], False
        if trainer.accumulate_grad_batches != self._accumulation:  # a schedule may change it
            self._accumulation = trainer.accumulate_grad_batches
            self.engine.expect(self._accumulation)
        if step > 0:  # kernels are chosen by the training itself first
            self.engine.at_rest(step, batch, lambda: self._source(trainer, module, index))
        self.engine.before_backward(step)

    def _source(self, trainer: Any, module: nn.Module, index: int) -> Source:
        if self._loss is None:
            return TrainingStepSource(module, trainer, index)
        return FunctionSource(module, self._loss, trainer.optimizers, lambda: _precision_context(trainer))

    def after_backward(self, trainer: Any) -> None:
        """Count the micro-batch; finish the self-test with the gradient of the first one."""
        batch, self._batch = self._batch, None

        def factor() -> float:
            return float(_loss_scale(trainer)) / int(trainer.accumulate_grad_batches)

        self.engine.after_backward(self._step, batch, factor)

    def before_optimizer_step(self, trainer: Any, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the measurement of the update; a closure that is called several times counts once."""
        if self._seen_gradient:
            return
        self._seen_gradient = True
        # a fused optimizer takes the loss scale out of the gradient itself, later
        scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.engine.before_update(self._step, scale=lambda: _loss_scale(trainer) if scaled else 1.0)

    def batch_end(self, trainer: Any, module: nn.Module, outputs: Any, batch: Any, index: int) -> None:
        """Count a micro-batch; measure the update if it was the last of one."""
        accumulates = self._accumulation > 1 and trainer.lightning_module.automatic_optimization
        divided = self._accumulation if accumulates else 1
        loss = outputs.get("loss") if type(outputs) is dict or isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach() if loss.requires_grad else loss  # Lightning has done it, as a rule
            self._losses.append(loss if divided == 1 else loss * divided)
        self._examples.append(count(batch))
        self.engine.disarm()
        if trainer.global_step == self._step:
            return

        def update() -> Update:
            known = [number for number in self._examples if number is not None]
            total = sum(known) * trainer.world_size if known and len(known) == len(self._examples) else None
            losses = self._losses
            mean = torch.stack(losses).mean() if len(losses) > 1 else losses[0] if losses else None
            return Update(mean, batch, total, self._examples[-1], len(self._examples))

        self.engine.after_update(self._step, update, lambda: self._source(trainer, module, index))

    def end(self, exception: BaseException | None) -> None:
        """End the attempt."""
        step = self.engine.step
        if exception is None:
            self.engine.finish("run_finished", f"finished at step {step}", timeout=5.0)
        else:
            message = f"{type(exception).__name__} at step {step}: {exception}"[:500]
            self.engine.finish("run_failed", message, timeout=5.0)


def _loss_scale(trainer: Any) -> float | Tensor:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale = scaler._get_scale_async()  # noqa: SLF001 (the public get_scale waits for the device)
    return 1.0 if scale is None else scale


def _logs(monitor: "MechanicsMonitor", trainer: Any) -> Logs | None:
    """Return what passes numbers on, to a function or to the trainer's loggers directly: metrics stay as they are."""

    def log(values: dict[str, float], step: int) -> None:
        for one in trainer.loggers:
            one.log_metrics(values, step=step)

    if isinstance(monitor.log_to, bool):
        return Paced(log, monitor.budget) if monitor.log_to else None
    return logs_of(monitor.log_to)


def _destination(monitor: "MechanicsMonitor", trainer: Any) -> Destination:
    logs = _logs(monitor, trainer)
    return Destination(monitor.sink, monitor.run, monitor.project, monitor.tags, monitor.tokens_per_sample, logs)


def _keeps(trainer: Any) -> bool:
    if trainer.fast_dev_run:
        logger.info("learnmech measures, but keeps nothing of a fast_dev_run")
    return not trainer.fast_dev_run


def begin(
    monitor: "MechanicsMonitor", trainer: Any, module: nn.Module, progress: Mapping[str, Any], *, loaded: bool
) -> Attempt | None:
    """Begin an attempt: a new run, or the next attempt of the run in `progress` if the trainer goes on with it.

    Args:
        monitor: The callback with its settings.
        trainer: The trainer.
        module: The LightningModule.
        progress: Identity of an earlier attempt, if there was one.
        loaded: True if `progress` comes from the checkpoint that the trainer resumes from.

    Returns:
        The attempt; None where nothing is to be measured (barebones mode, ranks other than 0).
    """
    if getattr(trainer, "barebones", False):
        logger.info("learnmech measures nothing under Trainer(barebones=True)")
        return None
    step = trainer.global_step
    hiding = hidden(trainer.strategy.model, trainer.optimizers, trainer.strategy)
    peers = None if hiding else companions(trainer.strategy.model)
    expect(monitor.probes, trainer.accumulate_grad_batches, 1 if peers is None else peers.size)
    if trainer.global_rank != 0:
        return _begin_beside(monitor, trainer, module, progress, peers)
    goes_on = bool(progress.get("run_id")) and (loaded or step >= int(progress.get("step", 0)) > 0)
    said = told(describe(module, trainer.optimizers), hiding)
    context = said | _trainer_context(trainer) | {"budget": monitor.budget}
    refusal = _why_not_replayable(trainer, module, monitor.loss is not None)
    # several processes would not agree on the step
    asked = [p for p in monitor.probes if not (refusal and replays(p))] if peers is None and not hiding else ()
    progress = progress if goes_on else {}
    attempt = opened(_destination(monitor, trainer), context, progress, step, keep=_keeps(trainer), probes=asked)
    precise = _is_precise(trainer, module)
    engine = Engine(
        module,
        trainer.optimizers,
        monitor.probes,
        attempt.writer,
        budget=monitor.budget,
        foresees=True,
        declared_full_batch=monitor.full_batch,
        dataset_size=monitor.dataset_size or _dataset_size(trainer),
        start_step=step,
        self_test=SelfTest(precise=precise) if monitor.loss is None else None,
        # a replayed training_step could enter collectives of its own: for several processes the loss must be given
        shares_loss=monitor.loss is not None,
        precise=precise,
        strict=monitor.strict,
    )
    if not engine.join(peers):
        if peers is not None:
            expect(monitor.probes, 1, 1)
    elif monitor.loss is not None:
        refusal = why_not_alone(module)
    if hiding:
        engine.runner.refuse(monitor.probes, step, hiding)
    elif refusal:
        engine.refuse_replays(step, refusal)
    return Attempt(engine, attempt, monitor.loss)


def _begin_beside(
    monitor: "MechanicsMonitor", trainer: Any, module: nn.Module, progress: Mapping[str, Any], peers: Peers | None
) -> Attempt | None:
    """Take part, in a process that does not record, in what all processes measure together."""
    engine = engine_beside(
        module,
        trainer.optimizers,
        monitor.probes,
        peers,
        budget=monitor.budget,
        foresees=True,
        shares_loss=monitor.loss is not None,
        start_step=trainer.global_step,
        strict=monitor.strict,
    )
    return None if engine is None else Attempt(engine, progress, monitor.loss)


def _trainer_context(trainer: Any) -> dict[str, Any]:
    """Describe the trainer: what laws and readers need, in JSON values."""
    context: dict[str, Any] = {
        "framework": "lightning",
        "lightning": _version(trainer),
        "precision": str(trainer.precision),
        "strategy": _strategy(trainer),
        "world_size": trainer.world_size,
        "gradient_clip": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm if trainer.gradient_clip_val else None,
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "fast_dev_run": bool(trainer.fast_dev_run),
        "overfit_batches": trainer.overfit_batches or None,
    }
    return {key: value for key, value in context.items() if value is not None}


def _version(trainer: Any) -> str:
    package = sys.modules.get(type(trainer).__module__.partition(".trainer")[0])
    return str(getattr(package, "__version__", "unknown"))
