"""Hyperparameters that are tensors: right at every step, and read from a device without waiting for it."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.readback import Readback


def watched(**settings):
    """Return an optimizer of one parameter `w` with settings put into its group, and what watches it."""
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([w], lr=0.1, foreach=False)
    optimizer.param_groups[0].update(settings)
    return optimizer.param_groups[0], Hyperparameters([optimizer], {id(w): "w"})


class Device:
    """Takes tensors as a device does whose numbers arrive later; the meta device has none to look at."""

    def __init__(self, hyperparameters):
        self.waiting, self.told, self.step = [], [], 0
        self.hyperparameters = hyperparameters

    def submit(self, values, then):
        assert all(value.device.type == "meta" for value in values)
        if values:
            self.waiting.append((len(values), then))
        else:
            then([])

    def read(self):
        step, self.step = self.step, self.step + 1
        self.hyperparameters.read(
            self.submit, lambda found: self.told.extend((step, m.observable, m.value) for m in found)
        )

    def arrives(self, *numbers):
        count, then = self.waiting.pop(0)
        assert count == len(numbers)
        then(list(numbers))

    def rates(self):
        return [(step, value) for step, name, value in self.told if name == "learning_rate"]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_rate_on_the_cpu_is_right_at_every_step(replaced):
    """A tensor that takes the place of another may get its address, and its version is 0 again."""
    group, hyperparameters = watched(lr=torch.tensor(0.1))
    for step in range(50):
        if replaced:
            group["lr"] = torch.tensor(7.0)
            group["lr"] = torch.tensor(0.1 / (step + 1))  # where the one that was read lay, if nobody holds that
        else:
            group["lr"].fill_(0.1 / (step + 1))
        found = []
        hyperparameters.read(Readback().submit, found.extend)
        assert hyperparameters.by_name["w"]["learning_rate"] == float(group["lr"])
        assert [m.value for m in found if m.observable == "learning_rate"] == [float(group["lr"])]
    group["lr"] = 0.2
    hyperparameters.read(Readback().submit, found.extend)
    assert found[-1].value == hyperparameters.by_name["w"]["learning_rate"] == 0.2


def test_settings_in_a_list_may_be_tensors_too():
    group, hyperparameters = watched(betas=[torch.tensor(0.5), 0.9])
    seen = []
    for change in (lambda: None, lambda: group["betas"][0].fill_(0.25), lambda: group["betas"].__setitem__(1, 0.75)):
        change()
        hyperparameters.read(Readback().submit, seen.extend)
    assert [(m.observable, m.value) for m in seen if m.observable.startswith("beta")] == [
        ("beta1", 0.5), ("beta2", 0.9), ("beta1", 0.25), ("beta2", 0.75),
    ]  # fmt: skip


def test_a_rate_on_a_device_is_recorded_at_its_step_when_it_arrives():
    group, hyperparameters = watched(lr=torch.tensor(0.1, device="meta"))
    device = Device(hyperparameters)
    device.read()
    assert "weight_decay" in hyperparameters.by_name["w"]
    assert "learning_rate" not in hyperparameters.by_name["w"]
    for _ in range(3):  # as a scheduler does, while nothing has arrived
        group["lr"].fill_(0.0)
        device.read()
    device.read()
    assert len(device.waiting) == 4, "not read again where it has not changed"
    for rate in (0.4, 0.3, 0.3, 0.1):
        assert "learning_rate" not in hyperparameters.by_name["w"], "one that is outdated is not in force"
        device.arrives(rate)
    assert device.rates() == [(0, 0.4), (1, 0.3), (3, 0.1)]
    assert hyperparameters.by_name["w"]["learning_rate"] == 0.1


def test_changes_are_told_in_order_where_a_number_follows_a_tensor():
    group, hyperparameters = watched(lr=torch.tensor(0.1, device="meta"))
    device = Device(hyperparameters)
    device.read()
    for rate in (0.2, 0.3):
        group["lr"] = rate
        device.read()
        assert hyperparameters.by_name["w"]["learning_rate"] == rate
    for _ in range(3):
        device.arrives(0.1)
    group["lr"] = 0.4
    device.read()
    assert device.rates() == [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)]


def test_groups_that_share_a_tensor_read_it_once():
    rate = torch.tensor(0.1, device="meta")
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = Device(Hyperparameters([optimizer], {id(a): "a", id(b): "b"}))
    device.read()
    device.arrives(0.3)
    assert device.rates() == [(0, 0.3)]
    assert [values["learning_rate"] for values in device.hyperparameters.by_name.values()] == [0.3, 0.3]


@pytest.mark.parametrize("interval", [1, 3, 5])
def test_the_share_of_decay_is_that_of_the_rate_in_force(spool, interval):
    """Against eta lambda |w| / |s| of the training itself."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), weight_decay=0.1, foreach=False)
    loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    flat = lambda: torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    expected = {}
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(interval))], sink=spool.url, budget=0) as recorder:
        for step in range(30):
            optimizer.param_groups[0]["lr"] = torch.tensor(0.1 / (step + 1))
            batch = torch.randn(8, 4), torch.randn(8, 4)
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            before = flat()
            optimizer.step()
            expected[step] = 0.01 / (step + 1) * float(before.norm() / (flat() - before).norm())
            recorder.after_step(batch, loss)
    run = spool()
    found = run.values("weight_decay_share")
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-3)
    assert len(found) == len(range(0, 30, interval))
    assert run.values("learning_rate") == {step: float(torch.tensor(0.1 / (step + 1))) for step in range(30)}
