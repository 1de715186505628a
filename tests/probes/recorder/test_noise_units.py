"""Losses that are means over tokens, of which documents hold unequal numbers: noise per document, as `units=` tells.

The oracle is the definition: batch size times the covariance of the update's gradient, over many updates.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes import GradientNoiseScale, Recorder, every

VOCABULARY, LENGTH, DOCUMENTS, STEPS = 12, 16, 16, 300
PADDING = -100


class Bigrams(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)))


def mean_over_tokens(model, batch):
    return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=PADDING)


def tokens(batch):
    return (batch[1] != PADDING).sum()


def documents(count, generator):
    lengths = torch.where(torch.rand(count, generator=generator) < 0.5, 2, LENGTH)
    x = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    y = (x + torch.randint(2, x.shape, generator=generator)) % VOCABULARY
    y[torch.arange(LENGTH) >= lengths[:, None]] = PADDING
    return x, y


def measured(spool, source, pieces, **settings):
    model, generator = Bigrams(), torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = GradientNoiseScale(every(1), source=source, **settings)
    with Recorder(
        model, optimizer, mean_over_tokens, [probe], sink=spool.url, accumulation=pieces, strict=True
    ) as recorder:
        for _ in range(STEPS):
            update = [documents(DOCUMENTS // pieces, generator) for _ in range(pieces)]
            whole = sum(tokens(batch) for batch in update)
            optimizer.zero_grad()
            for batch in update:
                (mean_over_tokens(model, batch) * tokens(batch) / whole).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(update[-1])
    return spool()


def truth():
    model, generator, rows = Bigrams(), torch.Generator().manual_seed(9), []
    for _ in range(2500):
        model.zero_grad()
        mean_over_tokens(model, documents(DOCUMENTS, generator)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    found = torch.stack(rows).double()
    trace = DOCUMENTS * float(found.var(0).sum())
    return {
        "noise_trace": trace,
        "noise_trace_between": trace,
        "grad_sq_norm": float(found.mean(0).square().sum()) - trace / DOCUMENTS / len(rows),
    }


def mean_and_error(run, observable):
    values = torch.tensor(list(run.values(observable).values()), dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@pytest.fixture(scope="module")
def exact():
    return truth()


@pytest.mark.parametrize(("source", "pieces"), [("pieces", 4), ("split", 1), ("auto", 1)])
def test_agrees_with_the_covariance_of_the_update(spool, exact, source, pieces):
    run = measured(spool, source, pieces, units=tokens, weighted=True)
    observables = ("noise_trace", "grad_sq_norm", *(("noise_trace_between",) if pieces == 1 else ()))
    for observable in observables:
        mean, error = mean_and_error(run, observable)
        assert error < 0.05 * exact[observable]
        assert abs(mean - exact[observable]) < 3.5 * error + 0.02 * exact[observable], (observable, mean, exact)
    assert {m.method for _, m in run.all("noise_trace")} == {"micro_batches" if pieces > 1 else "split_batch_in_4"}
    assert not run.of_kind("probe_notice") or source == "auto"


def test_without_units_a_cut_batch_says_something_else(spool, exact):
    """That the test above can fail."""
    mean, error = mean_and_error(measured(spool, "split", 1), "noise_trace")
    assert mean - exact["noise_trace"] > 6 * error


@pytest.mark.parametrize(
    ("units", "reason"),
    [
        (lambda batch: batch["labels"].sum(), "units(batch) raised"),
        (lambda batch: "many", "expected a number from 0 on"),
        (lambda batch: 0.0 * batch[0].sum(), "a mean over none"),
    ],
)
def test_units_of_a_piece_that_cannot_be_counted(spool, units, reason):
    model = Bigrams()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = GradientNoiseScale(every(1), source="split", units=units)
    with Recorder(model, optimizer, mean_over_tokens, [probe], sink=spool.url) as recorder:
        for step in range(4):
            batch = documents(8, torch.Generator().manual_seed(step))
            mean_over_tokens(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    (refusal,) = [m for _, m in spool().all("noise_trace")]
    assert refusal.status == "unsupported"
    assert reason in refusal.reason


KINDS = {
    "int": lambda batch: int(tokens(batch)),
    "numpy": lambda batch: np.int64(int(tokens(batch))),
    "tensor": tokens,
}


@pytest.mark.parametrize("source", ["pieces", "split"])
def test_whatever_kind_of_number_the_units_are(spools, source):
    """With an update in which one of four pieces holds no token: nothing can be said of it, and no more than that."""
    found = []
    for units in KINDS.values():
        model, generator, spool = Bigrams(), torch.Generator().manual_seed(5), spools()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        probe = GradientNoiseScale(every(1), source=source, units=units, weighted=True)
        count = 4 if source == "pieces" else 1
        with Recorder(
            model, optimizer, mean_over_tokens, [probe], sink=spool.url, accumulation=count, strict=True
        ) as recorder:
            for step in range(4):
                x, y = documents(8, generator)
                y[:2] = PADDING if step == 1 else y[:2]
                whole = tokens((x, y))
                optimizer.zero_grad()
                for batch in zip(x.chunk(count), y.chunk(count), strict=True):
                    if tokens(batch):
                        (mean_over_tokens(model, batch) * tokens(batch) / whole).backward()
                    else:
                        (model(batch[0]).sum() * 0.0).backward()
                    recorder.after_backward(batch)
                optimizer.step()
                recorder.after_step(batch)
        found.append([(step, m.status, m.value) for step, m in spool().all("noise_trace")])
    assert found[0] == found[1] == found[2]
    assert [step for step, _, _ in found[0]] == ([0, 1, 2, 3] if source == "pieces" else [0, 2, 3])
    assert {status for _, status, _ in found[0]} == {"ok"}
