"""`MechanicsMonitor(log=True)`: the trainer's loggers get the numbers; its metrics and callbacks see none of them."""

import pytest
import torch
from pytorch_lightning.loggers import Logger

from learnmech.probes import Vitals, every
from learnmech.probes.lightning import MechanicsMonitor


class Rows(Logger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = "rows"
    version = "0"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *arguments, **settings):
        pass


@pytest.fixture
def run(spool, quartic, trainer_of, fit):
    def start(log):
        torch.manual_seed(0)
        rows = Rows()
        monitor = MechanicsMonitor([Vitals(every(1))], sink=spool.url, log=log)
        trainer = trainer_of(callbacks=[monitor], logger=rows)
        fit(trainer, quartic())
        return rows.rows, trainer

    return start


def test_loggers_get_the_numbers_at_their_steps_and_metrics_stay_as_they_are(run, spool):
    def stored():
        return spool().values("loss")

    rows, trainer = run(True)
    plain, plain_trainer = run(False)
    ours = [(step, name) for step, values in rows for name in values if name.startswith("learnmech/")]
    losses = {step: values["learnmech/loss"] for step, values in rows if "learnmech/loss" in values}
    assert losses[0] == stored()[0]
    assert losses[7] == stored()[7], "what waits is logged at the end"
    assert losses.items() <= stored().items(), "once a second at most, each at its step"
    assert ours
    assert [row for row in rows if not any(name.startswith("learnmech/") for name in row[1])] == plain
    assert trainer.callback_metrics.keys() == plain_trainer.callback_metrics.keys()


def test_a_function_instead(run):
    seen = []
    rows, _ = run(lambda values, step: seen.append(step))
    assert set(seen) == set(range(9))
    assert not any(name.startswith("learnmech/") for _, values in rows for name in values)
