"""What a run says of itself: its batches, its counts, its beginning and end, and that it goes on when resumed."""

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Vitals, every


@pytest.mark.parametrize(
    ("batches", "settings", "expected"),
    [
        ("same", {}, {1: 1.0}),
        ("written", {}, {1: 0.0}),
        ("fresh", {}, {1: 0.0}),
        ("fresh", {"full_batch": True}, {0: 1.0}),
        ("same", {"full_batch": False}, {0: 0.0}),
        ("fresh", {"dataset_size": 8}, {0: 1.0}),
        ("fresh", {"dataset_size": 9}, {0: 0.0}),
    ],
)
def test_full_batch_is_found_out(batches, settings, expected, mean_square, spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = (torch.randn(8, 2), torch.randn(8, 1))
    with Recorder(model, optimizer, mean_square, [], sink=spool.url, **settings) as recorder:
        for _ in range(4):
            if batches == "written":
                batch[0].add_(1.0)
            elif batches == "fresh":
                batch = (torch.randn(8, 2), torch.randn(8, 1))
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert run.values("full_batch") == expected
    assert run.values("batch_size") == {0: 8.0}
    assert run.values("dataset_size") == ({0: float(settings["dataset_size"])} if "dataset_size" in settings else {})


def test_a_full_batch_collated_anew_is_not_taken_for_noise(mean_square, spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    with Recorder(model, optimizer, mean_square, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            batch = (x.clone(), y.clone())
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    assert len(spool().all("noise_trace")) == 3
    assert not spool().all("noise_trace_between")


def test_samples_and_tokens_are_counted(quartic, spool):
    quartic.descend([Sharpness(every(1)), Vitals(every(1))], spool.url, steps=3, tokens_per_sample=10)
    for frame in spool().frames:
        if frame.measurements:
            assert frame.samples == 4 * frame.step
            assert frame.tokens == 40 * frame.step


def test_a_resumed_run_is_the_same_run(quartic, spool):
    torch.manual_seed(0)
    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(recorder, steps):
        with recorder:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = quartic.loss(model, torch.zeros(2))
                loss.backward()
                optimizer.step()
                recorder.after_step(torch.zeros(2), loss)
        return recorder.state_dict()

    first = train(Recorder(model, optimizer, quartic.loss, [Vitals(every(1))], sink=spool.url, run="r"), 3)
    assert {type(value) for value in first.values()} <= {str, int, float}
    second = Recorder(model, optimizer, quartic.loss, [Vitals(every(1))], sink=spool.url, run="r")
    second.load_state_dict(first)
    train(second, 2)
    run = spool()
    assert len(run.runs) == 1
    assert run.attempts == [0, 1]
    assert [step for step, _ in sorted(run.all("loss"))] == [0, 1, 2, 3, 4]
    assert {batch.start_step for batch in run.batches if batch.attempt == 1} == {3}
    assert max(frame.samples for frame in run.frames) == 10
    with second, pytest.raises(RuntimeError, match="before"):
        second.load_state_dict(first)


def test_a_run_has_a_beginning_and_an_end(quartic, spool):
    quartic.descend([], spool.url, run="named", project="p", tags={"a": "b"})
    run = spool()
    assert run.kinds()[0] == "run_started"
    assert run.kinds()[-1] == "run_finished"
    info = run.batches[0].run
    assert (info.name, info.project, info.tags) == ("named", "p", {"a": "b"})
    assert info.context["parameters"] == 3
    assert info.context["dtype"] == "float64"
    assert run.values("overhead")


def test_the_default_probes(mean_square, spool):
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, mean_square, sink=spool.url, budget=1.0) as recorder:
        for _ in range(5):
            batch = (torch.randn(8, 2), torch.randn(8, 1))
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    names = {m.observable for frame in run.frames for m in frame.measurements}
    assert {"sharpness", "noise_scale", "weight_norm", "angular_update", "loss", "grad_norm", "overhead"} <= names
