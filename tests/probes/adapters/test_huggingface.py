"""The Trainer of transformers, measured: as a plain loop would be, and without a trace in the training."""

import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.huggingface import MechanicsCallback

STEPS = 6


def probes():
    return [
        Sharpness(every(2), tol=1e-4),
        GradientNoiseScale(every(1)),
        WeightDynamics(every(2)),
        Vitals(every(1)),
    ]


def cross_entropy(logits, labels, smoothing=0.0, reduction="mean"):
    """Next-token cross entropy from its definition: no code of transformers."""
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=-100,
        label_smoothing=smoothing,
        reduction=reduction,
    )


def optimizer_and_schedule(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)


def plain_loop(hugging, spool, data, *, accumulation=1, clip=1.0, bf16=False, smoothing=0.0):
    """The same training by hand, with a recorder: every line of it stands here."""
    model = hugging.model()
    optimizer, schedule = optimizer_and_schedule(model)

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=batch["input_ids"]).logits
        return cross_entropy(logits, batch["labels"], smoothing)

    cuts = [data[start : start + 4] for start in range(0, len(data), 4)]
    batches = [{key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels")} for rows in cuts]
    settings = {"accumulation": accumulation, "gradient_clip": clip or None}
    with Recorder(model, optimizer, loss_fn, probes(), sink=spool.url, **settings) as recorder:
        for step in range(STEPS):
            chosen = [batches[(step * accumulation + i) % len(batches)] for i in range(accumulation)]
            tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in chosen)
            losses = []
            for batch in chosen:
                share = float((batch["labels"][:, 1:] != -100).sum()) / tokens
                losses.append(loss_fn(model, batch) * share)
                losses[-1].backward()
                recorder.after_backward(batch)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            recorder.after_step(batch, sum(loss.detach() for loss in losses))
    return spool()


def numbers(run):
    """Everything measured but times: value by observable, scope and step; nan where there is none."""
    return {
        (m.observable, m.scope, frame.step): math.nan if m.value is None else m.value
        for frame in run.frames
        for m in frame.measurements
        if m.observable not in ("overhead", "probe_cost")
    }


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 2}, {"accumulation": 2}),
        ({"max_grad_norm": 0.2}, {"clip": 0.2}),
        ({"max_grad_norm": 0.0}, {"clip": 0.0}),
        ({"label_smoothing_factor": 0.1}, {"smoothing": 0.1}),
        ({"bf16": True}, {"bf16": True}),
    ],
)
def test_values_are_those_of_a_plain_loop(settings, same, hugging, spools):
    """The oracle is the training written by hand, with the loss from its definition: no line of the adapter's."""
    mine, theirs = spools(), spools()
    data = hugging.data(padded=True)
    model = hugging.model()
    callback = MechanicsCallback(probes(), sink=mine.url, strict=True)
    hugging.trainer(
        callback, model=model, data=data, more={"optimizers": optimizer_and_schedule(model)}, **settings
    ).train()
    expected = numbers(plain_loop(hugging, theirs, data, **same))
    found = numbers(mine())
    assert found.keys() == expected.keys()
    close = {"rel": 2e-2 if "bf16" in same else 2e-3, "abs": 1e-6, "nan_ok": True}
    wrong = {key: (found[key], value) for key, value in expected.items() if found[key] != pytest.approx(value, **close)}
    assert not wrong
    assert {key[0] for key in found} >= {"sharpness", "noise_trace", "grad_norm", "weight_norm", "loss"}
    assert mine().context.get("gradient_clip") == theirs().context.get("gradient_clip")


