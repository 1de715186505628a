"""Do no harm: a training with every probe at every step is bit for bit the training without the monitor.

Each module of the zoo keeps state in another place that a replayed training step writes to. Compared are weights,
gradients, buffers, optimizer state, training flags, all random streams, Python state and callback metrics at four hooks
of every step, and every row that was logged.
"""

import collections
import copy
import dataclasses
import random
import types
import typing

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes.lightning import MechanicsMonitor


@pytest.fixture
def monitored(train, same, eager_probes, recorded, tmp_path):
    """Train a module without and with the monitor, compare, and return what was recorded."""

    def run(make, *, probes=None, monitor=None, **settings):
        plain = train(make, **settings)
        assert plain.error is None, plain.error
        watcher = monitor or MechanicsMonitor(probes or eager_probes(), sink=f"spool:{tmp_path}/spool")
        watched = train(make, watcher, **settings)
        assert watched.error is None, watched.error
        same(plain, watched)
        return recorded(tmp_path / "spool")

    return run


def passed(run):
    """Assert that the replay was found true, and that curvature and noise were measured without a failure."""
    tests = run.of_kind("self_test")
    assert [event.severity for event in tests] == ["info"], [event.message for event in tests]
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].data["traceback"]
    assert len(run.all("sharpness")) >= 3
    assert len(run.all("noise_trace")) >= 3
    assert len(run.all("update_norm")) >= 3


def refused(run, *words):
    """Assert that probes which evaluate the loss were refused with a reason, and the others went on."""
    (sharpness,) = run.all("sharpness")
    assert sharpness[1].status == "unsupported"
    assert all(word in sharpness[1].reason for word in words), sharpness[1].reason
    assert len(run.all("update_norm")) >= 3


# --- modules whose every side effect is undone ------------------------------------------------------------------------


def test_batch_norm_dropout_and_metrics(monitored, zoo):
    class Metrics(zoo.Base):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.net(x)
            self.accuracy(logits, y)
            self.mean.update(logits.mean())
            loss = cross_entropy(logits, y)
            self.log_dict({"loss": loss, "accuracy": self.accuracy, "mean": self.mean}, on_step=True, on_epoch=True)
            return {"loss": loss, "logits": logits.detach()}

    passed(monitored(Metrics))


def test_convolution_with_batch_norm(monitored, zoo):
    class Convolution(zoo.Base):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                nn.Linear(16, 3),
            )  # fmt: skip

    run = monitored(Convolution, dataset=zoo.Noisy((1, 5, 5)))
    passed(run)
    assert run.context["batch_coupling"] == "BatchNorm2d"


def test_transformer(monitored, zoo):
    class Transformer(zoo.Base):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
            self.out = nn.Linear(8, 3)

        def loss_of(self, x, y):
            return cross_entropy(self.out(self.inner(x).mean(dim=1)), y)

    passed(monitored(Transformer, dataset=zoo.Noisy((5, 4))))


def test_batch_is_popped_and_overwritten(monitored, zoo):
    class Popped(zoo.Base):
        def training_step(self, batch, batch_idx):
            y = batch.pop("labels")
            x = batch["inputs"].mul_(0.5)
            batch["seen"] = True
            return self.loss_of(x, y)

    def collate(items):
        x, y = zip(*items, strict=True)
        return {"inputs": torch.stack(x), "labels": torch.stack(y), "names": ["a"] * len(x)}

    passed(monitored(Popped, collate=collate))


