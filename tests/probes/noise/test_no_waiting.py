"""Between the forward pass and the read-back nothing looks at a number: shown where there are no numbers to look at.

On the meta device tensors have shapes and no elements, so that whatever reads one raises, in whatever way. On the CPU
the same code runs with a mode that raises at operations that need a number, and its row is compared with the gradients.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes import GradientNoiseScale, every
from learnmech.probes.noise.live import LivePieces, _column
from learnmech.probes.noise.norm_proxy import LiveNorms
from learnmech.probes.noise.per_example import check
from learnmech.probes.noise.per_example.norms import FITTED
from learnmech.probes.probe import TrainingView

SIZE = 8
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero", "coalesce")
CASES = {
    # source, micro-batches, processes, whether after_backward is called, settings
    "pieces": ("pieces", 2, 1, True, {}),
    "pieces that nobody told apart": ("pieces", 2, 1, False, {}),
    "pieces with units": ("pieces", 2, 1, True, {"weighted": True}),
    "ranks": ("pieces", 1, 2, False, {}),
    "ranks and pieces": ("pieces", 3, 2, True, {}),
    "examples": ("examples", 1, 1, False, {}),
    "examples of all pieces": ("examples", 2, 1, True, {}),
    "norm layers": ("norm_layers", 1, 1, False, {}),
}


class NoWaiting(TorchDispatchMode):
    """Raises where the device would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(wait in str(func) for wait in WAITS):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def network(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).to(device)


def seen(case, device, monkeypatch, *, scale=None):
    """What the probe hands over of one update, and how it makes measurements from it."""
    if device == "meta":  # which has neither autocast nor random numbers
        drawn = lambda _, like, length, side: like.new_ones(check.DIRECTIONS, length)
        monkeypatch.setattr(check.Directions, "of", drawn)
    source, micro, processes, told, settings = CASES[case]
    if settings:
        settings = settings | {"units": lambda batch: batch.shape[0] * torch.ones((), device=device)}
    model, deferred, totals = network(device), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = GradientNoiseScale(every(1), source=source, **settings)
    probe.expect(micro, processes)
    if source == "norm_layers":  # as after the exact measurements to which its factor is fitted
        probe._choice.turn = FITTED
        probe._choice.tested("")

    def total(vector):
        totals.append(vector)
        return vector * processes

    view = TrainingView(
        3,
        model,
        [optimizer],
        dict(model.named_parameters()),
        None,
        lambda values, build: deferred.append((values, build)),
    )
    view.micro_batches, view.processes, view.total, view.examples = micro, processes, total, SIZE
    view.update_examples, view.complete = SIZE * micro * processes, False
    data = [torch.randn(SIZE, 4).to(device) for _ in range(micro)]
    view.batch = data[-1]
    with NoWaiting():
        probe.arm(view)
        for batch in data:
            (model(batch).square().mean() / micro * (1.0 if scale is None else scale)).backward()
            if told:
                probe.next_piece(batch, SIZE)
        view.complete, view.gradients = True, {name: p.grad for name, p in view.parameters.items()}
        if scale is not None:
            view.gradient_scale = view.loss_scale = scale
        probe.prepare(view)
        live = probe._live
        optimizer.step()
        assert probe.measure(view) == []
    assert isinstance(live, LiveNorms) == (source == "norm_layers")
    assert live.trouble == ""
    assert len(totals) == 1, "every process takes part once"
    ((values, build),) = deferred
    return values, build


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_numbers_stay_on_the_device(case, device, scaled, monkeypatch):
    scale = torch.full((), 1024.0, device=device) if scaled else None
    values, build = seen(case, device, monkeypatch, scale=scale)
    assert {value.device.type for value in values} == {device}
    numbers = [1.0] * sum(value.numel() for value in values)
    if device == "cpu":
        numbers = torch.cat([value.double().reshape(-1) for value in values]).tolist()
    found = {m.observable: m for m in build(numbers) if not m.scope}
    assert {"noise_trace", "grad_sq_norm"} <= found.keys()
    if device == "cpu" and CASES[case][0] == "examples" and not scaled:
        assert found["noise_trace"].status == "ok", found["noise_trace"].reason


def test_counts_of_the_host_are_no_copies_to_wait_for():
    """`units=` may count in a batch that is still on the host."""
    host = [torch.tensor(8), torch.tensor([8.0])]
    assert _column(host, torch.device("meta")) == 8.0
    assert _column(host, torch.device("cpu")).tolist() == [8.0, 8.0]


@pytest.mark.parametrize("read", [
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.nonzero,
    torch.Tensor.unique, float, bool, lambda t: t[t > 0], lambda t: t.to("cpu"), lambda t: torch.equal(t, t + 1),
    lambda t: t.repeat_interleave(t.long()),
])  # fmt: skip
@pytest.mark.parametrize("place", ["look", "tally"])
def test_whatever_reads_a_number_would_be_noticed(read, place, monkeypatch):
    """A number read in one place, in each way there is."""
    whole = getattr(LivePieces, place)

    def reading(self, view):
        read(next(iter(view.parameters.values())).grad.sum())
        return whole(self, view)

    monkeypatch.setattr(LivePieces, place, reading)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, TypeError)):
        seen("pieces", "meta", monkeypatch)