def streams():
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        {"bf16": True, "label_smoothing_factor": 0.1},
        {"activation_checkpointing": True, "neftune_noise_alpha": 1.0},
        {"eval_strategy": "steps", "eval_steps": 2, "train_sampling_strategy": "random"},
    ],
)
def test_training_is_the_same_bit_for_bit(settings, hugging, spool, eager_probes, digest, training_state):
    def train(*callbacks):
        trainer = hugging.trainer(
            *callbacks,
            model=hugging.model(attention_dropout=0.2),
            more={"eval_dataset": hugging.data()[:8]} if "eval_steps" in settings else {},
            **settings,
        )
        trainer.train()
        timeless = [
            {k: v for k, v in row.items() if "_per_" not in k and "runtime" not in k}
            for row in trainer.state.log_history
        ]
        left = digest(training_state(trainer.model, [trainer.optimizer]))
        return left, timeless, digest(streams()), vars(trainer).keys()

    assert train(MechanicsCallback(eager_probes(), sink=spool.url, strict=True)) == train()
    run = spool()
    assert sorted(run.values("sharpness")) == list(range(STEPS))
    assert {m.status.value for _, m in run.all("sharpness")} <= {"ok", "not_converged"}  # few products each


def test_micro_batches_are_counted_to_the_end_of_the_epoch(hugging, spool):
    callback = MechanicsCallback([Vitals(every(1))], sink=spool.url, strict=True)
    trainer = hugging.trainer(callback, gradient_accumulation_steps=4, max_steps=-1, num_train_epochs=2)
    trainer.train()
    run = spool()
    assert run.values("batch_size") == {0: 16.0, 1: 8.0, 2: 16.0, 3: 8.0}  # 6 micro-batches of 4 in an epoch
    logged = {row["step"] - 1: row for row in trainer.state.log_history if "grad_norm" in row}
    assert run.values("loss") == {step: pytest.approx(row["loss"], rel=1e-6) for step, row in logged.items()}
    assert run.values("grad_norm") == {step: pytest.approx(row["grad_norm"], rel=1e-5) for step, row in logged.items()}
    assert run.values("learning_rate") == {step: pytest.approx(row["learning_rate"]) for step, row in logged.items()}


def test_the_gradient_is_seen_before_clipping(hugging, spool):
    callback = MechanicsCallback([Vitals(every(1))], sink=spool.url, strict=True)
    trainer = hugging.trainer(callback, max_grad_norm=1e-3)
    trainer.train()
    run = spool()
    logged = [
        row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row
    ]  # the trainer's own, unclipped
    assert list(run.values("grad_norm").values()) == pytest.approx(logged)
    assert {m.method for _, m in run.all("grad_norm")} == {""}
    assert min(logged) > 0.1


class Counting(pytest.importorskip("transformers").Trainer):
    """Counts its losses, as trainers for preferences count their rewards: outside of the model."""

    seen = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen += 1
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_loss_of_its_own_is_not_replayed(hugging, spool):
    trainer = hugging.trainer(MechanicsCallback(probes(), sink=spool.url, strict=True), kind=Counting)
    trainer.train()
    run = spool()
    assert trainer.seen == STEPS
    (sharpness,) = {(m.status.value, m.reason) for _, m in run.all("sharpness")}
    assert sharpness[0] == "unsupported"
    assert "Counting has compute_loss of its own" in sharpness[1]
    assert "MechanicsCallback(loss=...)" in sharpness[1]
    assert len(run.values("grad_norm")) == STEPS
    assert run.all("weight_norm")[0][1].status.value == "ok"


class Taking(pytest.importorskip("transformers").Trainer):
    """Takes what it needs out of the dictionary that it was given."""

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, {name: inputs.pop(name) for name in list(inputs)}, *args, **kwargs)


def test_unless_it_is_given(hugging, spools):
    given, measured = lambda model, batch: model(**batch).loss, []
    for kind, loss in ((None, None), (Counting, given), (Taking, given)):
        spool = spools()
        more = {"kind": kind} if kind else {}
        callback = MechanicsCallback([Sharpness(every(2), tol=1e-5)], sink=spool.url, loss=loss, strict=True)
        hugging.trainer(callback, **more).train()
        measured.append(list(spool().values("sharpness").values()))
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)
    assert measured[2] == pytest.approx(measured[0], rel=1e-4)
    assert len(measured[0]) == 3


def test_arguments_are_checked_at_once():
    for wrong in ({"loss": 3}, {"budget": 2.0}, {"probes": [3]}):
        with pytest.raises((TypeError, ValueError)):
            MechanicsCallback(**wrong)
