"""Loops with Fabric and Accelerate: the numbers of a loop without them, and bit for bit the same training."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from learnmech.probes import Recorder, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.fabric import recorder_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from accelerate import Accelerator
    from lightning.fabric import Fabric

UPDATES, MICRO, CLIP = 5, 3, 0.05


def task():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batches = [(torch.randn(4, 5), torch.randint(3, (4,))) for _ in range(UPDATES * MICRO)]
    return model, optimizer, batches


def loss_fn(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def probes():
    return [Sharpness(every(1), tol=1e-4), WeightDynamics(every(1)), Vitals(every(1))]


class Silent:
    """Stands where a recorder would be."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def after_backward(self, batch):
        return None

    def after_step(self, batch, loss):
        return None


def settings(sink):
    return {"sink": sink, "gradient_clip": CLIP, "accumulation": MICRO, "strict": True}


def plain(sink, bf16=False):
    model, optimizer, batches = task()

    def autocast_loss(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(batch[0])
        return functional.cross_entropy(output.float(), batch[1])

    with Recorder(model, optimizer, autocast_loss, probes(), **settings(sink)) as recorder:
        for index, batch in enumerate(batches, 1):
            loss = autocast_loss(model, batch)
            (loss / MICRO).backward()
            recorder.after_backward(batch)
            if index % MICRO == 0:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
                recorder.after_step(batch, loss)
    return model


def with_fabric(sink, bf16=False):
    model, optimizer, batches = task()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if bf16 else "32-true")
    wrapped, stepper = fabric.setup(model, optimizer)
    with recorder_for(fabric, wrapped, stepper, loss_fn, probes(), **settings(sink)) if sink else Silent() as recorder:
        for index, batch in enumerate(batches, 1):
            loss = loss_fn(wrapped, batch)
            with fabric.no_backward_sync(wrapped, enabled=index % MICRO != 0):
                fabric.backward(loss / MICRO)
            recorder.after_backward(batch)
            if index % MICRO == 0:
                fabric.clip_gradients(wrapped, stepper, max_norm=CLIP)
                stepper.step()
                stepper.zero_grad()
                recorder.after_step(batch, loss)
    return model


def with_accelerate(sink, bf16=False):
    model, optimizer, batches = task()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no", gradient_accumulation_steps=MICRO)
    wrapped, stepper = accelerator.prepare(model, optimizer)
    with Recorder(wrapped, stepper, loss_fn, probes(), **settings(sink)) if sink else Silent() as recorder:
        for batch in batches:
            with accelerator.accumulate(wrapped):
                loss = loss_fn(wrapped, batch)
                accelerator.backward(loss)
                recorder.after_backward(batch)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), CLIP)
                stepper.step()
                stepper.zero_grad()
            if accelerator.sync_gradients:
                recorder.after_step(batch, loss)
    return model


LOOPS = pytest.mark.parametrize(
    ("loop", "bf16"), [(with_fabric, False), (with_fabric, True), (with_accelerate, False), (with_accelerate, True)]
)


@LOOPS
def test_values_are_those_of_a_plain_loop(loop, bf16, spools):
    """The same training without the framework: what it wraps, scales and casts must not show in any number."""
    mine, theirs = spools(), spools()
    plain(theirs.url, bf16)
    loop(mine.url, bf16)
    found, expected = mine(), theirs()
    for name in ("loss", "grad_norm", "sharpness", "update_norm", "weight_norm", "learning_rate", "batch_size"):
        assert found.values(name) == pytest.approx(expected.values(name), rel=1e-5), name
        assert [m.method for _, m in found.all(name)] == [m.method for _, m in expected.all(name)]
    assert len(found.values("sharpness")) == UPDATES
    assert found.values("batch_size") == {0: 4.0 * MICRO}
    assert min(found.values("grad_norm").values()) > CLIP  # seen before it was clipped
    assert found.context["optimizer"] == "SGD"


@LOOPS
def test_training_is_the_same_bit_for_bit(loop, bf16, spool, digest, training_state):
    states = []
    for sink in (spool.url, ""):
        torch.manual_seed(0)
        states.append(digest(training_state(loop(sink, bf16))))
    assert states[0] == states[1]
    assert {m.status.value for _, m in spool().all("sharpness")} == {"ok"}


def test_fabric_is_asked_for_what_it_set_up(spool):
    model, optimizer, _ = task()
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(TypeError, match=r"fabric\.setup"):
        recorder_for(fabric, model, optimizer, loss_fn)
    wrapped, stepper = fabric.setup(model, optimizer)
    with pytest.raises(TypeError, match="loss_fn is 3"):
        recorder_for(fabric, wrapped, stepper, 3)


def test_a_forward_method_is_as_precise_as_in_training():
    """Where a strategy wraps the module, Fabric sends marked methods through its forward pass, autocast included."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.note = "kept"

        def training_step(self, x):
            return self.layer(x).dtype, x.dtype

    from learnmech.probes.fabric import _Precise

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = fabric.setup(Model())
    stand_in = _Precise(wrapped.module, wrapped, fabric.strategy.precision)
    x = torch.randn(2, 2)
    assert stand_in.training_step(x) == wrapped.training_step(x) == (torch.float32, torch.float32)
    wrapped._forward_module = nn.parallel.DataParallel(wrapped.module, device_ids=[])  # a wrapper that only hands on
    assert stand_in.training_step(x) == wrapped.training_step(x) == (torch.bfloat16, torch.bfloat16)
    assert stand_in.note == "kept"
