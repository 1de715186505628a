"""Where a loss comes from: a function the user gives, or Lightning's `training_step`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.isolation.outward import nothing_leaves
from learnmech.probes.isolation.refusal import Refusal, Skip
from learnmech.probes.isolation.settings import attributes_kept
from learnmech.probes.isolation.silence import REMEDY, is_lightning_module, without_loggers

LossFunction = Callable[[Any, Any], Tensor]
"""`loss_fn(model, batch) -> scalar tensor`, a mean over examples: the only shape a loss has."""

UNSEEN = "Leave it out while learnmech.probes.is_probing()."
"""What to do about an effect on the world outside that is no part of the loss."""


class Source(Protocol):
    """A loss as a function of the model and a batch, with whatever has to surround it."""

    model: nn.Module
    optimizers: list[Optimizer]

    def evaluate(self, batch: Any) -> Tensor:
        """Compute the loss of `batch` at the tensors that the model holds now.

        Raises:
            Refusal: There is no scalar loss, or it cannot be had without side effects.
            Skip: There is no loss for this batch.
        """
        ...

    def enter(self, stack: ExitStack) -> None:
        """Enter the contexts of one measurement."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside a data-parallel wrapper, whose forward would arm gradient reduction."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner = model.module
        return inner if isinstance(inner, nn.Module) else model
    return model


def scalar(loss: Any, origin: str) -> Tensor:
    """Check that `loss` is one number.

    Raises:
        Refusal: It is not.
    """
    if not isinstance(loss, Tensor):
        raise Refusal(f"{origin} returned {type(loss).__name__}, expected a scalar tensor.", REMEDY)
    if loss.numel() != 1:
        raise Refusal(f"{origin} returned a tensor of shape {tuple(loss.shape)}, expected a scalar: take the mean.")
    return loss.reshape(())


class FunctionSource:
    """The loss from `loss_fn(model, batch)`.

    Args:
        model: The model; of a data-parallel wrapper the module inside.
        loss_fn: The function, pure in everything but the model's own state.
        optimizers: Optimizers whose settings the function could touch.
        precision: Makes the context in which the training evaluates the loss, such as autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        optimizers: Iterable[Optimizer] = (),
        precision: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.optimizers = list(optimizers)
        self._loss_fn = loss_fn
        self._precision = precision

    def evaluate(self, batch: Any) -> Tensor:
        """Compute the loss.

        Raises:
            TypeError: The function returned None. A `training_step` may do so to skip a batch; a loss function may
                not, and its likeliest cause is said.
        """
        with nothing_leaves("The loss function", UNSEEN):
            loss = self._loss_fn(self.model, batch)
        if loss is None:
            raise TypeError("loss_fn returned None; expected a scalar tensor, the mean loss: is a `return` missing?")
        return scalar(loss, "The loss function")

    def enter(self, stack: ExitStack) -> None:
        """Enter the precision context."""
        if self._precision is not None:
            stack.enter_context(self._precision())


class TrainingStepSource:
    """The loss from a LightningModule's `training_step`, as the trainer would call it for the batch about to be used.

    Args:
        module: The LightningModule.
        trainer: Its trainer.
        batch_index: Index of the batch within the epoch.
    """

    def __init__(self, module: nn.Module, trainer: Any, batch_index: int) -> None:
        self.model = module
        self.optimizers = list(trainer.optimizers)
        self.batch_index = batch_index
        self._trainer = trainer

    def evaluate(self, batch: Any) -> Tensor:
        """Replay the step.

        Raises:
            Skip: The step returned None: Lightning skips it as well.
        """
        with nothing_leaves("training_step", f"{REMEDY} Or: {UNSEEN}"):
            output = self.model.training_step(*self._arguments(batch))  # type: ignore[operator]  # a LightningModule
        if output is None:
            raise Skip("training_step returned None")
        if isinstance(output, Mapping):
            output = output.get("loss")
        return scalar(output, "training_step")

    def _arguments(self, batch: Any) -> tuple[Any, ...]:
        """Return what Lightning passes: the batch, and its index if the step has a second argument or takes any."""
        step: Any = self.model.training_step
        parameters = inspect.getfullargspec(getattr(step, "__wrapped__", step))
        names = parameters.args[1:]  # the first is the module
        indexed = "batch_idx" in names or parameters.varargs is not None or len(names) >= 2
        return (batch, self.batch_index) if indexed else (batch,)

    def enter(self, stack: ExitStack) -> None:
        """Silence the loggers, keep the trainer's flags, enter the trainer's precision."""
        stack.enter_context(without_loggers(self._trainer))
        stack.enter_context(attributes_kept(self._trainer, ("should_stop", "barebones")))
        self._trainer.barebones = True  # in that mode `log` returns at once: for bound methods that somebody keeps
        stack.enter_context(attributes_kept(self.model, ("_current_fx_name",)))
        self.model.__dict__["_current_fx_name"] = "training_step"  # what Lightning sets around the step
        stack.enter_context(self._trainer.precision_plugin.train_step_context())


def refuse_unreplayable(module: nn.Module) -> None:
    """Check that the `training_step` of a LightningModule can be replayed at all.

    Raises:
        Refusal: It is not a LightningModule, it optimizes by hand, or it draws its own batches.
    """
    if not is_lightning_module(module):
        raise Refusal(f"{type(module).__name__} has no training_step.", REMEDY)
    if not getattr(module, "automatic_optimization", True):
        raise Refusal("The module optimizes by hand, so training_step is not one loss.", REMEDY)
    step: Any = module.training_step
    if "dataloader_iter" in inspect.signature(getattr(step, "__wrapped__", step)).parameters:
        raise Refusal("training_step draws batches from dataloader_iter, which a replay would use up.", REMEDY)


def optimized(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, nn.Parameter]:
    """Return the trainable parameters that an optimizer moves, by name; all trainable ones if none of them is held.

    A parameter may ask for a gradient and still be in no optimizer (only the head is trained): it takes no part in the
    dynamics whose stability, noise and equilibrium are asked for. An optimizer may also hold copies of its own.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: p for name, p in trainable.items() if id(p) in held} or trainable


def devices(model: nn.Module) -> list[torch.device]:
    """List the devices of a model's parameters and buffers."""
    found: dict[torch.device, None] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        found[tensor.device] = None
    return list(found)
