"""Certificates: not by chance in wide layers, taken back from the wrong form, tested on the loss once each."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every
from learnmech.probes.estimators import Motion
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetries import Symmetries
from learnmech.probes.symmetry import Certificates, Group, Kind, Part, ScaleInvariance
from learnmech.probes.symmetry.optimizers import updates_of
from learnmech.probes.symmetry.rescaling import FACTOR, RescalingTests

FINE, COARSE = (Group(Kind.SCALE, label, (Part("w"),), "one family") for label in ("fine", "coarse"))


def view_of(model, optimizers=(), isolate=None, defer=None, **known):
    return TrainingView(0, model, list(optimizers), dict(model.named_parameters()), isolate, defer, None, **known)


@pytest.mark.parametrize(("cosine", "certified"), [(1.0, False), (2.0**-9, True)], ids=["chance", "rounding"])
def test_a_wide_layer_in_half_precision_is_not_certified_by_chance(cosine, certified):
    """Cosines as chance has them, N(0, 1/n), are all below 1e-3 here; rounding of a symmetry is 2^-9 of them."""
    model = nn.Linear(4096, 4096, bias=False, device="meta", dtype=torch.bfloat16)
    invariance = ScaleInvariance()
    invariance.find(view_of(nn.Sequential(model), precise=False))
    drawn = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4096.0
    assert drawn.abs().max() < 1e-3
    for along in (cosine * drawn).tolist():
        invariance.look({"0.weight": Motion(4096**2, 1.0, 0.0, 0.0, 1.0, along, 1)})
    assert bool(invariance._certificates.certified()) is certified


@pytest.mark.parametrize(("cosine", "certified"), [(5e-4, False), (1e-4, True)])
def test_so_do_symmetries(cosine, certified):
    torch.manual_seed(0)
    model, found, probe = nn.Sequential(nn.Linear(512, 512, bias=False)).bfloat16(), [], Symmetries(every(1))
    w = model[0].weight
    view = view_of(model, [torch.optim.SGD([w], lr=0.0)], defer=lambda v, build: found.append((v, build)))
    for _ in range(6):
        unit, other = w.detach().double() / w.detach().double().norm(), torch.randn(512, 512, dtype=torch.float64)
        other -= (other * unit).sum() * unit
        w.grad = (other / other.norm() + cosine * unit).bfloat16()
        view.gradients = {"0.weight": w.grad}
        probe.prepare(view)
        probe.measure(view)
        values, build = found.pop()
        build([float(x) for value in values for x in value.reshape(-1)])
    assert bool(probe.certificates.certified(Kind.SCALE)) is certified


def test_what_was_taken_for_finer_leaves_the_place_to_the_coarser():
    given = Certificates()
    given.offer([FINE, COARSE])

    def look(group, residual, times):
        for _ in range(times):
            given.look(group, residual, 1e-4)

    look(COARSE, 0.0, 4)
    look(FINE, 0.0, 5)
    assert given.certified() == given.open() == [FINE], "the coarser need not be looked at"
    look(FINE, 1.0, 3)
    assert given.certified() == []
    assert given.open() == [FINE, COARSE]
    assert given.ever() == [FINE], "a symmetry that broke, as long as no other explains it"
    look(COARSE, 0.0, 4)
    assert given.certified() == [], "looks from before the finer one was certified do not count"
    look(COARSE, 0.0, 1)
    assert given.certified() == given.open() == given.ever() == [COARSE]
    given.offer([FINE, COARSE])
    assert given.open() == [COARSE]


def test_one_that_is_certified_again_after_it_was_withdrawn():
    given = Certificates()
    given.offer([FINE, COARSE])
    for residual, times in ((0.0, 5), (1.0, 3), (0.0, 5)):
        for _ in range(times):
            given.look(FINE, residual, 1e-4)
    assert given.certified() == given.open() == given.ever() == [FINE]
    given.withdraw(FINE)
    given.offer([FINE, COARSE])
    assert given.open() == [FINE, COARSE], "also where parameters come or go meanwhile"


def test_a_bias_that_grows_from_zero(spool, examples):
    """Alone the weight before a LayerNorm seems scale invariant at first; with its bias it is so for good."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)).double()
    nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, weight_decay=0.0)
    probe, seen = Symmetries(every(1)), []
    with Recorder(model, optimizer, examples.loss, [probe], sink=spool.url, budget=0, strict=True) as recorder:
        for step in range(30):
            optimizer.param_groups[0]["lr"] = 1e-7 if step < 8 else 1e-2
            batch = examples.batch(64, 6, seed=step)
            optimizer.zero_grad()
            examples.loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            seen.append([group.label for group in probe.certificates.certified(Kind.SCALE)])
    assert seen[7] == ["0"]
    assert seen[29] == ["0 with bias"]
    residual = spool().values("symmetry_residual", "symmetry:scale")
    assert max(residual.values()) > 1e-4
    assert residual[29] < 1e-4, "nothing counts as broken any longer"


