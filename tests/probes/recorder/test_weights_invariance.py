"""Which weights the loss does not depend on the scale of: certified, tested on the loss, told to all who ask."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import BaseProbe, TrainingView
from learnmech.probes.symmetries import Symmetries
from learnmech.probes.symmetry import scale_invariant
from learnmech.probes.symmetry.rescaling import RescalingTests


class Replays(BaseProbe):
    """Evaluates the loss, so that it is tested whether that can be done."""

    default_name, replays = "replays", True

    def measure(self, view):
        return []


def train(model, spool, probes, *, steps=12, optimizer=None, orthogonal=(), counted=None, each=lambda step: None):
    """Train on random classes; gradients of the parameters named are made orthogonal to these."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        if counted is not None:
            counted.append(1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url, budget=0, strict=True) as recorder:
        for step in range(steps):
            batch = (torch.randn(16, 6), torch.randint(3, (16,)))
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            for name in orthogonal:
                w = model.get_parameter(name)
                w.grad -= (w.grad * w.detach()).sum() / w.detach().square().sum() * w.detach()
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
            each(step)
    return spool()


def normalized(bias=False, norm=nn.LayerNorm):
    torch.manual_seed(0)
    middle = norm(8, eps=1e-12, elementwise_affine=False) if norm is nn.LayerNorm else norm(8, eps=1e-12, affine=False)
    return nn.Sequential(nn.Linear(6, 8, bias=bias), middle, nn.ReLU(), nn.Linear(8, 3))


def counts(run):
    """How many members the scope had, by step."""
    return {step: m.method for step, m in run.all("angular_update", "scale_invariant")}


def test_the_loss_itself_decides_where_it_may_be_evaluated(spool):
    """A gradient made orthogonal looks like a symmetry, and rescaling shows that it is none."""
    run = train(normalized(), spool, [WeightDynamics(every(1)), Replays(every(1))], orthogonal=["3.weight"])
    found = counts(run)
    assert found == dict.fromkeys(range(6, 12), "rms_of_1"), "both failed together at 4, then each alone decided"
    assert max(run.values("scale_invariance", "scale_invariant").values()) < 1e-5


def test_what_fails_is_not_tested_for_ever(spool):
    """Together at 4, each alone at 5 and 6; then after 10, 20, ... looks in a row, not after every 5."""
    counted = []
    probes = [WeightDynamics(every(1)), Replays(every(1))]
    run = train(normalized(), spool, probes, orthogonal=["3.weight"], counted=counted, steps=60)
    assert len(counted) == 60 + 2 + 5 * 3 + 5 * 2, "steps, the test of the loss, rescaling, and again at 16 and 36"
    assert counts(run) == dict.fromkeys(range(6, 60), "rms_of_1")


def test_without_a_loss_the_inner_product_decides(spool):
    run = train(normalized(), spool, [WeightDynamics(every(1))], orthogonal=["3.weight"])
    assert counts(run) == dict.fromkeys(range(4, 12), "rms_of_2")


def test_all_that_are_certified_are_tested_at_once(spool):
    """Five evaluations for all layers, once."""
    torch.manual_seed(0)
    layers = [(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6, eps=1e-12, affine=False), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(6, 3))
    counted = []
    run = train(model, spool, [WeightDynamics(every(1)), Replays(every(1))], counted=counted)
    assert counts(run) == dict.fromkeys(range(5, 12), "rms_of_4")
    assert len(counted) == 12 + 2 + 5, "steps, the test of the loss, rescaling"


def test_a_loss_that_fails_at_rescaled_weights_costs_that_test_only(spool):
    model = normalized()
    probe = WeightDynamics(every(1))
    refuse = lambda *_, **__: (_ for _ in ()).throw(Refusal("The training step cannot be replayed."))
    probe._invariance.test = refuse
    view = TrainingView(0, model, [], dict(model.named_parameters()), None, lambda *_: None, dict)
    view.may_replay = True
    probe._test(view)
    assert "cannot be replayed" in probe.notice()
    assert probe._no_tests, "now or later"
    assert not probe.notice()
    run = train(model, spool, [WeightDynamics(every(1))])
    assert counts(run)


