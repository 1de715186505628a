import os
import signal
from dataclasses import replace

import pytest
import torch

from learnmech.lab import descent, language
from learnmech.lab.settings import QUICK
from learnmech.wire.spool import batches

TINY = replace(QUICK.language, characters=20_000, context=8, batch=8, width=16, hidden=16, steps=12)


def recorded(curve):
    return lambda step, loss: curve.append((step, loss))


def measured(folder, run_id):
    found = {}
    for batch in batches(folder):
        assert batch.run.id == run_id
        for frame in batch.frames:
            for measurement in frame.measurements:
                found.setdefault(measurement.observable, {})[frame.step, measurement.scope] = measurement.value
    return found


def test_adamw_decays_matrices_and_leaves_gains_alone():
    model = language.CharacterModel(TINY)
    matrices, gains = model.configure_optimizers().param_groups
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in gains["params"]} == {1}
    assert (matrices["weight_decay"], gains["weight_decay"]) == (1.0, 0.0)
    assert sum(len(group["params"]) for group in (matrices, gains)) == len(list(model.parameters()))


def test_a_training_through_lightning_is_measured_and_repeats_bit_for_bit(tmp_path):
    curves = []
    for name in ("one", "two"):
        curves.append([])
        run_id = language.train(TINY, sink=f"spool:{tmp_path / name}", seed=1, progress=recorded(curves[-1]))
        found = measured(tmp_path / name, run_id)
        assert len(found["noise_trace"]) >= 1
        assert set(found["angular_update"])
        assert (0, "") in found["learning_rate"]
    assert curves[0] == curves[1] != []


def test_ctrl_c_gets_out_of_lightning_and_works_again_afterwards(tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(step, loss):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        language.train(TINY, sink=f"spool:{tmp_path}", progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_lightning_and_the_monitor_do_not_change_the_training(tmp_path):
    """A plain loop over the same batches, without Lightning and without a monitor, is the oracle."""
    measured_losses, plain_losses = [], []
    language.train(TINY, sink=f"spool:{tmp_path}", seed=2, progress=recorded(measured_losses))
    model = language.CharacterModel(TINY, seed=2)
    optimizer = model.configure_optimizers()
    for index, batch in enumerate(language.batches(TINY, seed=2)):
        optimizer.zero_grad()
        loss = model.training_step(batch, index)
        loss.backward()
        optimizer.step()
        plain_losses.append((index + 1, loss.item()))
    assert measured_losses == [row for row in plain_losses if row[0] % 10 == 0] != []


def test_gradient_descent_is_measured_and_its_learning_rate_halves_at_the_step_that_was_set(tmp_path):
    settings = replace(QUICK.descent, digits=60, width=8, steps=40, halved_at=20, every=10)
    seen = []
    run_id = descent.train(settings, sink=f"spool:{tmp_path}", progress=recorded(seen))
    found = measured(tmp_path, run_id)
    assert found["learning_rate"] == {(0, ""): 0.4, (20, ""): 0.2}
    assert {step for step, _ in found["sharpness"]} >= {0, 10, 20, 30}
    assert found["full_batch"] == {(0, ""): 1.0}
    assert found["batch_size"] == {(0, ""): 60.0}
    assert seen[-1][0] == 40
    assert seen[-1][1] < seen[0][1]


def test_the_same_seed_gives_the_same_gradient_descent(tmp_path):
    settings = replace(QUICK.descent, digits=40, width=8, steps=12, halved_at=10, every=10)
    curves = []
    for index in range(2):
        torch.manual_seed(index)  # must not matter
        curves.append([])
        descent.train(settings, sink=f"spool:{tmp_path / str(index)}", seed=5, progress=recorded(curves[-1]))
    assert curves[0] == curves[1]
