"""Between the update and the read-back nothing looks at a number: shown where looking is an error."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes import WeightDynamics, every
from learnmech.probes.probe import TrainingView

LOOKING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique")


class NoLooking(TorchDispatchMode):
    """Every operation that needs a number on the host raises."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(word in name for word in LOOKING):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def views(model, optimizer, deferred, scale):
    """Return the view before and the view after an update, as the engine makes them."""
    parameters = dict(model.named_parameters())

    def view(gradients):
        return TrainingView(
            step=0,
            model=model,
            optimizers=[optimizer],
            parameters=parameters,
            isolate=None,
            defer=lambda values, build: deferred.append((values, build)),
            hold=lambda: {name: p.detach().clone() for name, p in parameters.items()},
            gradients=gradients,
            gradient_scale=scale,
        )

    return view({name: p.grad for name, p in parameters.items()}), view(None)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_numbers_stay_on_the_device(device, dtype):
    """On the meta device there is no number to look at, so that any attempt raises; on the CPU a mode watches."""
    model = nn.ParameterDict(
        {f"p{i}": nn.Parameter(torch.ones(5, i + 1, device=device, dtype=dtype)) for i in range(3)}
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    rate = torch.tensor(0.1, device=device)
    optimizer.param_groups[0]["lr"] = rate if device == "meta" else 0.25
    probe = WeightDynamics(every(1), per_parameter=True, parameter_groups=True)
    deferred = []
    before, after = views(model, optimizer, deferred, torch.ones((), device=device))
    with NoLooking():
        probe.prepare(before)
        rate.fill_(7.0)  # a scheduler sets the next one: what was in force is held by a copy
        assert probe.measure(after) == []
    ((values, build),) = deferred
    assert {value.device.type for value in values} == {device}
    assert [value.numel() for value in values] == [9, 6, 1] + [1] * (device == "meta")
    assert all(value is not rate for value in values)
    numbers = [1.0] * 16 + [0.25] * (device == "meta")
    found = {(m.observable, m.scope): m.value for m in build(numbers)}
    assert {name for name, _ in found} >= {"weight_norm", "grad_norm", "angular_update"}
    # O_L / O_R of one measurement, (<w, g> + lambda |w|^2) / (|s|^2 / (2 eta)) with all sums 1
    assert found["fluctuation_dissipation", "p0"] == pytest.approx(1.1 * 2.0 * 0.25)


def test_the_mode_would_notice():
    with NoLooking(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3).sum().item()
    with pytest.raises(RuntimeError):
        torch.ones(3, device="meta").sum().item()
