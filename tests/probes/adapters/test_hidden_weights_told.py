"""DeepSpeed, and strategies by their names: every probe says why there is nothing to see, and the training goes on.

DeepSpeed is not installed here: fakes have the names and marks that its classes have, and gradients that are elsewhere.
"""

import logging
import warnings

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.distributed import hidden
from learnmech.probes.fabric import recorder_for
from learnmech.probes.huggingface import MechanicsCallback
from learnmech.probes.lightning import MechanicsMonitor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import SingleDeviceStrategy as FabricStrategy
    from lightning.pytorch.strategies import SingleDeviceStrategy

UPDATES = 5
SEEN = {"sharpness", "noise_trace", "weight_norm", "update_norm", "loss", "grad_norm"}


def probes():
    return [Sharpness(every(1)), GradientNoiseScale(every(1)), WeightDynamics(every(1)), Vitals(every(1))]


class DeepSpeedEngine(nn.Module):
    """Counts its forward passes: each would be a collective of all processes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.passes = module, 0

    def forward(self, x):
        self.passes += 1
        return self.module(x)


class PipelineEngine(DeepSpeedEngine):
    """One of the engines that derive from it."""


class Elsewhere:
    """As the optimizers of ZeRO: none of torch's, which steps with gradients that it has taken from the parameters."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, lr=0.1)
        self.param_groups = self.inner.param_groups

    def step(self):
        self.inner.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def marked(mark):
    model = network()
    for index, parameter in enumerate(model.parameters()):
        setattr(parameter, mark, index)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def engine(kind):
    model = kind(network())
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def optimizer_of_zero():
    model = network()
    return model, Elsewhere(model.parameters())


def optimizer_of_accelerate():
    from accelerate.optimizer import AcceleratedOptimizer

    model, optimizer = optimizer_of_zero()
    wrapper = type("DeepSpeedOptimizerWrapper", (AcceleratedOptimizer,), {"__init__": lambda self: None})()
    wrapper.optimizer, wrapper.scaler = optimizer, None
    return model, wrapper


CASES = {
    "engine": lambda: engine(DeepSpeedEngine),
    "engine derived": lambda: engine(PipelineEngine),
    "ZeRO-3": lambda: marked("ds_id"),
    "ZeRO-1": lambda: marked("_hp_mapping"),
    "optimizer": optimizer_of_zero,
    "Accelerate": optimizer_of_accelerate,
}


def loss_fn(model, batch):
    return model(batch).square().mean()


def refused(found, *names):
    """Check that everything that probes measure was refused once, with one reason that has these words in it."""
    rows = [(frame.step, m) for frame in found.frames for m in frame.measurements]
    probed = [(step, m) for step, m in rows if m.status.value != "ok"]
    assert len({(m.observable, m.scope) for _, m in probed}) == len(probed)
    assert {m.observable for _, m in probed} >= SEEN
    assert not {m.observable for _, m in rows if m.status.value == "ok"} & SEEN
    assert {m.status.value for _, m in probed} == {"unsupported"}
    (reason,) = {m.reason for _, m in probed}
    assert all(name in reason for name in names), reason
    assert found.kinds().count("probe_disabled") == 4
    assert found.values("learning_rate")
    assert found.kinds()[0] == "run_started"
    assert found.kinds()[-1] == "run_finished"
    return reason


@pytest.mark.parametrize("case", CASES)
def test_a_loop_with_deepspeed(case, spool):
    def train(sink):
        model, optimizer = CASES[case]()
        used = getattr(optimizer, "optimizer", optimizer)
        recorder = Recorder(model, optimizer, loss_fn, probes(), sink=sink, strict=True).__enter__() if sink else None
        for step in range(UPDATES):
            batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            loss = loss_fn(model, batch)
            loss.backward()
            if recorder:
                recorder.after_backward(batch)
            used.step()
            for parameter in model.parameters():
                parameter.grad = None
            if recorder:
                recorder.after_step(batch, loss)
        if recorder:
            recorder.close()
        return model

    measured, plain = train(spool.url), train(None)
    assert all(torch.equal(p, q) for p, q in zip(measured.parameters(), plain.parameters(), strict=True))
    assert getattr(measured, "passes", UPDATES) == UPDATES
    found = spool()
    refused(found, "DeepSpeed", "Use fully_shard (FSDP2)")
    context = found.context
    assert "optimizer" in context
    assert not {"parameters", "trainable"} & context.keys()
    assert not found.values("batch_size")


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy", "XLAFSDPStrategy"])
def test_a_monitor_under_a_strategy_by_its_name(name, spool):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.steps = network(), 0

        def training_step(self, batch, _):
            self.steps += 1
            return loss_fn(self.net, batch)

        def on_after_backward(self):
            for parameter in self.parameters():
                parameter.grad = None  # as ZeRO does

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    strategy = type("Own", (type(name, (SingleDeviceStrategy,), {}),), {})("cpu")
    loader = torch.utils.data.DataLoader(torch.randn(4 * UPDATES, 4), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own
        pl.Trainer(
            max_steps=UPDATES,
            accelerator="cpu",
            strategy=strategy,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[MechanicsMonitor(probes(), sink=spool.url, strict=True)],
        ).fit(module, loader)
    assert module.steps == UPDATES
    refused(spool(), "DeepSpeed" if name.startswith("Deep") else "FSDP1", "fully_shard")


@pytest.mark.parametrize(("flag", "word"), [("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")])
def test_the_trainer_of_transformers_says_so_itself(flag, word, hugging, spool):
    class Told(MechanicsCallback):
        def on_train_begin(self, *args, **kwargs):
            setattr(trainer, flag, True)  # from here on, as nothing of it is installed
            super().on_train_begin(*args, **kwargs)
            setattr(trainer, flag, False)

    trainer = hugging.trainer(Told(probes(), sink=spool.url, strict=True))
    trainer.train()
    plain = hugging.trainer()
    plain.train()
    pairs = zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    refused(spool(), word, "fully_shard (FSDP2)", "DistributedDataParallel")


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy", "DataParallelStrategy"])
def test_fabric_refuses_with_the_same_words(name):
    strategy = type(name, (FabricStrategy,), {})("cpu")
    model, optimizer = network(), None
    fabric = Fabric(accelerator="cpu", strategy=strategy)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="nothing is measured under it") as error:
        recorder_for(fabric, wrapped, optimizer, loss_fn)
    assert str(error.value) == hidden(model, [], strategy)


def test_what_is_whole_is_not_hidden(caplog):
    with caplog.at_level(logging.WARNING):
        assert hidden(network()) == ""
        model = network()
        assert (
            hidden(nn.DataParallel(model), [torch.optim.SGD(model.parameters(), lr=0.1)], FabricStrategy("cpu")) == ""
        )
        fused = type("FusedAdam", (torch.optim.SGD,), {"__module__": "deepspeed.ops.adam.fused_adam"})
        assert hidden(model, [fused(model.parameters(), lr=0.1)]) == ""
    assert not caplog.records
