"""Two optimizers that take turns, with several groups of parameters: a recorder for each, blind to the other's."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, Sharpness, Vitals, WeightDynamics, every

ROUNDS = 4


def train(first, second):
    """A tug of war: `a` descends what `b` ascends; each optimizer holds two groups with their own learning rates."""
    torch.manual_seed(5)
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 1)}).double()
    optimizers = {
        name: torch.optim.SGD([{"params": model[name].weight, "lr": 0.1}, {"params": model[name].bias, "lr": 0.02}])
        for name in ("a", "b")
    }
    x = torch.randn(8, 3, dtype=torch.float64)
    losses = {
        "a": lambda model, x: model["b"](torch.tanh(model["a"](x))).square().mean(),
        "b": lambda model, x: -model["b"](torch.tanh(model["a"](x))).square().mean() + model["b"].weight.square().sum(),
    }
    recorders, norms = {}, {"a": [], "b": []}
    probes = lambda: [Sharpness(every(1), tol=1e-6), WeightDynamics(every(1)), Vitals(every(1))]
    for name, sink in (("a", first), ("b", second)):
        if sink:
            recorder = Recorder(model, optimizers[name], losses[name], probes(), sink=sink, run=name, strict=True)
            recorders[name] = recorder.__enter__()
    curvature = {"a": [], "b": []}
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            model.zero_grad()
            loss = losses[name](model, x)
            curvature[name].append(top_eigenvalue(model, name, losses[name], x))
            loss.backward()
            if name in recorders:
                recorders[name].after_backward(x)
            before = [p.detach().clone() for p in model[name].parameters()]
            optimizer.step()
            moved = [p.detach() - old for p, old in zip(model[name].parameters(), before, strict=True)]
            norms[name].append(float(torch.cat([m.flatten() for m in moved]).norm()))
            if name in recorders:
                recorders[name].after_step(x, loss)
    for recorder in recorders.values():
        recorder.close()
    return model, norms, curvature


def top_eigenvalue(model, name, loss, x):
    """The Hessian of one player's weights as a matrix, by torch: no code of ours."""
    own = dict(model[name].named_parameters())
    flat = torch.cat([p.detach().flatten() for p in own.values()])

    def value(flat):
        pieces = flat.split([p.numel() for p in own.values()])
        tensors = {f"{name}.{key}": piece.view(p.shape) for (key, p), piece in zip(own.items(), pieces, strict=True)}
        everything = dict(model.named_parameters()) | tensors
        call = lambda key: lambda x: nn.functional.linear(x, everything[f"{key}.weight"], everything[f"{key}.bias"])

        class View(dict):
            def __missing__(self, key):
                layer = call(key)
                layer.weight = everything[f"{key}.weight"]
                return layer

        return loss(View(), x)

    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, flat))[-1])


def test_each_sees_its_own(spools, digest, training_state):
    first, second = spools(), spools()
    model, norms, curvature = train(first.url, second.url)
    for name, spool in (("a", first), ("b", second)):
        run = spool()
        assert list(run.values("update_norm").values()) == pytest.approx(norms[name])
        assert list(run.values("sharpness").values()) == pytest.approx(curvature[name], rel=1e-4)
        assert {m.status.value for _, m in run.all("sharpness")} == {"ok"}
    plain, _, _ = train("", "")
    assert digest(training_state(model)["parameters"]) == digest(training_state(plain)["parameters"])
