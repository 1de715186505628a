"""What `source="auto"` takes where an update is one batch: single examples where that is right and safe, else cutting.

The oracle is `expected` of the conftest, from gradients that a loop computed one by one.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.noise.choice import CUT_EVERY
from learnmech.probes.noise.leaves import LeafHooks
from learnmech.probes.noise.per_example import PerExample
from learnmech.probes.noise.per_example.safety import unasked

B, STEPS = 8, CUT_EVERY + 2
CUT = "split_batch_in_4"
USUAL = [CUT, *["examples"] * (CUT_EVERY - 1), CUT, "examples"]


def network(*inner):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *inner, nn.Tanh(), nn.Linear(6, 2))


def batches(steps=STEPS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [[(torch.randn(B, 4, generator=generator), torch.randn(B, 2, generator=generator))] for _ in range(steps)]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def methods(run):
    return [m.method for _, m in run.all("noise_trace") if m.value is not None]


def notices(run):
    return [event.message for event in run.of_kind("probe_notice")]


@pytest.fixture
def unhooked(monkeypatch):
    """Fails where a hook for single examples is put on anything."""
    armed = []
    monkeypatch.setattr(PerExample, "arm", lambda self: armed.append("examples"))
    monkeypatch.setattr(LeafHooks, "arm", lambda self: armed.append("leaves"))
    return armed


def test_examples_and_now_and_then_a_cut(oracle, spool):
    model, data = network(), batches()
    run = oracle.train(spool, model, loss, data)
    assert methods(run) == USUAL
    assert list(run.values("noise_trace_between")) == [CUT_EVERY]
    assert not notices(run)
    for step, value in run.values("noise_trace").items():
        if USUAL[step] == "examples":
            trace, square = oracle.expected(oracle.every_gradient(model, loss, data[step][0]), torch.ones(B))
            assert value == pytest.approx(trace, rel=1e-9)
            assert run.values("grad_sq_norm")[step] == pytest.approx(square, rel=1e-9)


def contrastive(model, batch):
    a, b = model(batch[0]), batch[1]
    return nn.functional.cross_entropy(a @ b.T, torch.arange(len(a)))


def over_tokens(model, batch):
    """A mean over tokens, of which each example holds another number."""
    counts = 1 + (10 * batch[1][:, 0].abs()).floor()
    return ((model(batch[0]) - batch[1]).square().sum(1) * counts).sum() / counts.sum()


@pytest.mark.parametrize("coupled", [contrastive, over_tokens])
def test_a_loss_that_is_no_mean_over_examples(oracle, spool, unhooked, coupled):
    run = oracle.train(spool, network(), coupled, batches())
    assert methods(run) == [CUT] * STEPS
    assert len(notices(run)) == 1
    assert "not the mean of the gradients of its examples" in notices(run)[0]
    assert "units=" in notices(run)[0]
    assert not unhooked


def test_dropout_does_not_look_like_that(oracle, spool):
    assert methods(oracle.train(spool, network(nn.Dropout(0.4)), loss, batches())) == USUAL


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x[:, None])[0][:, -1])


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return x * self.w.sin()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: network(nn.BatchNorm1d(6)), "BatchNorm1d makes the loss of an example depend"),
        (Recurrent, "inside a recurrent layer"),
        (lambda: network(Unknown()), "without a rule"),
    ],
)
def test_what_is_not_covered_or_not_safe_is_cut(oracle, spool, make, reason):
    run = oracle.train(spool, make(), loss, batches())
    assert set(methods(run)) == {CUT}
    assert len(methods(run)) >= STEPS - 1
    assert len(notices(run)) == 1
    assert reason in notices(run)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_modules_that_get_no_hooks():
    assert "is scripted" in unasked(nn.Sequential(torch.jit.script(nn.Linear(2, 2))))
    assert "runs copies of modules" in unasked(nn.DataParallel(nn.Linear(2, 2)))
    assert unasked(network()) == ""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
@pytest.mark.parametrize("how", ["wrapped", "compile()", "inside", "forward"])
def test_compiled_modules_get_no_hooks_and_are_not_compiled_again(oracle, spool, unhooked, how):
    torch._dynamo.reset()
    model = network()
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    elif how == "compile()":
        model.compile(backend="eager")
    elif how == "inside":
        model[2] = torch.compile(model[2], backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    counted = []

    def counting():
        for batch in batches():
            counted.append(dict(torch._dynamo.utils.counters["frames"]))
            yield batch

    run = oracle.train(spool, model, loss, counting())
    assert methods(run) == [CUT] * STEPS
    assert "is compiled" in notices(run)[0]
    assert not unhooked
    assert counted[2] == counted[-1], "after the first cut, which has stand-ins for the weights"


def test_a_compiled_function_is_not_compiled_again(oracle, spool):
    """No module shows that it is compiled: its hooks do not run, and single examples are given up."""
    torch._dynamo.reset()
    model = network()
    compiled, counted = torch.compile(lambda x, y: (model(x) - y).square().sum(1).mean(), backend="eager"), []

    def counting():
        for batch in batches():
            counted.append(dict(torch._dynamo.utils.counters["frames"]))
            yield batch

    run = oracle.train(spool, model, lambda _, batch: compiled(*batch), counting())
    assert set(methods(run)) == {CUT}
    assert counted[2] == counted[-1]


class Checkpointed(nn.Module):
    def __init__(self, reentrant, inner=()):
        super().__init__()
        self.first, self.net, self.reentrant = nn.Linear(4, 4), network(*inner), reentrant

    def forward(self, x):
        return checkpoint(self.net, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_are_exact(oracle, spool, reentrant):
    """Computed twice, counted once."""
    torch.manual_seed(0)
    model, data = Checkpointed(reentrant), batches()
    run = oracle.train(spool, model, loss, data)
    assert methods(run) == USUAL
    for step in (1, CUT_EVERY - 1):
        model.reentrant = False  # the other kind allows no torch.autograd.grad
        exact = oracle.expected(oracle.every_gradient(model, loss, data[step][0]), torch.ones(B))[0]
        assert run.values("noise_trace")[step] == pytest.approx(exact, rel=1e-9)


def test_a_part_that_is_not_kept_in_a_checkpoint_is_cut(oracle, spool):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.scale

    torch.manual_seed(0)
    run = oracle.train(spool, Checkpointed(False, [Scale()]), loss, batches())
    assert set(methods(run)) == {CUT}
    assert "not kept" in notices(run)[0]


def test_weight_decay_in_the_loss(oracle, spool):
    """It enters without examples, and its part of the gradient is seen by no layer: void three times, then cut."""

    def decayed(model, batch):
        return loss(model, batch) + 0.5 * sum(p.square().sum() for p in model.parameters())

    run = oracle.train(spool, network(), decayed, batches())
    assert set(methods(run)) == {CUT}
    void = [m for _, m in run.all("noise_trace") if m.value is None]
    assert {m.status for m in void} <= {"undetermined"}
    assert len(void) <= 3
    assert "add up" in notices(run)[0]


def test_where_the_loss_cannot_be_evaluated(oracle, spool):
    """Examples need no replay: they go on alone, and what was not tested is said."""
    refused = lambda recorder: recorder._engine.refuse_replays(0, "It cannot be replayed.")
    run = oracle.train(spool, network(), loss, batches(), before=refused)
    assert list(run.values("noise_trace")) == list(range(1, STEPS)), "the first update tells how many examples"
    assert set(methods(run)) == {"examples"}
    assert not run.values("noise_trace_between")
    assert "was not tested" in notices(run)[0]


def test_where_nothing_is_left(spool):
    model = network(nn.BatchNorm1d(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, loss, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        recorder._engine.refuse_replays(0, "It cannot be replayed.")
        for ((x, y),) in batches(4):
            loss(model, (x, y)).backward()
            optimizer.step()
            recorder.after_step((x, y))
    (refusal,) = [m for _, m in spool().all("noise_trace")]
    assert refusal.status == "unsupported"
    assert "BatchNorm1d" in refusal.reason
    assert "cannot be replayed" in refusal.reason


def test_batches_that_are_not_rows_of_examples(oracle, spool, unhooked):
    """Who cuts batches in a way of his own has others."""
    probe = GradientNoiseScale(every(1), split=lambda b, n: [tuple(x[k::n] for x in b) for k in range(n)])
    run = oracle.train(spool, network(), loss, batches(), probe)
    assert methods(run) == [CUT] * STEPS
    assert not unhooked


def test_training_is_that_without_it(oracle, tmp_path, recorded):
    ends = []
    for number, steps in enumerate((every(1), every(10**6, start=10**6))):
        model, folder = network(nn.Dropout(0.3)), tmp_path / str(number)

        class Spool:
            url = f"spool:{folder}"

            def __call__(self, folder=folder):
                return recorded(folder)

        torch.manual_seed(3)
        oracle.train(Spool(), model, loss, batches(20), GradientNoiseScale(steps), lr=0.05)
        parameters = list(model.parameters())
        ends.append([*(p.detach() for p in parameters), *(p.grad for p in parameters), torch.rand(3)])
        hooks = [p._backward_hooks for p in parameters] + [m._forward_hooks for m in model.modules()]
        assert not any(hooks)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
