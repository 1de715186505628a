"""The curvature operator of a loss, whatever processes it is spread over."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.batches import objective_of
from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.curvature.operators import Choice, HessianOperator, Operator, Scaled, flat_scale
from learnmech.probes.curvature.operators.averaged import Averaged
from learnmech.probes.curvature.sharded import ShardedObjective
from learnmech.probes.distributed.isolation import SharedLoss
from learnmech.probes.isolation import PureLoss
from learnmech.probes.isolation.counting import examples
from learnmech.probes.isolation.sharded import ShardedLoss

LAST_RESORT = "finite_differences"
"""What every process takes if one of them cannot do better: curvatures of different kinds are not averaged."""


def operator_of(
    loss: PureLoss | ShardedLoss,
    batches: Sequence[Any],
    choice: Choice,
    *,
    weights: Sequence[float] | None = None,
    scale: Sequence[Tensor] | None = None,
    retain: bool = True,
) -> Operator:
    """Return the Hessian of the mean loss over all examples, in all processes, of `batches`; S H S if a scale is given.

    Args:
        loss: The loss as `isolated_together` gives it: the kind of loss says which processes there are.
        batches: This process's batches. With whole parameters there may be none in some process.
        choice: The way to products.
        weights: Number of examples of each batch of this process. None: counted.
        scale: Diagonal of S, a tensor (or this process's shard of it) for each parameter.
        retain: Keep graphs between products.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
        Unmeasurable: There are no usable products.
        PeerFailed: It failed in some process.
    """  # noqa: DOC502 (raised below)
    if isinstance(loss, ShardedLoss):
        objective = ShardedObjective(loss, batches, loss.peers, weights=weights)
        return choice.operator(objective, scale=scale, retain=retain)
    if not isinstance(loss, SharedLoss):
        return choice.operator(objective_of(loss, batches, weights=weights), scale=scale, retain=retain)
    return _averaged(loss, batches, choice, weights, scale, retain)


def _averaged(
    loss: SharedLoss,
    batches: Sequence[Any],
    choice: Choice,
    weights: Sequence[float] | None,
    scale: Sequence[Tensor] | None,
    retain: bool,
) -> Operator:
    peers = loss.peers

    def local() -> tuple[Operator, float]:
        counts = [float(examples(batch)) for batch in batches] if weights is None else [float(w) for w in weights]
        if len(counts) != len(batches):
            raise ValueError(f"{len(counts)} weights came for {len(batches)} batches; expected one for each")
        filled = [(batch, count) for batch, count in zip(batches, counts, strict=True) if count != 0]
        if not filled:
            return _idle(loss, scale), 0.0
        mine = objective_of(loss, [batch for batch, _ in filled], weights=[count for _, count in filled])
        return choice.operator(mine, scale=scale, retain=retain), sum(counts)

    operator, count = peers.attempt(local)
    if not peers.agree(operator.method if count else ""):
        better = count > 0 and operator.method != LAST_RESORT

        def give_way() -> tuple[Operator, float]:
            if better and not choice.doubt(f"{operator.method} does not work in another process"):
                raise Unmeasurable(f"{operator.method} does not work in another process")
            return local()

        operator, count = peers.attempt(give_way)
    return Averaged(operator, peers, count, list(loss.leaves))


def _idle(loss: SharedLoss, scale: Sequence[Tensor] | None) -> Operator:
    """Return an operator for a process without examples: it knows its space, and is asked for nothing else."""
    objective = Objective(list(loss.leaves.values()), [_nothing], names=list(loss.leaves))
    operator: Operator = HessianOperator(objective)
    return operator if scale is None else Scaled(operator, flat_scale(objective, scale))


def _nothing(_: Sequence[Tensor]) -> Tensor:
    raise Unmeasurable("this process has no examples")
