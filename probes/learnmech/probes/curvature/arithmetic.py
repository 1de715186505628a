"""Curvature in float32 where training computes in half precision: the function's curvature, without the rounding.

Rounding to bfloat16 or float16 is no part of what decides stability. Over the length of a step it averages out: along
the top vectors of five networks (MLPs, a CNN with batch norm, a transformer; initial and trained), differences of the
gradients that training computes in bfloat16, 1 % of |w| apart, differ from the same in float64 by 0.5 % and at most
2.4 %, at 3 % of |w| by 0.2 % and at most 1 %. Second derivatives of the rounded function follow the rounding: products
were off by 0.2 to 2 % there, and where training goes on to a small loss top eigenvalues by up to 4.8 %, elsewhere by up
to 14 %. In float32 the eigenvalues of 90 readings (five networks, trained to losses down to 6e-4; bfloat16 and float16
by autocast, bfloat16 by weights) were those of float64 to 2e-5.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast
from torch.overrides import TorchFunctionMode

from learnmech.probes.curvature.objective import NonFinite, Objective
from learnmech.probes.isolation import PureLoss, Refusal, Skip

T = TypeVar("T")

COARSE = (torch.bfloat16, torch.float16)

SAME = 0.1
"""Relative difference between the losses in both arithmetics that still counts as none: it was below 0.02 on the
networks above. A model that takes another way without autocast is another function."""

IN_FLOAT32 = "_in_float32"
"""What is added to `method`."""

_CASTS = frozenset({Tensor.bfloat16, Tensor.half})
_DIFFERENTIATE = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})
_IN_PLACE = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"})


class Arithmetic:
    """Evaluates a loss in float32 where training computes in half precision, if it can be; remembers if it cannot.

    Autocast is off for the time of a measurement, and half-precision parameters, buffers and inputs are widened before
    every operation (exactly: each half-precision number is a float32 one). Kernels that take nothing but half precision
    fail then; so does activation checkpointing with half-precision weights, which computes again out of our sight.
    Everything stays in training's arithmetic then, and products say how far their rounding goes
    (`learnmech.probes.curvature.operators.rounded`). So do sharded parameters.

    Args:
        allowed: False leaves everything in training's arithmetic.

    Attributes:
        wide: Measurements are in float32 although training is not.
        reason: Why they are not, '' if training is in float32 itself or they are.
    """

    def __init__(self, *, allowed: bool = True) -> None:
        self.allowed = allowed
        self.wide = False
        self.reason = ""
        self._held: ExitStack | None = None

    @property
    def suffix(self) -> str:
        """What `method` says of it."""
        return IN_FLOAT32 if self.wide else ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the measurement that is under way."""
        return self.__dict__ | {"_held": None}

    def around(self, work: Callable[[Any], T]) -> Callable[[Any], T]:
        """Return the work of a measurement, done in float32 once that is known to be possible and needed."""

        def wrapped(loss: Any) -> T:
            if not self.allowed or not isinstance(loss, PureLoss):
                return work(loss)
            with ExitStack() as stack:
                self._held = stack
                if self.wide:
                    stack.enter_context(_float32())
                try:
                    return work(loss)
                finally:
                    self._held = None

        return wrapped

    def settle(self, objective: Objective, check: Callable[[], float]) -> None:
        """Find out, from a loss evaluated anyway, whether training is in half precision; if so, try float32.

        Args:
            objective: The loss.
            check: Evaluates it in forward passes, and returns it. It runs in the arithmetic of the measurement.

        Raises:
            NonFinite: The loss is NaN or infinite.
            Refusal: The model cannot be isolated.
            Skip: There is no loss for this batch.
            OutOfMemoryError: There is not enough memory.
        """
        if self._held is None or self.wide:
            check()
            return
        watch = _Watch()
        with watch:
            value = check()
        coarse = watch.seen or any(p.dtype in COARSE for p in objective.parameters)
        if not coarse or not math.isfinite(value):
            return
        with ExitStack() as trial:
            try:
                trial.enter_context(_float32())
                wide = float(objective.loss_along())
                objective.gradient_along()
            except (torch.OutOfMemoryError, NonFinite, Refusal, Skip):
                raise
            except Exception as error:  # noqa: BLE001 (a kernel may refuse float32 in any way it likes)
                self.reason = f"measured in training's half precision: in float32 the loss fails ({error})"
                return
            if not abs(wide - value) <= SAME * abs(value):
                self.reason = (
                    f"measured in training's half precision: in float32 the loss is {wide:.4g}, not {value:.4g}"
                )
                return
            self.wide, self.reason = True, ""
            self._held.push(trial.pop_all())

    def widen(self, objective: Objective) -> None:
        """Take an objective at its weights in float32, if that is the arithmetic of the measurement."""
        if not self.wide or self._held is None or all(p.dtype not in COARSE for p in objective.parameters):
            return
        objective.parameters = [
            p.detach().float().requires_grad_() if p.dtype in COARSE else p for p in objective.parameters
        ]
        objective.resolution = max(torch.finfo(p.dtype).eps for p in objective.parameters)


@contextmanager
def _float32() -> Iterator[None]:
    """Keep autocast off, whoever switches it on, and widen what is in half precision before every operation."""
    entered = autocast.__enter__

    def enter(self: autocast) -> Any:
        result: Any = entered(self)  # type: ignore[no-untyped-call]
        torch.set_autocast_enabled(self.device, False)
        return result

    accelerator = torch.accelerator.current_accelerator()
    known = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    devices = [device for device in sorted(known) if torch.is_autocast_enabled(device)]
    autocast.__enter__ = enter  # type: ignore[method-assign]  # a loss may enter autocast by itself, as most do
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        with _Wide():
            yield
    finally:
        for device in devices:
            torch.set_autocast_enabled(device, True)
        autocast.__enter__ = entered  # type: ignore[method-assign]


class _Wide(TorchFunctionMode):
    """Widens half-precision tensors before every operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on float32 in the place of half precision."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _DIFFERENTIATE or name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        if func in _CASTS:
            return Tensor.float(*args, **kwargs)
        in_place = (name.endswith("_") and not name.startswith("__")) or name in _IN_PLACE
        first = args[:1] if in_place else tuple(map(_widened, args[:1]))
        rest = map(_widened, args[1:])
        return func(*first, *rest, **{k: v if k == "out" else _widened(v) for k, v in kwargs.items()})


class _Watch(TorchFunctionMode):
    """Notes whether an operation returned half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at its result."""
        result = func(*args, **(kwargs or {}))
        self.seen = self.seen or (isinstance(result, Tensor) and result.dtype in COARSE)
        return result


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in COARSE else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in COARSE else value
    if type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
        return type(value)(map(_widened, value))
    return value
