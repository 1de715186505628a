"""The journal of a model's Python state: everything a training step may write to besides parameters.

A step may append to lists, count in dicts, keep hidden state, update metrics, step its own scheduler. The journal notes
the attributes of every submodule and the contents of the containers in them, and puts them back. Tensors and arrays are
never written to: before each evaluation they are replaced by copies ("twins"), so that the originals keep their values
and their version counters whatever the step does in place.
"""

import array
import logging
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from learnmech.probes.isolation.containers import EXACT, SLOTS, Kind, kind_of, same_items
from learnmech.probes.isolation.rng import OWNED
from learnmech.probes.isolation.slots import has_slots
from learnmech.probes.isolation.withheld import holds_threads, stand_in

logger = logging.getLogger("learnmech.probes")

DEPTH = 5
"""Containers inside containers are followed so far: two levels beyond what was met in practice, dicts of lists of dicts
of tensors."""

WIDE = 10_000
"""Containers with more elements are noted, but not searched: a vocabulary or a data set kept in a list."""

LARGE = 64 * 2**20
"""Plain tensors above this many bytes are not copied (a data set kept on the device); the canary watches them."""

_FOREIGN = frozenset(
    {"abc", "asyncio", "builtins", "concurrent", "functools", "importlib", "inspect", "io", "learnmech", "lightning",
     "lightning_fabric", "lightning_utilities", "logging", "multiprocessing", "numpy", "pathlib", "pytorch_lightning",
     "queue", "re", "socket", "ssl", "subprocess", "tempfile", "threading", "torch", "torchmetrics", "tqdm", "typing",
     "urllib3", "wandb", "weakref", "_io", "_thread", "_weakref"}
)  # fmt: skip
"""Objects of these packages are no state of the model (a trainer, a logger, a lock). Modules and schedulers are."""


_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
"""Values that hold nothing: most attributes of a module."""


def _is_users(value: Any) -> bool:
    """Tell whether `value` is an object of a class of the user's."""
    return type(value).__module__.partition(".")[0] not in _FOREIGN


def _is_state_object(value: Any) -> bool:
    """Tell whether `value` is an object of the user's (or a scheduler) whose attributes are state of the model."""
    if not (type(value).__dictoffset__ or has_slots(value)) or holds_threads(value):
        return False
    module = type(value).__module__
    if isinstance(value, types.SimpleNamespace) or module.startswith("torch.optim.lr_scheduler"):
        return True
    return _is_users(value)


@dataclass(slots=True)
class _Entry:
    """One container as it was, and the elements of it that hold tensors."""

    container: Any
    kind: Kind
    content: Any
    numeric: bool = False


