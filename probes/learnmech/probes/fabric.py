"""`recorder_for`: a recorder for a training loop with Lightning Fabric."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from learnmech.probes.arguments import loss_function
from learnmech.probes.distributed import hidden
from learnmech.probes.isolation import LossFunction
from learnmech.probes.probe import Probe
from learnmech.probes.recorder import Recorder


class _Precise:
    """What `fabric.setup` returned, without the strategy's wrapper: its precision, around the bare module.

    Fabric's own wrapper cannot be used: it refuses derivatives that are not taken by `fabric.backward`, and calling a
    data-parallel module would arm the reduction of training's next gradient.
    """

    def __init__(self, module: nn.Module, wrapper: Any, precision: Any) -> None:
        self._module = module
        self._wrapper = wrapper
        self._precision = precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._precisely(self._module)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        wrapped = self._wrapper._forward_module is not self._wrapper._original_module  # noqa: SLF001 (they have no other name)
        # as the wrapper does: methods marked as forward methods go the way of the forward pass where there is one
        return self._precisely(found) if wrapped and name in self._wrapper._forward_methods else found  # noqa: SLF001

    def _precisely(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._precision.convert_input((args, kwargs))
            with self._precision.forward_context():
                output = function(*args, **kwargs)
            return self._precision.convert_output(output)

        return run


def recorder_for(
    fabric: Any,
    model: nn.Module,
    optimizer: Any,
    loss_fn: LossFunction,
    probes: Iterable[Probe] | None = None,
    **settings: Any,
) -> Recorder:
    """Return a recorder that measures a loop with Fabric: tell it what a plain loop tells.

    Precision, loss scaler and strategy are Fabric's; `loss_fn` calls the model it is given, as the loop does, and
    needs no autocast of its own. In several processes give each a recorder, as in any loop.

    Args:
        fabric: The `lightning.fabric.Fabric`, launched.
        model: What `fabric.setup` returned.
        optimizer: The same.
        loss_fn: `loss_fn(model, batch)`, the scalar mean loss of a batch.
        probes: What to measure; None for `[Sharpness(), GradientNoiseScale(), WeightDynamics()]`.
        settings: Everything else that `Recorder` takes: `sink`, `run`, `budget`, `accumulation`, `gradient_clip`, ...

    Raises:
        TypeError: `loss_fn` is no function, the model was not set up by Fabric, or the strategy hides weights.
    """
    loss_function("loss_fn", loss_fn)
    original, forward = getattr(model, "_original_module", None), getattr(model, "_forward_module", None)
    if not isinstance(original, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected what fabric.setup(model, optimizer) returned")
    hiding = hidden(model, [optimizer], fabric.strategy)
    if hiding:
        raise TypeError(hiding)
    precision = fabric.strategy.precision

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return loss_fn(_Precise(module, model, precision), batch)

    precise: Any = None if str(precision.precision).startswith(("32", "64")) else False
    forward = getattr(forward, "_orig_mod", forward)  # compiled: the same weights, which nobody traces there
    return Recorder(
        forward if isinstance(forward, DistributedDataParallel) else original,
        optimizer,
        loss,
        probes,
        scaler=getattr(precision, "scaler", None),
        **{"precise": precise} | settings,
    )
