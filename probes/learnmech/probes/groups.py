"""Scopes: which parameters are measured together, from the whole model down to single tensors."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LIMIT = 64
"""Depth scopes at most, and type scopes at most: as many as a legend can still name, and every block of most models."""

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names under which torch.compile, FSDP and activation checkpointing hold the module that they wrap."""

_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.original(\d*)$")


def scopes(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    per_parameter: bool = False,
    optimizers: Sequence[Optimizer] = (),
    limit: int = LIMIT,
) -> dict[str, list[str]]:
    """Say which parameters are measured together.

    - `''`: all of them.
    - `type:Linear`, ...: those of all modules of a type. A private class of torch counts as the public one that it
      derives from.
    - `blocks.0`, ...: the depth: the path of a module through its first number, or its first component where there is
      none. What all names begin with, such as `network.` in a LightningModule, does not count as a component.
    - `group:0`, ...: the parameter groups of `optimizers`, counted through, if there are any.
    - each parameter under its own name, with `per_parameter`.

    Names are those of the model without its wrappers (torch.compile, data parallelism, FSDP, checkpointing). A tensor
    that has several names is in the scopes of the first.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    >>> found = scopes(model, dict(model.named_parameters()))
    >>> list(found)
    ['', 'type:Linear', '0', '2']
    >>> found["2"]
    ['2.weight', '2.bias']

    Args:
        model: The model.
        parameters: Parameters of the model by name.
        per_parameter: Whether to add every parameter as a scope: without a bound.
        optimizers: Optimizers whose parameter groups are added.
        limit: Depth scopes at most, and type scopes at most. Beyond it neighbouring blocks are merged (`blocks.0-1`),
            and the smallest types are put together in `type:other`.

    Returns:
        Scope -> names of parameters, keys of `parameters` in their order. No scope is empty, but for `''` if there are
        no parameters.

    Raises:
        ValueError: `limit` is below one.
    """
    if limit < 1:
        raise ValueError(f"limit={limit!r}; expected how many scopes of a kind there may be, from 1 on")
    names = _untied(parameters)
    clean = {name: plain_name(model, name) for name in names}
    found = {"": names}
    found |= _by_type(model, names, parameters, limit)
    found |= _by_depth(clean, limit)
    found |= _by_group(names, parameters, optimizers)
    if per_parameter:
        found |= {clean[name]: [name] for name in names}
    return found


def plain_name(model: nn.Module, name: str) -> str:
    """Return the name of a parameter as it would be without wrappers and parametrizations.

    >>> plain_name(nn.parallel.DataParallel(nn.Linear(1, 1)), "module.weight")
    'weight'
    """
    kept: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        wraps = isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel) and part == "module"
        if not (wraps or part in _WRAPPERS):
            kept.append(part)
        child = getattr(module, "_modules", {}).get(part) if not isinstance(module, torch.jit.ScriptModule) else None
        module = child if isinstance(child, nn.Module) else None  # of a scripted module the rest of the name is plain
    return _PARAMETRIZED.sub(lambda match: "".join(match.groups()), ".".join(kept))


def _untied(parameters: Mapping[str, Tensor]) -> list[str]:
    first: dict[int, str] = {}
    for name, parameter in parameters.items():
        first.setdefault(id(parameter), name)
    return list(first.values())


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for scope, name in pairs:
        found.setdefault(scope, []).append(name)
    return found


def _by_type(
    model: nn.Module, names: Sequence[str], parameters: Mapping[str, Tensor], limit: int
) -> dict[str, list[str]]:
    owners = ((name, _owner(model, name)) for name in names)
    found = _gathered((f"type:{_public(type(owner))}", name) for name, owner in owners if owner is not None)
    if len(found) <= limit:
        return found
    by_size = sorted(found, key=lambda scope: -sum(parameters[name].numel() for name in found[scope]))
    large = set(by_size[: limit - 1])
    return _gathered((s if s in large else "type:other", name) for s, members in found.items() for name in members)


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module that a parameter belongs to; of a parametrized one not the parametrization."""
    path = _PARAMETRIZED.sub("weight", name).rpartition(".")[0]
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _public(cls: type) -> str:
    """Return the name of the first class that is not torch's own without being offered in `torch.nn`."""
    for base in cls.__mro__:
        if not base.__module__.startswith("torch.") or getattr(nn, base.__name__, None) is base:
            return base.__name__
    return cls.__name__


def _by_depth(clean: Mapping[str, str], limit: int) -> dict[str, list[str]]:
    paths = {name: plain.split(".") for name, plain in clean.items()}
    shared = _shared(list(paths.values()))
    blocks = _gathered((_block(path, shared), name) for name, path in paths.items())
    merged = _merged(list(blocks), limit)
    return _gathered((merged[block], name) for block, members in blocks.items() for name in members)


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Return how many components at the beginning all modules' paths have in common, numbers not among them."""
    count = 0
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1 or parts[0].isdigit():
            break
        count += 1
    return count


def _block(path: Sequence[str], shared: int) -> str:
    numbers = [index for index, part in enumerate(path) if part.isdigit()]
    return ".".join(path[: numbers[0] + 1 if numbers else min(shared + 1, len(path))])


def _merged(blocks: Sequence[str], limit: int) -> dict[str, str]:
    """Give every block the name of the scope it goes into: at most `limit` of them, neighbours together."""
    families = list(_gathered((_stem(block), block) for block in blocks).values())
    longest = max((len(family) for family in families), default=1)
    size = 1
    while size < longest and sum(math.ceil(len(family) / size) for family in families) > limit:
        size += 1
    parts = [family[start : start + size] for family in families for start in range(0, len(family), size)]
    if len(parts) > limit:  # many names without a number: whatever is next to each other
        size = math.ceil(len(blocks) / limit)
        parts = [list(blocks[start : start + size]) for start in range(0, len(blocks), size)]
    return {block: _span(part) for part in parts for block in part}


def _stem(block: str) -> str:
    stem, _, last = block.rpartition(".")
    return stem if last.isdigit() else block


def _span(part: Sequence[str]) -> str:
    first, last = part[0], part[-1]
    if first == last:
        return first
    numbered = last.rpartition(".")[2].isdigit() and _stem(first) == _stem(last)
    return f"{first}-{last.rpartition('.')[2] if numbered else last}"


def _by_group(
    names: Sequence[str], parameters: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> dict[str, list[str]]:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    place = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    members = [(place[id(parameters[name])], name) for name in names if id(parameters[name]) in place]
    return _gathered((f"group:{index}", name) for index, name in sorted(members, key=lambda member: member[0]))
