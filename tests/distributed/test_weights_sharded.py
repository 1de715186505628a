"""Weight dynamics where parameters are sharded: as in one process, and the others do not wait for one that fails."""

import pytest
import torch
from torch import nn

from learnmech.probes import WeightDynamics
from learnmech.probes.distributed.shares import surplus
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import TrainingView

CASES = ["fsdp", "fsdp, clipped", "fsdp, first seen at the step", "normalized", "partly", "tensor parallel", "ddp"]
SIZES = pytest.mark.parametrize("size", [2, 4])


@pytest.fixture
def found(group, size):
    return group("weights", size)


@SIZES
@pytest.mark.parametrize("case", [*CASES, "hsdp"])
def test_numbers_are_those_of_one_process(found, size, case):
    """The oracle trains in one process on all examples, and takes norms of whole vectors."""
    if case == "hsdp" and size == 2:
        return  # two replicas of two shards take four processes
    first = found[0][case]
    assert first["expected"]["weight_norm"].keys() == set(range(7))
    for series, values in first["expected"].items():
        name = series.split(":")[0]
        for step, value in values.items():
            assert first["values"][series][step] == pytest.approx(value, rel=1e-6, abs=1e-12), (series, step)
            if name == "grad_norm" and "clipped" not in case:
                assert first["ways"][series][step] == ("at_step" if "at the step" in case else "")
    assert {found[0][case]["runs"]} == {1}
    assert not any(kind == "probe_failed" for kind, _ in first["events"])


@SIZES
@pytest.mark.parametrize("case", [*CASES, "fails in prepare", "fails in measure"])
def test_the_training_is_as_without(found, size, case):
    for result in found:
        assert result[case]["state"] == result[case]["plain"]


@SIZES
def test_one_collective_of_one_size_for_a_measurement(found, size):
    for result in found:
        assert result["fsdp"]["sums"] == 7
        assert result["ddp"]["sums"] == 0, "the first process has everything"


@SIZES
def test_scale_invariant_tensors_are_found(found, size):
    first = found[0]["normalized"]
    angles = first["values"]["angular_update:scale_invariant"]
    assert sorted(angles) == [4, 5, 6]
    for step, angle in angles.items():
        assert angle == pytest.approx(first["expected"]["angular_update:0.weight"][step], rel=1e-6)
        norm = first["expected"]["weight_norm:0.weight"][step]
        assert first["values"]["effective_learning_rate:scale_invariant"][step] == pytest.approx(0.1 / norm, rel=1e-6)
    assert first["values"]["learning_rate:scale_invariant"] == {4: 0.1}


@SIZES
@pytest.mark.parametrize(("where", "said"), [("prepare", "no room for a copy"), ("measure", "broken in one process")])
def test_a_failure_in_one_process_is_known_to_all_and_passes(found, size, where, said):
    first = found[0][f"fails in {where}"]
    values = first["values"]["weight_norm"]
    assert [step for step, value in values.items() if value is None] == [2]
    assert sorted(values) == list(range(7))
    assert said in first["why"]["weight_norm"][2]
    expected = found[0]["fsdp"]["expected"]["weight_norm"]
    assert {s: v for s, v in values.items() if s != 2} == pytest.approx({s: v for s, v in expected.items() if s != 2})


class Layout:
    """A DTensor as far as it is looked at: 2 x 3 processes, of which this is the one at `place`."""

    _local_tensor = None

    def __init__(self, kinds, place=(0, 0), ranks=6):
        self.placements = [type(kind, (), {})() for kind in kinds]
        self.device_mesh = type("Mesh", (), {"mesh": torch.arange(ranks), "get_coordinate": lambda _: list(place)})()


@pytest.mark.parametrize(
    ("kinds", "place", "counts"),
    [
        (["Replicate", "Shard"], (0, 2), True),
        (["Replicate", "Shard"], (1, 2), False),
        (["Shard", "Replicate"], (1, 0), True),
        (["Shard", "Replicate"], (0, 1), False),
        (["Replicate", "Replicate"], (0, 0), True),
        (["Replicate", "Replicate"], (0, 1), False),
        (["_StridedShard", "Shard"], (1, 2), True),
    ],
)
def test_what_several_processes_hold_counts_once(kinds, place, counts):
    assert surplus({"w": Layout(kinds, place)}, 1, 6) == ([] if counts else ["w"])


def test_whole_parameters_count_in_the_first_process():
    parameters = {"w": Layout(["Shard", "Shard"]), "b": nn.Parameter(torch.ones(2))}
    assert surplus(parameters, 0, 6) == []
    assert surplus(parameters, 1, 6) == ["b"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"w": Layout(["Partial", "Shard"])}, "laid out as Partial, Shard"),
        ({"w": Layout(["Shard", "Shard"], ranks=4)}, "over 4 processes, and 6 measure"),
        ({"w": Layout(["Shard", "Shard"]), "v": Layout(["Shard", "Shard"], ranks=2)}, "over 2 processes"),
    ],
)
def test_layouts_that_are_not_known(parameters, reason):
    with pytest.raises(Refusal, match=reason):
        surplus(parameters, 0, 6)


def test_a_process_that_measures_alone_says_so():
    class Shard:
        _local_tensor = device_mesh = None
        shape, dtype = torch.Size([2]), torch.float32

        def detach(self):
            return torch.ones(2)

    weights = {"w": torch.ones(2)}
    view = TrainingView(0, nn.Linear(1, 1), [], {"w": Shard()}, None, None, lambda: weights)
    probe = WeightDynamics()
    probe.prepare(view)
    with pytest.raises(Refusal, match="the others do not measure"):
        probe.measure(view)
