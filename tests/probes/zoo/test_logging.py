"""Do no harm: nothing is logged twice, and no flag of the trainer is set by a replay."""

import logging

import pytorch_lightning as pl
from torch import nn
from torch.utils.checkpoint import checkpoint


def test_raw_logger_stop_flag_and_hand_made_warm_up(monitored, zoo, passed):
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


def test_nested_lightning_module(monitored, zoo, passed):
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


def test_a_bound_log_method_kept_elsewhere(monitored, zoo, passed):
    class Keeps(zoo.Base):
        def on_fit_start(self):
            self.report = {"log": self.log}

        def loss_of(self, x, y):
            loss = super().loss_of(x, y)
            self.report["log"]("elsewhere", loss, on_step=True, on_epoch=True)
            return loss

    passed(monitored(Keeps))


def test_records_and_printed_lines(monitored, zoo, passed, train):
    """In the step, and in activations that a backward pass computes again."""

    class Tells(zoo.Base):
        def loss_of(self, x, y):
            def hidden(x):
                logging.getLogger("of.the.user").warning("sees %d", len(x))
                return self.net(x)

            print("a line")
            return nn.functional.cross_entropy(checkpoint(hidden, x, use_reentrant=False), y)

        def training_step(self, batch, batch_idx):
            logging.getLogger().warning("step %d", batch_idx)
            return super().training_step(batch, batch_idx)

    passed(monitored(Tells))
    steps = 2 * zoo.EXAMPLES // zoo.BATCH
    trial = train(Tells)
    assert len(trial.printed) == steps
    assert sum(message == f"sees {zoo.BATCH}" for _, _, message in trial.records) == 2 * steps, "once more in backward"
    assert sum(name == "root" for name, _, _ in trial.records) == steps
