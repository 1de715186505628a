"""Decay's share and the fluctuation-dissipation relation are those of the gradient that the optimizer got."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every

DECAY, RATE = 0.05, 0.05


def scaled(model):
    for p in (*model[0].parameters(), *model[2].parameters()):
        p.grad.mul_(1024.0)


def clipped(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def loose(model):
    nn.utils.clip_grad_norm_(model.parameters(), 1e6)


def replaced(model):
    for p in (*model[0].parameters(), *model[2].parameters()):
        p.grad = 0.25 * p.grad


def in_part(model):
    model[0].weight.grad.clamp_(-1e-3, 1e-3)


def unscaled(model):
    for p in (*model[0].parameters(), *model[2].parameters()):
        p.grad.div_(1024.0)


def unscaled_and_clipped(model):
    unscaled(model)
    clipped(model)


def nothing(model):
    pass


def train(
    spool, change, *, before=nothing, after=nothing, make=torch.optim.SGD, scale=None, told=True, steps=8, **more
):
    """Train, and change the gradient between the look and the update; return the run, and what the truth is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model.idle = nn.Linear(30, 30).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))
    optimizer = make(model.parameters(), lr=RATE, weight_decay=DECAY, **more)
    loss_fn = lambda model, x: (model(x) - x[:, :3]).square().mean()
    used = [*model[0].parameters(), *model[2].parameters()]
    flat = lambda tensors: torch.cat([t.detach().flatten() for t in tensors]).clone()
    true = SimpleNamespace(share={}, left=[], right=[], norm={})
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1))], sink=spool.url, budget=0) as recorder:
        for step in range(steps):
            x = torch.randn(8, 5, dtype=torch.float64)
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            true.norm[step] = float(flat(p.grad for p in model[0].parameters()).norm())
            before(model)
            if scale is not None:
                optimizer.grad_scale = scale.clone()
            if told:
                recorder.after_backward(x)
            if scale is not None:
                del optimizer.grad_scale
            change(model)
            w, g = flat(used), flat(p.grad for p in used)
            optimizer.step()
            s = flat(used) - w
            decoupled = make is torch.optim.AdamW
            decayed, moved = (RATE * DECAY * w, s) if decoupled else (DECAY * w, g + DECAY * w)
            true.share[step] = float(decayed.norm() / moved.norm())
            true.left.append(float(w @ (g + DECAY * w)))
            true.right.append(float(s @ s) / (2 * RATE))
            after(model)
            recorder.after_step(x)
    return spool(), true


CHANGES = {
    "nothing": {"change": nothing},
    "clipped": {"change": clipped},
    "a bound that is not reached": {"change": loose},
    "others in their place": {"change": replaced},
    "one of them": {"change": in_part},
    "unscaled": {"change": unscaled, "before": scaled, "scale": torch.tensor(1024.0)},
    "unscaled and clipped": {"change": unscaled_and_clipped, "before": scaled, "scale": torch.tensor(1024.0)},
    "clipped, seen at the step": {"change": clipped, "told": False},
    "taken away after the update": {"change": clipped, "after": lambda model: model.zero_grad()},
}


@pytest.mark.parametrize("case", CHANGES)
def test_of_sgd(case, spool):
    """The oracle looks at weights and gradients right before and after `optimizer.step()`, and at no idle layer."""
    run, true = train(spool, **CHANGES[case])
    assert run.values("weight_decay_share") == pytest.approx(true.share, rel=1e-9)
    keep = 0.5 ** (1 / 50)  # the half-life of the windows
    for step, found in run.values("fluctuation_dissipation").items():
        left, right = (sum(keep ** (step - k) * side[k] for k in range(step + 1)) for side in (true.left, true.right))
        assert found == pytest.approx(left / right, rel=1e-9)
    if CHANGES[case].get("told", True):
        assert run.values("grad_norm", "0") == pytest.approx(true.norm, rel=1e-9), "before clipping, unscaled"
    assert not run.of_kind("probe_failed")


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam])
def test_of_adam(make, spool):
    run, true = train(spool, clipped, make=make)
    assert run.values("weight_decay_share") == pytest.approx(true.share, rel=1e-6)


def test_a_gradient_that_was_cleared_is_not_taken_for_one(spool):
    run, _ = train(spool, nothing, after=lambda model: model.zero_grad(set_to_none=False))
    assert run.values("fluctuation_dissipation") == {0: None}
    ((_, told),) = run.all("fluctuation_dissipation")
    assert "cleared before after_step" in told.reason
    assert {m.status for _, m in run.all("weight_decay_share")} == {"undetermined"}
    assert run.values("grad_norm", "0"), "which was seen"


def test_nothing_is_kept_for_an_optimizer_that_does_not_need_it(spool):
    """A gradient that would be looked at again is kept; AdamW asks for none."""
    kept = []
    probe = WeightDynamics(every(1))
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    loss_fn = lambda model, x: model(x).square().mean()
    with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, budget=0) as recorder:
        for _ in range(2):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            recorder.after_backward(x)
            kept.append(dict(probe._seen.tensors))
            optimizer.step()
            recorder.after_step(x)
    assert kept == [{}, {}]


class OfSigns(torch.optim.SGD):
    """A subclass of SGD that steps in another way."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


class Renamed(torch.optim.SGD):
    """A subclass that steps as SGD does."""


@pytest.mark.parametrize(("make", "related"), [(OfSigns, False), (Renamed, True)])
def test_the_relation_is_that_of_the_step_of_sgd(make, related, spool):
    run, _ = train(spool, nothing, make=make)
    assert (run.values("fluctuation_dissipation") != {0: None}) is related