class Pair(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Sample:
    pair: Pair
    weights: list


def test_batch_of_nested_containers(monitored, zoo):
    class Nested(zoo.Base):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

        def training_step(self, batch, batch_idx):
            batch.weights[0].add_(1)
            batch.weights.append(None)
            return self.loss_of(batch.pair.x, batch.pair.y)

    def collate(items):
        x, y = zip(*items, strict=True)
        return Sample(Pair(torch.stack(x), torch.stack(y)), [torch.ones(len(x)), {"deep": torch.ones(len(x))}])

    passed(monitored(Nested, collate=collate))


def test_lists_deques_counters_and_objects(monitored, zoo):
    class Keeps(zoo.Base):
        def __init__(self):
            super().__init__()
            self.outputs = []
            self.recent = collections.deque(maxlen=3)
            self.counts = {"steps": 0, "nested": {"sizes": []}}
            self.names = set()
            self.helper = types.SimpleNamespace(total=0.0, ema=torch.zeros(()))
            self.array = np.zeros(2)

        def training_step(self, batch, batch_idx):
            loss = self.loss_of(*batch)
            self.outputs.append(loss.detach())
            self.recent.append(float(loss.detach()))
            self.counts["steps"] += 1
            self.counts["nested"]["sizes"].append(len(batch[0]))
            self.names.add(batch_idx)
            self.helper.total += float(loss.detach())
            self.helper.ema.mul_(0.9).add_(loss.detach(), alpha=0.1)
            self.array += 1
            self.new_attribute = batch_idx
            self.last_loss = loss  # not detached
            return loss * (1 + 0.01 * self.counts["steps"])

        def memory(self):
            return (
                [t.clone() for t in self.outputs], list(self.recent), repr(self.counts), sorted(self.names),
                self.helper.total, self.helper.ema.clone(), self.array.copy(), getattr(self, "new_attribute", None),
            )  # fmt: skip

    passed(monitored(Keeps))


def test_hidden_state_of_a_recurrent_net(monitored, zoo):
    class Recurrent(zoo.Base):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.out = nn.Linear(6, 3)
            self.hidden = None

        def loss_of(self, x, y):
            output, hidden = self.lstm(x, self.hidden)
            self.hidden = tuple(h.detach() for h in hidden)
            return cross_entropy(self.out(output[:, -1]), y)

        def memory(self):
            return self.hidden and tuple(h.clone() for h in self.hidden)

    run = monitored(Recurrent, dataset=zoo.Noisy((5, 4)))
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert len(run.all("sharpness")) >= 3
    # a hidden state of eight examples does not fit a piece of two: noise cannot be had, and that is said
    assert [event.data["probe"] for event in run.of_kind("probe_disabled")] == ["gradient_noise_scale"]


def test_generators_of_its_own(monitored, zoo):
    class Generators(zoo.Base):
        def __init__(self):
            super().__init__()
            self.torch_generator = torch.Generator().manual_seed(1)
            self.others = {"numpy": np.random.default_rng(2), "old": np.random.RandomState(3), "py": random.Random(4)}

        def loss_of(self, x, y):
            scale = torch.rand((), generator=self.torch_generator) + self.others["numpy"].random()
            scale = scale + self.others["old"].rand() + self.others["py"].random() + np.random.rand() + random.random()
            return super().loss_of(x, y) * scale

        def memory(self):
            return (
                self.torch_generator.get_state(), repr(self.others["numpy"].bit_generator.state),
                repr(self.others["old"].get_state()), repr(self.others["py"].getstate()),
            )  # fmt: skip

    passed(monitored(Generators))


def test_buffers_queues_and_pointers(monitored, zoo):
    class Queue(zoo.Base):
        def __init__(self):
            super().__init__()
            self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
            self.register_buffer("queue", torch.zeros(4, 6))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
            self.register_buffer("rebound", torch.zeros(6))

        def loss_of(self, x, y):
            self.queue[self.pointer % 4] = x.mean(dim=0).detach()
            self.pointer += 1
            self.rebound = 0.9 * self.rebound + 0.1 * x.mean(dim=0)
            return super().loss_of(self.spectral(x) + self.queue.mean(dim=0) + self.rebound, y)

    passed(monitored(Queue))


def test_tied_and_normalized_weights(monitored, zoo):
    class Tied(zoo.Base):
        def __init__(self):
            super().__init__()
            self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
            self.decoder.weight = self.encoder.weight
            self.direct = [self.encoder.weight]  # a reference that swapping by name does not reach

        def loss_of(self, x, y):
            penalty = 1e-2 * sum(p.square().sum() for p in self.parameters()) + 0.1 * self.direct[0].square().sum()
            return super().loss_of(self.decoder(torch.tanh(self.encoder(self.first(x)))), y) + penalty

    passed(monitored(Tied))


def test_momentum_teacher_updated_in_the_step(monitored, zoo):
    class Teacher(zoo.Base):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            self.hidden = [copy.deepcopy(self.net).requires_grad_(False)]  # in a list: no submodule

        def loss_of(self, x, y):
            with torch.no_grad():
                for teacher in (self.teacher, self.hidden[0]):
                    for t, s in zip(teacher.parameters(), self.net.parameters(), strict=True):
                        t.mul_(0.9).add_(s.detach(), alpha=0.1)
                target = self.teacher(x) + self.hidden[0](x)
            return super().loss_of(x, y) + (self.net(x) - target).square().mean()

        def memory(self):
            return [t.clone() for t in (*self.hidden[0].parameters(), *self.hidden[0].buffers())]

    passed(monitored(Teacher))


def test_embedding_that_renormalizes_in_the_forward_pass(monitored, zoo):
    class Renorm(zoo.Base):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 6, max_norm=0.5)

        def loss_of(self, x, y):
            return super().loss_of(x + self.table(y), y)

    passed(monitored(Renorm))


