"""Bad input to the noise probe, from every source in one process: a status that says so, and a training that goes on.

Each training runs twice, with the probe and without any: weights, gradients, optimizer and random numbers are the same
bit for bit at the end.
"""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.noise.per_example import METHOD

STEPS = 6
SOURCES = {"pieces": 2, "examples": 1, "split": 1, "auto": 1, "norm_layers": 1}
"""Micro-batches of an update."""
LEAD = {"norm_layers": 9}
"""Ordinary updates on one batch before: its factor is fitted to them."""


class Net(nn.Module):
    """A small network; some parameters may never get a gradient, some may come later."""

    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=sparse)
        self.hidden, self.norm, self.head = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 1)
        self.late = None

    def forward(self, x):
        found = self.head(self.norm(torch.tanh(self.hidden(self.table(x)))))
        return found if self.late is None else found + self.late(self.table(x))


def plain_loss(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square().mean()


def data(step, k, size=8):
    generator = torch.Generator().manual_seed(10 * step + k)
    return torch.randint(9, (size,), generator=generator), torch.randn(size, generator=generator)


class Case:
    """An ordinary training; others change something."""

    def model(self):
        return Net()

    def loss(self, model, batch):
        return plain_loss(model, batch)

    def batch(self, step, k):
        return data(step, k)

    def before(self, step, model, optimizer):
        pass

    def count(self, expected):
        """Micro-batches that updates have in fact."""
        return expected


class One(Case):
    def batch(self, step, k):
        return data(step, k, 1)


class Empty(Case):
    """A loader that filters may hand over batches without examples: their mean loss is NaN, their sum is zero."""

    def batch(self, step, k):
        return data(step, k, 0 if step in (2, 3) else 8)

    def loss(self, model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().sum() / max(len(batch[0]), 1)


class Zero(Case):
    def loss(self, model, batch):
        return plain_loss(model, batch) * (0.0 if batch[0].sum() >= 0 else 1.0)


class Infinite(Case):
    """From one update on the loss is not finite; gradient and weights follow."""

    def batch(self, step, k):
        x, y = data(step, k)
        return x, y + (math.inf if step >= 3 else 0.0)


class Unused(Case):
    def model(self):
        model = Net()
        model.unused = nn.Linear(3, 3)
        model.frozen = nn.Linear(3, 3).requires_grad_(False)
        return model


class Sparse(Case):
    def model(self):
        return Net(sparse=True)


class Added(Case):
    def before(self, step, model, optimizer):
        if step == 3:
            model.late = nn.Linear(4, 1)
            optimizer.add_param_group({"params": list(model.late.parameters())})


class Alone(Case):
    """The one micro-batch of an update that was declared to have two."""

    def count(self, expected):
        return 1


OK, SKIP, MAYBE, UNDETERMINED, UNSUPPORTED = "ok", None, "ok, if it is measured", "undetermined", "unsupported"
CASES = {
    # statuses of noise_trace at each step, in the order of SOURCES; then words of the reasons
    Case: ([OK] * 6, [SKIP, *[OK] * 5], [OK] * 6, [OK] * 6, [OK] * 6, ""),
    One: ([OK] * 6, [SKIP] * 3 + [UNSUPPORTED], *[[SKIP] * 2 + [UNSUPPORTED]] * 3, "of 1"),
    Empty: (
        [OK, OK, UNDETERMINED, UNDETERMINED, OK, OK],
        [SKIP, OK, SKIP, SKIP, MAYBE, MAYBE],
        [OK, OK, SKIP, SKIP, OK, OK],
        [OK, OK, SKIP, SKIP, MAYBE, MAYBE],
        [OK, OK, SKIP, SKIP, MAYBE, MAYBE],
        "is zero",
    ),
    Zero: (
        [UNDETERMINED] * 6,
        [SKIP, *[UNDETERMINED] * 5],
        [OK] * 6,
        [OK] * 6,  # batches are cut for as long as a gradient of zero does not tell whether examples may be taken
        [UNDETERMINED] * 6,
        "is zero",
    ),
    Infinite: (
        [OK] * 3 + ["non_finite"] * 3,
        [SKIP, OK, OK, *["non_finite"] * 3],
        *[[OK] * 3 + ["non_finite"] * 3] * 3,
        "not finite",
    ),
    Unused: ([OK] * 6, [SKIP, *[OK] * 5], [OK] * 6, [OK] * 6, [OK] * 6, ""),
    Sparse: (
        [SKIP] * 2 + [UNSUPPORTED],
        [SKIP] * 3 + [UNSUPPORTED],
        [OK] * 6,
        [OK, MAYBE, *[OK] * 4],
        [UNSUPPORTED],
        "sparse",
    ),
    Added: (
        [OK] * 3 + [SKIP] + [OK] * 2,
        [SKIP, OK, OK, SKIP, OK, OK],
        [OK] * 6,
        [OK] * 3 + [MAYBE] + [OK] * 2,
        [OK] * 3 + [SKIP] + [OK] * 2,
        "",
    ),
    Alone: (
        [SKIP] * 2 + [UNSUPPORTED],
        [SKIP, *[OK] * 5],
        [OK] * 6,
        [OK] * 6,
        [OK] * 6,
        "fewer micro-batches than usual",
    ),
}


def train(case, source, digest, training_state, sink):
    """Train with the probe, or without any if there is no sink; return the end."""
    torch.manual_seed(0)
    model, expected = case.model(), SOURCES[source]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.0 if isinstance(case, Sparse) else 0.9)
    recorder, now = None, Case()
    if sink is not None:
        probes = [GradientNoiseScale(every(1), source=source)]

        def loss(model, batch):
            return now.loss(model, batch)

        recorder = Recorder(model, optimizer, loss, probes, sink=sink, accumulation=expected)
        recorder.__enter__()
    count = case.count(expected)
    for step in range(-LEAD.get(source, 0), STEPS):
        now = case if step >= 0 else Case()
        now.before(step, model, optimizer)
        optimizer.zero_grad()
        for k in range(count):
            batch = now.batch(max(step, 0), k)
            (now.loss(model, batch) / count).backward()
            if recorder is not None:
                recorder.after_backward(batch)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch)
        torch.rand(1)
    if recorder is not None:
        recorder.close()
    end = training_state(model, [optimizer])
    gradients = {name: None if g is None else g.to_dense() for name, g in end["gradients"].items()}
    return digest(end | {"gradients": gradients, "parameters": {n: p.detach() for n, p in end["parameters"].items()}})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_told_and_training_goes_on(case, source, spool, digest, training_state):
    without = train(case(), source, digest, training_state, None)
    assert train(case(), source, digest, training_state, spool.url) == without
    run = spool()
    expected, lead = dict(zip(SOURCES, CASES[case], strict=False))[source], LEAD.get(source, 0)
    for observable in ("noise_trace", "grad_sq_norm"):
        found = {step - lead: m.status.value for step, m in run.all(observable) if step >= lead}
        sure = {step: status for step, status in enumerate(expected) if status not in (SKIP, MAYBE)}
        assert {step: status for step, status in found.items() if expected[step] is not MAYBE or status != OK} == sure
    words = CASES[case][-1]
    for _, m in run.all("noise_scale"):
        assert m.status != "ok" or math.isfinite(m.value)
    reasons = [m.reason for _, m in run.all("noise_trace") if m.status != "ok"]
    assert all(words in reason for reason in reasons), reasons
    assert "probe_failed" not in run.kinds()
    methods = {step - lead: m.method for step, m in run.all("noise_trace")}
    assert lead == 0 or expected[0] != OK or methods[0] == METHOD, "the lead is long enough for what it is for"
