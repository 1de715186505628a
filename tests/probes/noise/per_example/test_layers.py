"""Each layer type against a loop over single examples, in float64 to 1e-10."""

import pytest
import torch
from torch import nn

from learnmech.probes.noise.per_example import forms

R = torch.randn

LAYERS = {
    "linear": lambda: (nn.Linear(5, 3), R(4, 5)),
    "linear on sequences, materialised": lambda: (nn.Linear(5, 3), R(4, 7, 5)),
    "linear on sequences, Gram": lambda: (nn.Linear(50, 30), R(4, 2, 3, 50)),
    "linear without bias": lambda: (nn.Linear(5, 3, bias=False), R(4, 7, 5)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), R(5, 4, 11)),
    "conv2d": lambda: (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        R(5, 4, 9, 8),
    ),
    "conv2d same": lambda: (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), R(5, 4, 9, 8)),
    "conv2d valid": lambda: (nn.Conv2d(4, 6, 3, padding="valid", bias=False), R(5, 4, 6, 6)),
    "conv2d circular": lambda: (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), R(5, 4, 9, 8)),
    "conv2d depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4), R(5, 4, 6, 6)),
    "conv2d that leaves a rest": lambda: (nn.Conv2d(2, 3, 2, stride=3), R(5, 2, 9, 7)),
    "conv3d": lambda: (nn.Conv3d(2, 4, 2, stride=2, padding=1), R(3, 2, 5, 4, 6)),
    "embedding with repeats": lambda: (nn.Embedding(5, 3, padding_idx=1), torch.randint(5, (4, 9))),
    "embedding of one each": lambda: (nn.Embedding(5, 3), torch.randint(5, (4,))),
    "sparse embedding": lambda: (nn.Embedding(5, 3, sparse=True), torch.randint(5, (4, 9))),
    "layer norm": lambda: (nn.LayerNorm(6), R(4, 7, 6)),
    "layer norm without bias": lambda: (nn.LayerNorm(6, bias=False), R(4, 7, 6)),
    "layer norm over two": lambda: (nn.LayerNorm((7, 6)), R(4, 7, 6)),
    "rms norm": lambda: (nn.RMSNorm(6), R(4, 7, 6)),
    "group norm": lambda: (nn.GroupNorm(2, 6), R(4, 6, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(oracle, name):
    layer, x = LAYERS[name]()
    for p in layer.parameters():
        nn.init.normal_(p)
    oracle.check(layer, oracle.cubic, (x,))


@pytest.mark.parametrize("shape", [(6, 1, 3, 40, 50), (6, 2, 70, 4, 5)])
def test_slices_do_not_change_the_sum(monkeypatch, shape):
    """Gram and materialised form against one einsum over everything."""
    examples, groups, positions, rows, columns = shape
    outer = forms.Outer(R(examples, groups, positions, rows), R(examples, groups, positions, columns))
    truth = torch.einsum("bgto,bgti->bgoi", outer.left, outer.right).flatten(1).square().sum(1)
    for scratch in (1, 1 << 13, 1 << 30):
        monkeypatch.setattr(forms, "SCRATCH", scratch)
        torch.testing.assert_close(outer.squares(), truth, rtol=1e-12, atol=0)


def test_one_example_at_a_time_is_all_the_memory_that_is_asked_for(monkeypatch):
    seen = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(product(a, b)) or seen[-1])
    monkeypatch.setattr(forms, "SCRATCH", 1)
    forms.Outer(R(6, 1, 3, 40), R(6, 1, 3, 50)).squares()
    assert len(seen) == 12
    assert max(product.numel() for product in seen) == 9