def test_raw_logger_stop_flag_and_hand_made_warm_up(monitored, zoo):
    class Hands(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.logger.experiment.add_scalar("raw", batch_idx)
            self.logger.log_metrics({"direct": 1.0}, step=self.global_step)
            self.print("never twice")
            for group in self.optimizers().param_groups:
                group["lr"] = group["lr"] * 1.01
            if self.global_step >= 8:
                self.trainer.should_stop = True
            return loss

    passed(monitored(Hands))


def test_nested_lightning_module(monitored, zoo):
    class Inner(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.log("inner", float(self.calls))
            return self.layer(x)

    class Outer(zoo.Base):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def on_fit_start(self):
            self.inner.log = self.log  # what people do to log from inside

        def loss_of(self, x, y):
            return super().loss_of(self.inner(x), y)

        def memory(self):
            return self.inner.calls

    passed(monitored(Outer))


def test_a_bound_log_method_kept_elsewhere(monitored, zoo):
    class Keeps(zoo.Base):
        def on_fit_start(self):
            self.report = {"log": self.log}

        def loss_of(self, x, y):
            loss = super().loss_of(x, y)
            self.report["log"]("elsewhere", loss, on_step=True, on_epoch=True)
            return loss

    passed(monitored(Keeps))


def test_train_and_eval_flags_flip_in_the_step(monitored, zoo):
    class Flips(zoo.Base):
        def training_step(self, batch, batch_idx):
            self.net[1].train(not self.net[1].training)
            self.net[0].weight.requires_grad_(self.net[0].weight.requires_grad)
            return super().training_step(batch, batch_idx)

    passed(monitored(Flips))


def test_checkpointed_activations(monitored, zoo):
    class Checkpointed(zoo.Base):
        def loss_of(self, x, y):
            logits = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
            return cross_entropy(logits, y)

    passed(monitored(Checkpointed))


def test_steps_that_return_none_are_skipped(monitored, zoo):
    class Sometimes(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 3 == 1 else loss

    passed(monitored(Sometimes, epochs=4))


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"detect_anomaly": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_trainer_settings(monitored, zoo, settings):
    run = monitored(zoo.Base, epochs=4, **settings)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"], run.of_kind("self_test")
    assert not run.of_kind("probe_failed")
    assert len(run.all("sharpness")) >= 3


def test_a_loss_scale(monitored, zoo):
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    run = monitored(zoo.Base, plugins=[plugin])
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert not run.of_kind("probe_failed")


@pytest.mark.parametrize("whole", [True, False], ids=["the module", "a part"])
def test_compiled(monitored, zoo, whole):
    class Compiled(zoo.Base):
        def __init__(self):
            super().__init__()
            if not whole:
                self.net = torch.compile(self.net, backend="aot_eager")

        def training_step(self, batch, batch_idx):
            return cross_entropy(self.net(batch[0]), batch[1])

    passed(monitored(lambda: torch.compile(Compiled(), backend="aot_eager") if whole else Compiled()))


# --- modules that cannot be isolated: refused with a remedy, and unharmed ---------------------------------------------


def test_manual_optimization_is_refused(monitored, zoo):
    class Manual(zoo.Base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss_of(*batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

    refused(monitored(Manual), "by hand", "loss=")


def test_scheduler_stepped_in_the_step_is_refused(monitored, zoo):
    class Scheduler(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.lr_schedulers().step()
            return loss

    refused(monitored(Scheduler), "schedulers", "loss=")


def test_own_batches_are_refused(monitored, zoo):
    class Iterates(zoo.Base):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.loss_of(*batch)

    refused(monitored(Iterates), "dataloader_iter", "loss=")


def test_gradient_hooks_are_refused(monitored, zoo):
    """The hooked gradient is not the gradient of any loss."""

    class Hooked(zoo.Base):
        def __init__(self):
            super().__init__()
            self.net[0].weight.register_hook(lambda g: 1.1 * g)

    refused(monitored(Hooked), "replayed gradient differs", "loss=")


_everything_seen: list[float] = []


def test_state_outside_the_module_is_found_out(train, zoo, eager_probes, recorded, tmp_path):
    """A module-global list that drives the loss cannot be put back, but the self-test sees that the gradient is off."""

    class Global(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = self.loss_of(*batch)
            _everything_seen.append(1.0)
            return loss * (1 + 0.01 * len(_everything_seen))

    _everything_seen.clear()
    trial = train(Global, MechanicsMonitor(eager_probes(), sink=f"spool:{tmp_path}/spool"))
    assert trial.error is None
    run = recorded(tmp_path / "spool")
    refused(run, "replayed gradient differs", "loss=")
    assert len(_everything_seen) == 13, "12 steps and the one replay of the self-test"
    (event,) = run.of_kind("self_test")
    assert event.data["error"] > 1e-3


def test_a_loss_function_is_the_way_out(monitored, zoo, eager_probes, tmp_path):
    class Manual(zoo.Base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss_of(*batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

    monitor = MechanicsMonitor(
        eager_probes(), sink=f"spool:{tmp_path}/spool", loss=lambda model, batch: model.loss_of(*batch)
    )
    run = monitored(Manual, monitor=monitor)
    assert len(run.all("sharpness")) >= 10
    assert {m.status for _, m in run.all("sharpness")} <= {"ok", "not_converged"}


def test_the_comparison_can_fail(train, same, zoo):
    """A careless monitor that just calls the training step is told apart, or every test above would say nothing."""

    class Careless(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                module.training_step(batch, batch_idx)

    plain, careless = train(zoo.Base), train(zoo.Base, Careless())
    with pytest.raises(AssertionError, match=r"buffers.*differ at batch_start of step 3"):
        same(plain, careless)
