"""A run that crashes again after a resume, and is resumed from the same checkpoint once more."""

import contextlib

import pytest
import torch

from learnmech.collector.store import Store
from learnmech.probes import Recorder, Vitals, every


class Crash(Exception):
    """What ends an attempt here."""


def test_resumed_twice_from_one_checkpoint_nothing_is_lost_and_nothing_is_mixed(quartic, tmp_path):
    """The oracle are the losses that the loop computed itself, each at a weight of its own."""
    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    sink = f"sqlite:///{tmp_path / 'all.db'}"
    losses: dict[tuple[int, int], float] = {}

    def attempt(number, state, steps, save_at=None):
        recorder = Recorder(model, optimizer, quartic.loss, [Vitals(every(1))], sink=sink, run="r")
        if state is not None:
            recorder.load_state_dict(state)
        saved = None
        with contextlib.suppress(Crash), recorder:
            for _ in range(steps):
                with torch.no_grad():
                    next(model.parameters()).fill_(1.0 + number + 0.01 * recorder.step)
                optimizer.zero_grad()
                loss = quartic.loss(model, torch.zeros(2))
                loss.backward()
                optimizer.step()
                losses[number, recorder.step] = float(loss.detach())
                recorder.after_step(torch.zeros(2), loss)
                saved = recorder.state_dict() if recorder.step == save_at else saved
            raise Crash
        return saved

    checkpoint = attempt(0, None, 12, save_at=10)
    attempt(1, checkpoint, 5)
    attempt(2, checkpoint, 3)
    with Store.open(sink) as store, store.database.reading() as connection:
        [run] = store.runs()
        found = store.observations(run.id, "loss")
        measured = connection.exec_driver_sql(
            "SELECT attempt, step, value, superseded FROM measurements WHERE observable = 'loss' ORDER BY attempt, step"
        ).all()
    effective = [(0, step) for step in range(10)] + [(2, step) for step in range(10, 13)]
    assert list(zip(found["step"], found["value"], strict=True)) == [(key[1], losses[key]) for key in effective]
    assert [tuple(row) for row in measured] == [
        (*key, losses[key], int(key not in effective)) for key in sorted(losses)
    ]
    assert len(set(losses.values())) == 12 + 5 + 3
    assert (run.attempts, run.last_step, run.status) == (3, 13, "failed")


@pytest.mark.parametrize("told", [None, 7, "", "A" * 32, ["0" * 32]])
def test_a_checkpoint_that_does_not_say_whose_it_is_costs_nothing(quartic, spool, told):
    """Checkpoints of older versions say nothing, and what is no identity must not have every measurement refused."""
    quartic.descend([], spool.url, steps=2)
    first = spool().batches[0]
    state = {"version": 1, "run_id": first.run.id, "created": 1.0, "attempt": 0, "step": 2, "samples": 8}
    model = quartic.model()
    again = Recorder(model, torch.optim.SGD(model.parameters(), lr=0.01), quartic.loss, [], sink=spool.url)
    again.load_state_dict(state if told is None else {**state, "attempt_id": told})
    with again:
        pass
    [batch] = [batch for batch in spool().batches if batch.attempt == 1]
    assert batch.lineage.parent is None
    assert again.state_dict()["attempt_id"] == batch.lineage.id != first.lineage.id
