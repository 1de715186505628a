"""Exact products with sharded parameters: gathered whole for the time of a measurement, past the hooks of the model.

`fully_shard` gathers parameters in hooks of its own, whose backward pass cannot be differentiated again. Here each
process gathers all parameters once, as plain tensors, and differentiates twice past these hooks, on its own batches.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.operators.double_backward import HessianOperator
from learnmech.probes.curvature.operators.on_objective import OnObjective
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable
from learnmech.probes.curvature.sharded import ShardedObjective
from learnmech.probes.distributed.fsdp import groups, is_shard, state_of, summed_to_shard, whole
from learnmech.probes.distributed.peers import Step
from learnmech.probes.isolation.batch import clone
from learnmech.probes.isolation.contexts import twice_differentiable


class GatheredHessian(OnObjective):
    """The Hessian of a sharded objective, exactly: H v = sum_r share_r H_r v over processes r.

    For a product the vector is gathered, multiplied by each process's own Hessian, and summed to shards again. Vectors
    between products are shards as ever. Memory in every process, beside what differences need: the whole parameters,
    the whole vector and its product, and the graph of a double backward through the whole model on its own batches.
    That is what sharding was to avoid: it must be asked for (`method="double_backward"`).

    Attention and recurrent layers use kernels that differentiate twice, as for whole parameters.

    Args:
        objective: The loss over all processes as a function of shards.
        retain: Keep graphs between products.

    Raises:
        NotTwiceDifferentiable: `fully_shard` computes in another precision than that of the parameters: past its hooks
            it would be another function.
        PeerFailed: It failed in some process.
    """

    method = "double_backward_gathered"
    error = 0.0
    uncertainty = 0.0

    def __init__(self, objective: ShardedObjective, *, retain: bool = True) -> None:
        super().__init__(objective)
        self._sharded, self._peers = objective, objective.peers
        pure = objective.pure
        self._source, self._journal, self._streams = pure._source, pure._journal, pure._streams  # noqa: SLF001 (as one)
        self._model = self._source.model
        self._peers.attempt(lambda: _check(self._model), Step.PASS)
        own = [index for index, weight in enumerate(objective.weights) if weight > 0]
        leaves = [
            whole(parameter, shard).requires_grad_()
            for parameter, shard in zip(pure.parameters.values(), objective.parameters, strict=True)
        ]
        trained = {id(parameter) for parameter in pure.parameters.values()}
        self._frozen = {id(p): whole(p) for p in self._model.parameters() if is_shard(p) and id(p) not in trained}
        self._share = math.fsum(objective.weights)
        self._value = math.nan
        self._unused: tuple[str, ...] = ()
        self._inner = HessianOperator(
            Objective(
                leaves,
                [functools.partial(self._evaluated, index) for index in own],
                names=objective.names,
                weights=[objective.weights[index] for index in own],
                inside=self._inside,
            ),
            retain=retain,
        )

    @property
    def loss(self) -> float:
        """The loss over all the data; NaN before the first evaluation."""
        return self._value

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that enter the loss in no process."""
        return self._unused

    def matvec(self, vector: Tensor) -> Tensor:
        """Return this process's shard of H v [size].

        Raises:
            PeerFailed: The product failed in some process; errors that callers tell apart keep their class.
        """  # noqa: DOC502 (raised by the peers)
        self._peers.attempt(lambda: self._may_begin(vector), Step.PASS)
        self.products += 1
        pieces = zip(self._sharded.pure.parameters.values(), self._sharded.split(vector), strict=True)
        inner = self._inner.objective
        direction = inner.join([whole(parameter, piece) for parameter, piece in pieces])
        return self._shard_of(lambda: self._inner.matvec(direction).mul_(self._share))

    def gradient(self) -> Tensor:
        """Return this process's shard of the gradient of L at w [size]."""
        return self._shard_of(lambda: self._inner.gradient().mul_(self._share))

    def release(self) -> None:
        """Free the retained graphs; the next product builds them again."""
        self._inner.release()

    def _shard_of(self, work: Callable[[], Tensor]) -> Tensor:
        """Return this process's shard of the sum over processes of a vector; agree once on what was seen on the way."""
        inner = self._inner.objective
        vector, sums = self._peers.counted(
            work, Step.ADD, lambda _: [self._share * inner.loss, float(self._inner.kinked)]
        )
        parameters, summands = self._sharded.pure.parameters.values(), inner.split(vector)
        shard = self._sharded.join([summed_to_shard(p, s) for p, s in zip(parameters, summands, strict=True)])
        if math.isnan(self._value):
            self._value = float(sums[0])
            used = torch.tensor([float(name not in inner.unused) for name in inner.names], dtype=torch.float64)
            found = self._peers.numbers(used).tolist()
            self._unused = tuple(name for name, count in zip(inner.names, found, strict=True) if count == 0)
        self.kinked = bool(sums[1] > 0)
        return shard

    def _inside(self, parameters: Sequence[Tensor], work: Callable[[], Tensor]) -> Tensor:
        originals = self._sharded.pure.parameters.values()
        stand_ins = dict(zip(map(id, originals), parameters, strict=True)) | self._frozen
        try:
            with twice_differentiable(self._model.modules()), self._journal.standing_in(stand_ins):
                self._journal.rewind()
                with past_hooks(self._model):  # in the backward pass too: checkpoints run modules again
                    return work()
        finally:
            self._journal.rewind()

    def _evaluated(self, index: int, _: Sequence[Tensor]) -> Tensor:
        self._streams.draw(index)
        self._journal.rewind()  # brings the hooks back
        with past_hooks(self._model):
            return self._source.evaluate(clone(self._sharded.batches[index]))


@contextmanager
def past_hooks(model: nn.Module) -> Iterator[None]:
    """Leave out the hooks of `fully_shard` in forward passes."""
    kept: list[tuple[Any, dict[int, Any]]] = []
    for module in model.modules():
        state = state_of(module)
        for hooks in (module._forward_pre_hooks, module._forward_hooks) if state is not None else ():  # noqa: SLF001
            ours = {key: hook for key, hook in hooks.items() if _state_of_hook(hook) is not None}
            if ours:
                kept.append((hooks, dict(hooks)))
                for key in ours:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, content in kept:
            hooks.clear()
            hooks.update(content)


def _state_of_hook(hook: Any) -> Any:
    """Return the state of `fully_shard` that a hook is a method of, None if it is of somebody else."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", None)
    return owner if type(owner).__name__ == "FSDPState" else None


def _check(model: nn.Module) -> None:
    for group in groups(model):
        policy = getattr(group, "mp_policy", None)
        if getattr(policy, "param_dtype", None) is not None or getattr(policy, "output_dtype", None) is not None:
            raise NotTwiceDifferentiable(
                "fully_shard computes in another precision than that of the parameters: gathered past its hooks, they "
                "would make another function"
            )
