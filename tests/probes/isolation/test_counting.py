"""How many examples a batch holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from learnmech.probes.isolation.counting import count, examples


class Pair(NamedTuple):
    x: torch.Tensor
    y: Any


@dataclass
class Batch:
    name: str
    x: torch.Tensor


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 2),
        (torch.zeros(3, 2), torch.zeros(7)),
        [torch.tensor(1.0), torch.zeros(3)],
        {"id": ["a", "b"], "inputs": {"tokens": torch.zeros(3, 5)}},
        Pair(torch.zeros(3), None),
        Batch("a", torch.zeros(3, 1)),
    ],
)
def test_count_of_the_first_tensor_that_has_one(batch):
    assert examples(batch) == 3


@pytest.mark.parametrize("batch", [None, 4, "text", {}, [torch.tensor(1.0)]])
def test_otherwise_it_says_what_to_pass(batch):
    with pytest.raises(ValueError, match="pass weights="):
        examples(batch)


class Unloaded(Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("not loaded")


def test_a_batch_that_cannot_be_looked_into_has_no_count():
    within = []
    within.append(within)
    assert count(Unloaded()) is count(within) is None
    assert count((torch.zeros(3), Unloaded())) == 3