class Journal:
    """The Python state of `root` and its submodules at one moment.

    Args:
        root: The model.
        twins: Returns tensors to stand in for others, by identity of the other: leaves for parameters, copies of
            buffers. They are put in wherever the model holds a direct reference, and they are not copied.
    """

    def __init__(self, root: nn.Module, twins: Callable[[], Mapping[int, Tensor]] = dict) -> None:
        self._twins = twins
        self._known = frozenset(twins())
        self._others: Mapping[int, Tensor] = {}
        self._entries: list[_Entry] = []
        self._seen: set[int] = set()
        self._outside: dict[int, Any] = {}  # what stands in for open files, queues and the like, by identity
        self.generators: list[Any] = []
        self.optimizers: list[Optimizer] = []
        self.aliased: list[tuple[str, Tensor]] = []
        """Tensors too large to copy, with a name for each."""
        self._work: list[nn.Module] = [root]
        while self._work:
            self._note_module(self._work.pop())

    def _note_module(self, module: nn.Module) -> None:
        for submodule in module.modules():
            if id(submodule) not in self._seen:
                self._seen.add(id(submodule))
                self._visit(submodule.__dict__, 0, type(submodule).__name__)
                if has_slots(submodule):
                    self._note_content(submodule, SLOTS, 0, type(submodule).__name__)

    def _visit(self, value: Any, depth: int, name: str) -> bool:
        """Note what `value` holds; tell whether a tensor or array is in it, directly or through tuples."""
        if type(value) in _ATOMS:
            return False
        if (kind := EXACT.get(type(value))) is not None:
            self._note_container(value, kind, depth, name)
            return False
        return self._look_into(value, depth, name)

    def _look_into(self, value: Any, depth: int, name: str) -> bool:
        if isinstance(value, Tensor | np.ndarray):
            return self._note_numbers(value, name)
        if isinstance(value, nn.Module):
            if id(value) not in self._seen:
                self._work.append(value)  # kept in a list or an object: hidden from `modules()`
            return False
        if isinstance(value, OWNED):
            if all(value is not other for other in self.generators):
                self.generators.append(value)
            return False
        if isinstance(value, Optimizer):
            self.optimizers.append(value)
            return False
        if isinstance(value, tuple):
            found = [self._visit(item, depth + 1, name) for item in value] if depth <= DEPTH else []
            return any(found)
        if (kind := kind_of(value)) is not None:
            self._note_container(value, kind, depth, name)
            return False
        if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType):
            return False
        return self._look_into_object(value, depth, name)

    def _look_into_object(self, value: Any, depth: int, name: str) -> bool:
        kept = _is_state_object(value)
        if id(value) not in self._outside:
            found = stand_in(value, name, users=_is_users(value), kept=kept and depth <= DEPTH)
            if found is not None:
                self._outside[id(value)] = found
        if id(value) in self._outside:
            return True
        if depth <= DEPTH and kept:
            if type(value).__dictoffset__:
                self._note_container(value.__dict__, EXACT[dict], depth, f"{name}.{type(value).__name__}")
            if has_slots(value):
                self._note_container(value, SLOTS, depth, f"{name}.{type(value).__name__}")
        return False

    def _note_numbers(self, value: Any, name: str) -> bool:
        if id(value) in self._known:
            return True
        if isinstance(value, Tensor) and is_lazy(value):
            return False
        if value.nbytes > LARGE:
            if isinstance(value, Tensor):
                self.aliased.append((f"a tensor of {name}", value))
            return False
        return True

    def _note_container(self, container: Any, kind: Kind, depth: int, name: str) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        self._note_content(container, kind, depth, name)

    def _note_content(self, container: Any, kind: Kind, depth: int, name: str) -> None:
        entry = _Entry(container, kind, kind.copy(container))
        self._entries.append(entry)
        if not entry.content or depth > DEPTH or len(entry.content) > WIDE or kind.type in (bytearray, array.array):
            return
        if kind.type is dict:
            found = [self._visit(item, depth + 1, f"{name}.{key}") for key, item in entry.content.items()]
        else:
            found = [self._visit(item, depth + 1, name) for item in entry.content]
        entry.numeric = any(found)

    def rewind(self) -> dict[int, Any]:
        """Put every container back as it was noted, with fresh twins in the place of tensors and arrays.

        Returns:
            What stands in for each original, by its identity.
        """
        twins = self._twins()
        memo = self._outside | {key: self._others.get(id(twin), twin) for key, twin in twins.items()}
        for entry in self._entries:
            content = entry.content
            if entry.numeric:
                if entry.kind.type is dict:
                    content = {key: _twin(value, memo) for key, value in content.items()}
                else:
                    content = entry.kind.type(_twin(value, memo) for value in content)
            if not entry.kind.same(entry.container, content):
                entry.kind.refill(entry.container, content)
        return memo

    @contextmanager
    def standing_in(self, others: Mapping[int, Tensor]) -> Iterator[None]:
        """Put in `others` instead of the twins, by identity of the twin, in every `rewind` until the end."""
        self._others = others
        try:
            yield
        finally:
            self._others = {}

    def restore(self) -> None:
        """Put every container back as it was noted, originals in it; one that cannot be is reported."""
        for entry in reversed(self._entries):
            try:
                if not entry.kind.same(entry.container, entry.content):
                    entry.kind.refill(entry.container, entry.content)
            except Exception as error:  # noqa: BLE001 (every other container must still be put back)
                logger.error("could not put back a %s of the model: %r", entry.kind.type.__name__, error)


def _twin(value: Any, memo: dict[int, Any]) -> Any:
    """Return the stand-in of a tensor or array, of a tuple with such in it, or the value itself."""
    if isinstance(value, tuple):
        items = [_twin(item, memo) for item in value]
        if same_items(items, value):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, Tensor | np.ndarray):
        return memo.get(id(value), value)
    if id(value) not in memo:
        if (isinstance(value, Tensor) and is_lazy(value)) or value.nbytes > LARGE:
            return value
        memo[id(value)] = _copy(value)
    return memo[id(value)]


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    twin = value.detach().clone()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(twin, requires_grad=value.requires_grad)
    return twin.requires_grad_(value.requires_grad and (torch.is_floating_point(value) or torch.is_complex(value)))
