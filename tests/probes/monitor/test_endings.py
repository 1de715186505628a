"""Endings and failures under Lightning: whatever breaks, the training goes on or ends as it would alone."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from learnmech.probes import BaseProbe, Sharpness, every
from learnmech.probes.lightning import MechanicsMonitor


class Failing(BaseProbe):
    default_name = "failing"
    replays = True

    def __init__(self, error):
        super().__init__(every(1))
        self.error = error

    def measure(self, view):
        def work(loss):
            loss(view.batch)
            raise self.error

        return view.isolate(work)


@pytest.fixture
def normed(quartic):
    """A module with batch norm that can fail by itself."""

    class Normed(quartic):
        def __init__(self, fails_at=None):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.fails_at = fails_at

        def loss_of(self, batch):
            if self.global_step == self.fails_at:
                raise LookupError("the user's own error")
            return super().loss_of(batch) + self.norm(batch[0]).square().mean()

    return Normed


def test_an_interruption_inside_a_probe_stops_lightning_as_ever(normed, trainer_of, fit, spool):
    module = normed()
    with pytest.raises(SystemExit):
        fit(trainer_of(callbacks=MechanicsMonitor([Failing(KeyboardInterrupt())], sink=spool.url)), module)
    assert "log" not in module.__dict__
    assert int(module.norm.num_batches_tracked) == 2
    assert isinstance(module.norm.weight, nn.Parameter)
    assert spool().of_kind("run_failed")[0].message.startswith("KeyboardInterrupt")


def test_the_users_own_error_reaches_the_caller(normed, trainer_of, fit, spool):
    with pytest.raises(LookupError, match="own error"):
        fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url)), normed(fails_at=4))
    run = spool()
    assert run.kinds()[-1] == "run_failed"
    assert "LookupError" in run.of_kind("run_failed")[0].message
    assert 3 in run.values("sharpness")


def test_an_error_in_the_replay_alone_is_a_refusal_in_the_end(quartic, trainer_of, fit, spool):
    """The step raises only while probed: training must not notice, and after three times the replay is given up."""
    from learnmech.probes import is_probing

    class Shy(quartic):
        def loss_of(self, batch):
            if is_probing():
                raise RuntimeError("not while you look")
            return super().loss_of(batch)

    module = fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url)), Shy())
    assert torch.equal(module.w, fit(trainer_of(), quartic()).w)
    ((step, m),) = spool().all("sharpness")
    assert (step, m.status) == (3, "unsupported")
    assert "not while you look" in m.reason


def test_a_failing_monitor_leaves_training_alone(monkeypatch, quartic, trainer_of, fit, spool):
    """Even a bug of the engine itself costs measurements only."""
    from learnmech.probes.facts import Facts
    from learnmech.probes.replays import Replays

    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Facts, "changed", broken)
    monkeypatch.setattr(Replays, "may_run", broken)
    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), quartic())
    assert torch.equal(module.w, fit(trainer_of(), quartic()).w)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(trainer_of(callbacks=MechanicsMonitor([], sink=spool.url, strict=True)), quartic())


def test_a_sink_that_cannot_be_had(quartic, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Sharpness(every(1))], sink="nosuch://place")
    module = fit(trainer_of(callbacks=monitor), quartic())
    assert torch.equal(module.w, fit(trainer_of(), quartic()).w)


def test_special_modes(quartic, trainer_of, fit, spool):
    fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url), fast_dev_run=3), quartic())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        barebones = pl.Trainer(
            barebones=True, max_epochs=1, accelerator="cpu", callbacks=MechanicsMonitor(sink=spool.url)
        )
    fit(barebones, quartic())
    with pytest.raises(FileNotFoundError):
        spool()
