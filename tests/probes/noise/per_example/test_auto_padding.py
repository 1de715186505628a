"""`auto` takes no single examples of a loss that is a mean over tokens, of which documents hold unequal numbers.

Losses cannot tell before training: all tokens then have the same one. Gradients can.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes import GradientNoiseScale, every
from learnmech.probes.noise.additive import Additive, judged
from learnmech.probes.noise.choice import CUT_EVERY

CUT = "split_batch_in_4"
PADDING = -100


@pytest.fixture(autouse=True)
def _single(_double):
    torch.set_default_dtype(torch.float32)


def model_of(classes, head=None, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(classes, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, classes))
    if head is not None:
        nn.init.normal_(model[-1].weight, std=head) if head else nn.init.zeros_(model[-1].weight)
        nn.init.zeros_(model[-1].bias)
    return model


def over_tokens(model, batch):
    return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=PADDING)


def over_documents(model, batch):
    each = cross_entropy(model(batch[0]).movedim(-1, 1), batch[1], ignore_index=PADDING, reduction="none")
    return (each.sum(1) / (batch[1] != PADDING).sum(1)).mean()


def documents(classes, steps, count=16, shortest=24, longest=32):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        x = torch.randint(classes, (count, longest), generator=generator)
        y = torch.randint(classes, (count, longest), generator=generator)
        lengths = torch.randint(shortest, longest + 1, (count, 1), generator=generator)
        y[torch.arange(longest) >= lengths] = PADDING
        found.append([(x, y)])
    return found


def methods(run):
    return [m.method for _, m in run.all("noise_trace") if m.value is not None]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("classes", "head"), [(100, None), (1000, None), (1000, 0.02), (100, 0.0)])
def test_a_mean_over_tokens_is_told_by_the_first_batch(oracle, spool, classes, head, dropout):
    run = oracle.train(spool, model_of(classes, head, dropout), over_tokens, documents(classes, 3))
    assert methods(run) == [CUT] * 3
    (notice,) = run.of_kind("probe_notice")
    assert "units=" in notice.message


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("classes", "head"), [(100, None), (1000, 0.02), (100, 0.0)])
def test_a_mean_over_documents_is_taken(oracle, spool, classes, head, dropout):
    data = documents(classes, CUT_EVERY + 2)
    run = oracle.train(spool, model_of(classes, head, dropout), over_documents, data)
    assert methods(run) == [CUT, *["examples"] * (CUT_EVERY - 1), CUT, "examples"]
    assert not run.of_kind("probe_notice")


def test_documents_of_one_length_at_first(oracle, spool):
    """What the first batch could not tell the next one that is cut does, and what was measured so far is forgotten."""
    data = documents(50, 2, shortest=32) + documents(50, 2 * CUT_EVERY)
    run = oracle.train(spool, model_of(50), over_tokens, data)
    found = methods(run)
    assert found[1:CUT_EVERY] == ["examples"] * (CUT_EVERY - 1)
    assert set(found[CUT_EVERY:]) == {CUT}
    assert len(run.of_kind("probe_notice")) == 1
    windows = {step: m.method for step, m in run.all("noise_scale")}
    assert windows[CUT_EVERY] == f"{CUT}_window_of_1"


def test_what_rounding_hides_is_unknown():
    scatter, size = 1.0, 4.0
    assert judged(1e-8, scatter, size, precise=True) is Additive.YES
    assert judged(1e-3, scatter, size, precise=True) is Additive.NO
    assert judged(1e-3, scatter, size, precise=False) is Additive.YES
    assert judged(1e-2, scatter, size, precise=False) is Additive.NO
    assert judged(0.0, 1e-10, 1.0, precise=True) is Additive.UNKNOWN, "pieces that are all alike"
    assert judged(0.0, 0.0, 0.0, precise=True) is Additive.UNKNOWN
    assert judged(float("nan"), scatter, size, precise=True) is Additive.UNKNOWN


def test_batches_that_are_all_alike_are_cut_until_they_are_not(oracle, spool):
    alike = [[(torch.full((8, 4), 3), torch.full((8, 4), 2))]] * 3
    run = oracle.train(spool, model_of(10), over_documents, alike + documents(10, 3))
    assert methods(run) == [CUT] * 4 + ["examples"] * 2


@pytest.mark.parametrize("source", ["auto", "examples"])
def test_an_empty_batch_is_got_over(oracle, spool, source):
    """No example, a loss of zero, once and twice in a row."""

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().sum() / max(len(batch[0]), 1)

    torch.manual_seed(0)
    full, empty = [(torch.randn(8, 4), torch.randn(8, 2))], [(torch.zeros(0, 4), torch.zeros(0, 2))]
    data = [full] * 3 + [empty] + [full] * 3 + [empty, empty] + [full] * 6
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    run = oracle.train(spool, model, loss, data, GradientNoiseScale(every(1), source=source))
    late = {step: m.method for step, m in run.all("noise_trace") if m.value is not None and step > 10}
    assert {"examples"} <= set(late.values()) <= {"examples", CUT}
    assert list(late) == [11, 12, 13, 14]
    assert not run.of_kind("probe_notice")
