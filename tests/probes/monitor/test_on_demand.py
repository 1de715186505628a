"""A signal asks for a measurement under Lightning as well, and ends no process that listens."""

import os
import signal

import pytest
import pytorch_lightning as pl

from learnmech.probes import WeightDynamics, on_demand
from learnmech.probes.lightning import MechanicsMonitor


class Asking(pl.Callback):
    """Sends the signal at step 3."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_asks_for_a_measurement(rank, spool, quartic, trainer_of, fit, monkeypatch):
    heard = []

    def before(number, frame):
        heard.append(number)

    original = signal.signal(signal.SIGUSR1, before)
    try:
        monitor = MechanicsMonitor([WeightDynamics(on_demand(signal.SIGUSR1))], sink=spool.url, strict=True)
        trainer = trainer_of(callbacks=[monitor, Asking()])
        if rank:
            monkeypatch.setattr(type(trainer), "global_rank", rank)
        listening = []
        module = quartic()
        module.on_train_start = lambda: listening.append(signal.getsignal(signal.SIGUSR1) is not before)
        fit(trainer, module)
        assert listening == [True]
        assert signal.getsignal(signal.SIGUSR1) is before
    finally:
        signal.signal(signal.SIGUSR1, original)
    assert heard == [signal.SIGUSR1], "who listened before is told as well"
    if not rank:
        assert {step for step, _ in spool().all("weight_norm")} in ({3}, {4}), "once, at this update or the next"
