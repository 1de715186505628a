"""The loss over the data of all processes, and its curvature, whatever processes it is spread over."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.batches import objective_of
from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.curvature.operators import Choice, HessianOperator, Operator, Scaled, flat_scale
from learnmech.probes.curvature.operators.averaged import Averaged
from learnmech.probes.curvature.operators.choice import EXACT, METHODS
from learnmech.probes.curvature.operators.gathered import GatheredHessian
from learnmech.probes.curvature.sharded import ShardedObjective
from learnmech.probes.curvature.shared import SharedObjective, nothing
from learnmech.probes.distributed.isolation import SharedLoss
from learnmech.probes.isolation import PureLoss
from learnmech.probes.isolation.sharded import ShardedLoss

LAST_RESORT = "finite_differences"
"""What every process takes if one of them cannot do better: curvatures of different kinds are not averaged."""


def objective_in(
    loss: PureLoss | ShardedLoss,
    batches: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    held: Mapping[str, Tensor] | None = None,
    draw: int = 0,
) -> Objective:
    """Return the mean loss over all examples, in all processes, of `batches`.

    Args:
        loss: The loss as `isolated_together` gives it: the kind of loss says which processes there are.
        batches: This process's batches. With whole parameters there may be none in some process.
        weights: Number of examples of each batch of this process. None: counted.
        held: Weights to take it at (of sharded ones this process's part), by name; one that is missing is the model's.
        draw: State of the random streams for this process's first batch: 0 is what training itself would draw next.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
        PeerFailed: It failed in some process.
    """  # noqa: DOC502 (raised below)
    if isinstance(loss, ShardedLoss):
        shards = [(held or {}).get(name, shard) for name, shard in loss.shards.items()]
        return ShardedObjective(loss, batches, loss.peers, weights=weights, shards=shards, draw=draw)
    parameters = None
    if held:
        parameters = [held.get(name, leaf).detach().requires_grad_() for name, leaf in loss.leaves.items()]
    if isinstance(loss, SharedLoss):
        return SharedObjective(loss, batches, weights=weights, parameters=parameters, draw=draw)
    return objective_of(loss, batches, weights=weights, parameters=parameters, draw=draw)


def operator_on(
    objective: Objective, choice: Choice, *, scale: Sequence[Tensor] | None = None, retain: bool = True
) -> Operator:
    """Return the Hessian of an objective, S H S if a scale is given.

    Args:
        objective: The mean loss over all examples, as `objective_in` gives it.
        choice: The way to products.
        scale: Diagonal of S, a tensor (or this process's shard of it) for each parameter.
        retain: Keep graphs between products.

    Raises:
        Unmeasurable: There are no usable products.
        PeerFailed: It failed in some process.
    """  # noqa: DOC502 (raised below)
    if isinstance(objective, SharedObjective):
        return _averaged(objective, choice, scale, retain)
    if isinstance(objective, ShardedObjective) and choice.method == EXACT:  # it must be asked for: it gathers the model
        gathered = GatheredHessian(objective, retain=retain)
        return gathered if scale is None else Scaled(gathered, flat_scale(objective, scale))
    return choice.operator(objective, scale=scale, retain=retain)


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

    See `objective_in` and `operator_on`.
    """
    return operator_on(objective_in(loss, batches, weights=weights), choice, scale=scale, retain=retain)


def _averaged(objective: SharedObjective, choice: Choice, scale: Sequence[Tensor] | None, retain: bool) -> Operator:
    peers, mine = objective.peers, objective.mine

    def local() -> tuple[Operator, float]:
        if mine is None:
            return _idle(objective, scale), 0.0
        operator = choice.operator(mine, scale=scale, retain=retain)
        return operator, float(1 + next(i for i, name in enumerate(METHODS) if operator.method.startswith(name)))

    operator, code = peers.attempt(local)
    known = {METHODS[int(each) - 1] for each in peers.gathered(code) if each}
    if len(known) > 1:
        better = mine is not None and operator.method != LAST_RESORT

        def give_way() -> tuple[Operator, float]:
            if better and not choice.doubt(f"{operator.method} does not work in another process"):
                raise Unmeasurable(f"{operator.method} does not work in another process")
            return local()

        operator, _ = peers.attempt(give_way)
        known = {LAST_RESORT}
    if mine is None:
        if known == {LAST_RESORT}:
            choice.doubt("differences of gradients are taken in the other processes")  # to know what they know
        return Averaged(operator, objective, known.pop())
    return Averaged(operator, objective)


def _idle(objective: SharedObjective, scale: Sequence[Tensor] | None) -> Operator:
    """Return an operator for a process without examples: it knows its space, and is asked for nothing else."""
    plain = Objective(objective.parameters, [nothing], names=objective.names)
    operator: Operator = HessianOperator(plain)
    return operator if scale is None else Scaled(operator, flat_scale(plain, scale))
