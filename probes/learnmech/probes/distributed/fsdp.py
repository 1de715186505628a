"""What we know of `fully_shard`: who holds what, gathered or not, and when a backward pass would do too much.

Parameters are gathered by hooks: between passes a module holds shards (DTensors), within one whole parameters, and
after a forward pass without a backward pass its root still holds whole ones, gathered at the weights of then.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from learnmech.probes.isolation.refusal import Refusal

SHARDED = "Parameters are sharded over processes: only what all of them measure together can be had."


def is_shard(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part; its class is imported by nobody else."""
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "device_mesh")


def mesh_of(parameter: Tensor) -> Any:
    """Return the mesh of processes over which a DTensor is laid out."""
    shard: Any = parameter
    return shard.device_mesh


def is_sharded(model: nn.Module) -> bool:
    """Tell whether parameters are divided among processes (`fully_shard`, tensor parallelism)."""
    return any(state_of(module) is not None for module in model.modules()) or any(map(is_shard, model.parameters()))


def clean_up(model: nn.Module) -> None:
    """Bring `fully_shard` back to rest after a pass through the model that broke off."""
    for module in model.modules():
        reset: Callable[[], None] | None = getattr(module, "reset_iter_state", None)  # from torch 2.13 on
        state = state_of(module)
        if reset is not None and state is not None and state._is_root:  # noqa: SLF001 (no public name)
            reset()


def local(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that is in this process, not a copy."""
    found: Any = tensor.detach()
    part: Tensor = found.to_local() if hasattr(found, "to_local") else found
    return part


def whole(parameter: Tensor, shard: Tensor | None = None) -> Tensor:
    """Gather a tensor of which every process has a shard, laid out as a parameter is: a collective of all of them.

    Args:
        parameter: The parameter, a DTensor.
        shard: This process's shard of the tensor; None: of the parameter itself.
    """
    layout: Any = parameter
    if shard is None:
        shard = local(parameter)
    laid_out: Any = type(layout.data).from_local(
        shard.detach().contiguous(),
        layout.device_mesh,
        layout.placements,
        run_check=False,
        shape=layout.shape,
        stride=layout.stride(),
    )
    found: Tensor = laid_out.full_tensor()
    return found.detach().clone()


def summed_to_shard(parameter: Tensor, summand: Tensor) -> Tensor:
    """Add up whole tensors over processes; return this one's shard of the sum, laid out as a parameter is.

    Args:
        parameter: The parameter, a DTensor.
        summand: This process's summand, of the parameter's whole shape.
    """
    from torch.distributed.tensor import Partial  # imported late: it takes half a second, and only sharding needs it

    layout: Any = parameter
    partial = [Partial() for _ in layout.placements]
    sums: Any = type(layout.data).from_local(summand.contiguous(), layout.device_mesh, partial, run_check=False)
    return local(sums.redistribute(layout.device_mesh, layout.placements))


def state_of(module: nn.Module) -> Any:
    """Return what `fully_shard` keeps about a module, None if it was not applied to it."""
    get: Callable[[], Any] | None = getattr(module, "_get_fsdp_state", None)
    return None if get is None else get()


def reshard(model: nn.Module) -> None:
    """Give up gathered parameters: the next forward pass gathers the shards as they are then. No collective."""
    for module in model.modules():
        if state_of(module) is not None:
            give_up: Any = module.reshard
            give_up()


def groups(model: nn.Module) -> Iterator[Any]:
    """Yield the groups of parameters that are gathered together; private to torch, so that none may be found."""
    for module in model.modules():
        state = state_of(module)
        if state is not None:
            one = getattr(state, "_fsdp_param_group", None) if not hasattr(state, "_fsdp_param_groups") else None
            yield from getattr(state, "_fsdp_param_groups", [one] if one is not None else [])


def check_sharded(model: nn.Module) -> None:
    """Check that a backward pass through the model would leave nothing but gradients.

    Raises:
        Refusal: It would do more, or the gradient would not be the mean over processes.
    """
    if not any(True for _ in groups(model)):
        raise Refusal("Parameters are sharded, but not by fully_shard: other ways are not measured yet.")
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise Refusal(f"Parameter {name} has a hook that runs in the backward pass (an optimizer step there?).")
    for group in groups(model):
        if getattr(group, "gradient_divide_factor", None) is not None:
            raise Refusal("The gradient is divided by a factor of the user's, so it is not the mean over processes.")
        if getattr(group, "_all_reduce_hook", None) is not None:
            raise Refusal("The gradient passes through a hook of the user's between the processes.")
        waits = not getattr(group, "reduce_grads", True) or not getattr(group, "all_reduce_grads", True)
        if waits or getattr(group, "_partial_reduce_output", None) is not None:
            raise Refusal(
                "Gradients are being accumulated without exchange between the processes.",
                "Measure after the last micro-batch, or call set_requires_gradient_sync(True) before.",
            )


def check_layout(name: str, parameter: Tensor) -> None:
    """Check that a parameter is laid out in a way that we know: sharded over all processes, or within groups of them.

    Raises:
        Refusal: It is not.
    """
    placements = [type(placement).__name__ for placement in getattr(parameter, "placements", ())]
    if not placements:
        raise Refusal(
            f"Parameter {name} is trained and not sharded, while others are.", "Apply fully_shard to the root."
        )
    if placements not in (["Shard"], ["Replicate", "Shard"]):
        raise Refusal(f"Parameter {name} is laid out as {', '.join(placements)}, which is not measured yet.")
