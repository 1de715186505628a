"""Other models of the process that are compiled: an actor beside the learner, a teacher."""

import pytest
import torch
from torch import nn

from learnmech.probes.noise.per_example.safety import unasked

R = torch.randn


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x):
        return 2 * self.net(x)


def compiled(way):
    model = Other()
    if way == "in place":
        model.compile(backend="aot_eager")
        return model
    return torch.compile(model if way == "module" else lambda x: 2 * model(x), backend="aot_eager")


@pytest.mark.parametrize("way", ["module", "in place", "function"])
def test_it_is_not_compiled_again(oracle, way):
    """Neither does torch warn of hooks; where nobody asked for hooks there are none."""
    other, model, x = compiled(way), nn.Linear(4, 2), R(5, 4)
    assert way == "in place" or "compiled" in unasked(model)
    for _ in range(2):
        other(x)
    graphs = torch._dynamo.utils.counters["stats"]  # `compile()` also takes a look at the frame that calls hooks, once
    before = dict(graphs)
    for _ in range(3):
        examples = oracle.PerExample(model, oracle.named(model), 5)
        with examples:
            other(x)
            model(x).square().sum().backward()
            other(x)
        other(x)
        assert (examples.reason, examples.uncovered, examples.coverage) == ("", {}, 1.0)
    assert dict(graphs) == before
    assert "compiled" in unasked(model)


def test_checkpoints_and_optimizers_are_not_compiled(oracle):
    model = nn.Linear(4, 2)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.utils.checkpoint.checkpoint(model, R(5, 4), use_reentrant=False)
    assert unasked(model) == ""