class Leaves:
    """A loss of copies of the weights that the sum of their squares determines; what it was given is kept."""

    def __init__(self, weights):
        self.leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
        self.now, self.given = list(self.leaves.values()), []

    def at(self, tensors, work):
        self.now = list(tensors)
        self.given.append({name: t.detach().clone() for name, t in zip(self.leaves, tensors, strict=True)})
        found, self.now = work(), list(self.leaves.values())
        return found

    def __call__(self, batch):
        return torch.stack([(w / w.norm()).pow(3).sum() for w in self.now]).sum()


def whole(name, *steps):
    return Part(name, (*steps, ("reshape", (1, -1))))


@pytest.mark.parametrize(
    ("groups", "weights"),
    [
        ([[whole("w")], [whole("w"), whole("b")]], {"w": (4, 3), "b": (4,)}),
        ([[whole("w")], [whole("w", ("t", ()))]], {"w": (4, 3)}),
        ([[whole("w", ("narrow", (0, k, 2)))] for k in (0, 2)], {"w": (4, 3)}),
    ],
    ids=["alone and with its bias", "tied, the other way round", "parts of one"],
)
def test_weights_of_several_groups_are_scaled_once(groups, weights):
    torch.manual_seed(0)
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(shape)) for name, shape in weights.items()})
    loss = Leaves(dict(model.named_parameters()))
    view = view_of(model, isolate=lambda work, **_: work(loss), batch=0)
    certified = [Group(Kind.SCALE, str(k), tuple(parts), str(k)) for k, parts in enumerate(groups)]
    tests = RescalingTests()
    tests.next(view, certified)
    assert len(tests.found) == 2
    for given, factor in zip(loss.given[2:4], (FACTOR, FACTOR**2), strict=True):
        for name, w in model.items():
            torch.testing.assert_close(given[name], factor * w.detach())


@pytest.mark.parametrize(("failures", "tested"), [(2, True), (3, False)])
def test_one_evaluation_that_fails_is_not_the_end_of_the_tests(failures, tested, monkeypatch, spool, examples):
    """A lack of memory may pass; three failures do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe, test, failed = Symmetries(every(1), rescale=True), RescalingTests._test, []

    def sometimes(tests, view, group):
        if len(failed) < failures:
            failed.append(group)
            raise MemoryError("no room")
        return test(tests, view, group)

    monkeypatch.setattr(RescalingTests, "_test", sometimes)
    with Recorder(model, optimizer, examples.loss, [probe], sink=spool.url, budget=0) as recorder:
        for step in range(12):
            batch = examples.batch(32, 6, seed=step)
            optimizer.zero_grad()
            examples.loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    assert len(failed) == failures
    assert bool(probe.rescaled) is probe.replays is tested
    told = [event.message for event in spool().of_kind("probe_notice")]
    assert any("no test by rescaling (MemoryError: no room)" in message for message in told)
    assert not spool().of_kind("probe_failed")
    assert set(spool().values("symmetry_residual", "symmetry:rescale")) == set(range(4, 12))


def test_a_rate_on_the_device_that_was_never_read_says_so():
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    view = view_of(model, [optimizer])
    assert "changes too often to be read" in updates_of(view, {"0.weight"}).reason
    view.hyperparameters = {"0.weight": dict.fromkeys(
        ("learning_rate", "momentum", "dampening", "nesterov", "weight_decay", "decoupled_weight_decay"), 0.0
    )}  # fmt: skip
    assert not updates_of(view, {"0.weight"}).reason


def test_where_parameters_are_sharded_it_says_who_measures():
    class Shard:
        _local_tensor = device_mesh = None

    with pytest.raises(Refusal, match="WeightDynamics finds"):
        Symmetries().prepare(TrainingView(0, nn.Identity(), [], {"w": Shard()}, None, None, None))
