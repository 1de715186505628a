"""What a probe gets to see: the view of the training at one moment, put together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.checked import checked
from learnmech.probes.distributed import Peers
from learnmech.probes.distributed.fsdp import is_shard, local
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.facts import Facts
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.isolation import PureLoss, Source
from learnmech.probes.isolation.counting import count
from learnmech.probes.isolation.source import optimized
from learnmech.probes.probe import T, TrainingView
from learnmech.probes.readback import Readback
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement


class Views:
    """Makes views of one training.

    Args:
        model: The model.
        optimizers: Its optimizers.
        hyperparameters: What is in force.
        facts: What is known of the updates.
        writer: Where deferred measurements go.
        readback: Reads them without waiting.
        precise: False where half precision or TF32 is in the training step; it may turn out later.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        hyperparameters: Hyperparameters,
        facts: Facts,
        writer: Writer,
        readback: Readback,
        *,
        precise: bool,
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._hyperparameters = hyperparameters
        self._facts = facts
        self._writer = writer
        self._readback = readback
        self.precise = precise

    def __call__(
        self,
        step: int,
        batch: Any = None,
        source: Callable[[], Source] | None = None,
        *,
        gradients: bool = False,
        method: str = "",
        peers: Peers | None = None,
    ) -> TrainingView:
        """Return the view of a moment.

        Args:
            step: Optimizer updates done at the weights concerned.
            batch: The batch, where there is one.
            source: Makes the source of the loss; None where it cannot be evaluated.
            gradients: True if the parameters hold a complete gradient.
            method: How the gradient was seen, if not before clipping.
            peers: The processes that measure together.
        """
        seen = self._writer.seen
        parameters: dict[str, Tensor] = dict(optimized(self._model, self._optimizers))
        held: dict[str, Tensor] = {}

        def isolate(work: Callable[[PureLoss], T], *, twice: bool = True) -> T:
            if source is None:
                raise RuntimeError("the loss cannot be evaluated while an update is prepared, only in measure(view)")
            return isolated_together(source(), work, batch, peers=peers, twice=twice)

        def defer(values: Sequence[Tensor], build: Callable[[list[float]], list[Measurement]]) -> None:
            self._readback.submit(values, lambda numbers: self._writer.add(step, [*map(checked, build(numbers))], seen))

        def hold() -> Mapping[str, Tensor]:
            with torch.no_grad():
                held.update((name, local(p).clone()) for name, p in parameters.items() if name not in held)
            return held

        found = {name: p.grad for name, p in parameters.items() if p.grad is not None} if gradients else {}
        if any(map(is_shard, found.values())):
            found = {}  # arithmetic on them may wait for the other processes, which do not do it
        return TrainingView(
            step=step,
            model=self._model,
            optimizers=self._optimizers,
            parameters=parameters,
            isolate=isolate,
            defer=defer,
            hold=hold,
            batch=batch,
            examples=None if batch is None else count(batch),
            complete=gradients,
            gradients=found or None,
            gradient_method=method,
            hyperparameters=self._hyperparameters.by_name,
            full_batch=self._facts.full_batch,
            dataset_size=self._facts.dataset_size,
            precise=self.precise,
            together=peers is not None,
            process=0 if peers is None else peers.rank,
            processes=1 if peers is None else peers.size,
            total=(lambda vector: vector) if peers is None else peers.added,
        )