@pytest.mark.parametrize("decay", [None, 0.0])
def test_a_bias_before_a_normalization_turns_with_its_weight(spool, decay):
    """LayerNorm takes out the scale of weight and bias together; a law of both needs one rule for both."""
    model = normalized(bias=True)
    model[0].bias.data.normal_()
    rest = [p for name, p in model.named_parameters() if name != "0.bias"]
    groups = [{"params": rest}, {"params": [model[0].bias]} | ({} if decay is None else {"weight_decay": decay})]
    seen = []
    joined = lambda: torch.cat([model[0].weight.detach().flatten(), model[0].bias.detach()]).double()
    seen.append(joined())
    run = train(
        model,
        spool,
        [WeightDynamics(every(1), per_parameter=True)],
        optimizer=torch.optim.SGD(groups, lr=0.1, weight_decay=0.1),
        each=lambda step: seen.append(joined()),
    )
    if decay == 0.0:
        assert not counts(run)
        return
    assert counts(run) == dict.fromkeys(range(4, 12), "rms_of_1")
    for step, value in run.values("angular_update", "scale_invariant").items():
        cosine = torch.nn.functional.cosine_similarity(seen[step], seen[step + 1], dim=0)
        assert value == pytest.approx(float(torch.acos(cosine)), rel=1e-3)
    assert run.values("weight_decay", "scale_invariant") == {4: 0.1}
    assert not run.all("effective_learning_rate", "0.weight"), "not alone"


def test_one_answer_for_whoever_asks(spool):
    """Certificates of both probes count; units that are invariant each by itself are those `Symmetries` has seen."""
    model = normalized(norm=nn.BatchNorm1d)
    view = TrainingView(0, model, [], dict(model.named_parameters()), None, lambda *_: None, dict)
    weights, symmetries = WeightDynamics(every(1)), Symmetries(every(2))
    asked = []
    train(model, spool, [weights, symmetries], each=lambda step: asked.append(scale_invariant(view)))
    assert asked[3] == {}
    assert asked[4] == {"0.weight": 1}, "five looks of one probe"
    assert asked[9] == {"0.weight": 8}, "and of the other, every second step"
    weights.reset()
    assert scale_invariant(view) == {"0.weight": 8}


def test_a_tensor_that_loses_the_symmetry_loses_the_certificate(spool):
    model = normalized()

    def exchange(step):
        if step == 6:
            model[1] = nn.Tanh()

    run = train(model, spool, [WeightDynamics(every(1))], each=exchange)
    assert max(counts(run)) == 8, "three looks above the floor"
    assert run.values("scale_invariance", "scale_invariant")[8] > 1e-3, "which the law sees at once"


def confirmed(run):
    """How many members the loss itself has confirmed, by step."""
    return {step: m.method for step, m in run.all("scale_invariance", "scale_invariant")}


def test_who_has_certified_is_said(spools):
    """The loss at rescaled weights where it may be asked, else the gradient alone."""
    run = train(normalized(), spools(), [WeightDynamics(every(1)), Replays(every(1))])
    assert confirmed(run) == dict.fromkeys(range(5, 12), "loss_confirms_1_of_1")
    run = train(normalized(), spools(), [WeightDynamics(every(1))])
    assert confirmed(run) == dict.fromkeys(range(4, 12), "loss_confirms_0_of_1")


def test_a_loss_that_is_too_coarse_confirms_nothing(spool):
    """In bfloat16 rescaling by one per cent changes the loss by no more than rounding may, whatever the weights are."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(256, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(6, 256, bias=False), norm, nn.ReLU(), nn.Linear(256, 3))
    forward = model.forward

    def coarse(x):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x).float()

    model.forward = coarse
    run = train(model, spool, [WeightDynamics(every(1)), Replays(every(1))])
    assert set(confirmed(run).values()) == {"loss_confirms_0_of_1"}


@pytest.mark.parametrize(("failures", "tested"), [(2, True), (3, False)])
def test_one_evaluation_that_fails_is_not_the_end_of_the_tests(failures, tested, monkeypatch, spool):
    """A lack of memory may pass; three failures do not."""
    probe, test, failed = WeightDynamics(every(1)), RescalingTests._test, []

    def sometimes(tests, view, group):
        if len(failed) < failures:
            failed.append(group)
            raise MemoryError("no room")
        return test(tests, view, group)

    monkeypatch.setattr(RescalingTests, "_test", sometimes)
    run = train(normalized(), spool, [probe, Replays(every(1))])
    assert len(failed) == failures
    assert bool(probe._invariance._tests.found) is tested
    assert ("no room" in probe._no_tests) is not tested
    assert any("no room" in event.message for event in run.of_kind("probe_notice"))
    assert set(run.values("weight_norm")) == set(range(12))
