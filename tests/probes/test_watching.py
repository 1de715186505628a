"""Probes that watch backward passes and fail at it: nothing is raised into the training."""

import pytest
import torch

from learnmech.probes import BaseProbe, Moment, Recorder, Vitals, every


class Watches(BaseProbe):
    """Fails at one of its moments."""

    default_name, moment, watches = "watches", Moment.UPDATE, True

    def __init__(self, fails, name="watches"):
        super().__init__(every(1), name=name)
        self.fails, self.pieces, self.measured = fails, 0, 0

    def at(self, moment):
        if moment == self.fails:
            raise LookupError(moment)

    def arm(self, view):
        self.at("arm")

    def next_piece(self, batch, examples):
        self.at("next_piece")
        self.pieces += 1

    def disarm(self):
        self.at("disarm")

    def expect(self, micro_batches, processes):
        if micro_batches > 1:  # in the midst of the run
            self.at("expect")

    def measure(self, view):
        self.measured += 1
        return []


def trained(probes, sink):
    torch.manual_seed(0)
    model, batch = torch.nn.Linear(2, 1), torch.randn(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return model(batch).square().mean()

    with Recorder(model, optimizer, loss_fn, probes, sink=sink) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(2):
                loss = loss_fn(model, batch) / 2
                loss.backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)


@pytest.mark.parametrize("fails", ["arm", "next_piece", "disarm", "expect"])
def test_the_training_goes_on(fails, spool):
    trained([Watches(fails), Vitals(every(1))], spool.url)
    run = spool()
    assert run.kinds()[-1] == "run_finished"
    assert run.all("loss")


def test_one_that_misses_a_piece_measures_nothing_and_the_others_miss_none(spool):
    other = Watches("", name="other")
    trained([Watches("next_piece"), other], spool.url)
    run = spool()
    assert {event.data["probe"] for event in run.of_kind("probe_failed")} == {"watches"}
    assert [event.data["probe"] for event in run.of_kind("probe_disabled")] == ["watches"]
    assert "LookupError: next_piece" in run.of_kind("probe_failed")[0].message
    assert other.measured >= 4
    assert other.pieces == 2 * other.measured
