"""Batches: copies share nothing with the original, keep its types, and pieces cover it exactly."""

import collections
import dataclasses
import types
import typing

import numpy as np
import pytest
import torch

from learnmech.probes.isolation import Refusal
from learnmech.probes.isolation.batch import clone, tensors
from learnmech.probes.isolation.counting import count
from learnmech.probes.pieces import sizes, split


class Pair(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    rest: list


class Encoding(collections.UserDict):
    """As tokenizers return it."""


class Table(dict):
    """A mapping of one's own."""


def everything():
    shared = torch.zeros(2)
    return {
        "tuple": (torch.zeros(2), 1, "a"),
        "named": Pair(torch.zeros(2), torch.zeros(2)),
        "list": [torch.zeros(2), [torch.zeros(2)], {"deep": torch.zeros(2)}],
        "dataclass": Sample(torch.zeros(2), [torch.zeros(2)]),
        "encoding": Encoding(ids=torch.zeros(2)),
        "table": Table(x=torch.zeros(2)),
        "default": collections.defaultdict(list, x=[torch.zeros(2)]),
        "array": np.zeros(2),
        "object": types.SimpleNamespace(x=torch.zeros(2), inner=types.SimpleNamespace(y=torch.zeros(2))),
        "packed": torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 1)]),
        "shared": [shared, shared],
        "plain": ("a", None, 1.0, torch.float32),
        "set": {1, 2},
    }


def test_nothing_done_to_a_copy_reaches_the_original():
    original, reference = everything(), everything()
    twin = clone(original)
    assert [type(v) for v in twin.values()] == [type(v) for v in original.values()]
    for tensor in tensors(twin):
        tensor.add_(1)
    twin["array"] += 1
    twin["list"].append(3)
    twin["list"][1].clear()
    twin["dataclass"].rest.clear()
    twin["dataclass"].x = None
    twin["encoding"].pop("ids")
    twin["table"].pop("x")
    twin["default"]["new"].append(1)
    twin["object"].inner.y = None
    twin.pop("named")
    assert repr(original) == repr(reference)
    assert all(torch.equal(a, b) for a, b in zip(tensors(original), tensors(reference), strict=True))


def test_what_was_one_object_stays_one():
    twin = clone(everything())
    assert twin["shared"][0] is twin["shared"][1]


def test_tensors_keep_requiring_gradients():
    twin = clone({"x": torch.zeros(2, requires_grad=True), "y": torch.zeros(2)})
    assert twin["x"].requires_grad
    assert twin["x"].is_leaf
    assert not twin["y"].requires_grad


def test_pieces_cover_the_batch():
    batch = {
        "x": torch.arange(10).reshape(10, 1),
        "y": (torch.arange(10), [str(i) for i in range(10)]),
        "scalar": torch.tensor(3.0),
        "array": np.arange(10),
        "label": "all",
        "table": [1.0, 2.0],
    }
    pieces = split(batch, 4)
    assert [count(piece) for piece in pieces] == sizes(10, 4) == [3, 3, 2, 2]
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), batch["x"])
    assert [name for piece in pieces for name in piece["y"][1]] == batch["y"][1]
    assert np.array_equal(np.concatenate([piece["array"] for piece in pieces]), batch["array"])
    assert all(piece["label"] == "all" and piece["table"] == [1.0, 2.0] and piece["scalar"] == 3.0 for piece in pieces)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(4), "y": torch.zeros(5)}, r"first dimensions \[4, 5\]"),
        ("text", "No tensor"),
        (torch.zeros(3), "cannot be cut into 4"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused_with_a_remedy(batch, message):
    with pytest.raises(Refusal, match=message) as caught:
        split(batch, 4)
    assert "split=" in str(caught.value)
