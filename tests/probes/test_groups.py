"""Scopes hold the parameters that a reader of the model's source would put together, each of them once."""

import pytest
import torch
from torch import nn

from learnmech.probes.groups import plain_name, scopes


class Tiny(nn.Module):
    """An embedding, a table of its own, blocks, a norm and a head that shares the embedding's table."""

    def __init__(self, blocks=3):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.place = nn.Parameter(torch.zeros(3, 4))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4)) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def named(model):
    return dict(model.named_parameters(remove_duplicate=False))


def test_types_and_depths_of_a_transformer():
    model = Tiny()
    found = scopes(model, named(model))
    assert list(found) == [
        *("", "type:Tiny", "type:Embedding", "type:LayerNorm", "type:MultiheadAttention", "type:Linear"),
        *("place", "embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"),
    ]
    assert found["type:Tiny"] == found["place"] == ["place"]
    assert found["head"] == ["head.bias"], "the tied table is in the scopes of its first name"
    assert found["type:LayerNorm"][:2] == ["blocks.0.0.weight", "blocks.0.0.bias"]
    assert "blocks.1.1.out_proj.weight" in found["type:Linear"], "a private class of torch is its public base"
    assert set(found["blocks.1"]) == {name for name in named(model) if name.startswith("blocks.1.")}


@pytest.mark.parametrize("blocks", [0, 1, 5, 40, 100])
@pytest.mark.parametrize("limit", [1, 2, 7, 64])
def test_every_kind_of_scope_divides_the_parameters(blocks, limit):
    model = Tiny(blocks)
    found = scopes(model, named(model), limit=limit)
    once = list(dict(model.named_parameters()))
    types = {scope: members for scope, members in found.items() if scope.startswith("type:")}
    depths = {scope: members for scope, members in found.items() if scope and scope not in types}
    for kind in (types, depths):
        assert sorted(name for members in kind.values() for name in members) == sorted(once)
        assert len(kind) <= limit
        assert all(kind.values())
    assert sorted(found[""]) == sorted(once)


def test_neighbours_are_merged_beyond_the_limit():
    model = nn.ModuleDict({"stem": nn.Linear(1, 1), "blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))})
    found = scopes(model, named(model), limit=4)
    assert [scope for scope in found if scope and not scope.startswith("type:")] == [
        *("stem", "blocks.0-1", "blocks.2-3", "blocks.4")
    ]
    assert found["blocks.2-3"] == ["blocks.2.weight", "blocks.2.bias", "blocks.3.weight", "blocks.3.bias"]
    loose = nn.ParameterDict({f"p{index}": nn.Parameter(torch.zeros(1)) for index in range(6)})
    assert list(scopes(loose, named(loose), limit=2)) == ["", "type:ParameterDict", "p0-p2", "p3-p5"]


def test_small_types_are_put_together():
    model = nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9), nn.Embedding(50, 9), nn.Conv1d(1, 1, 1))
    found = scopes(model, named(model), limit=3)
    assert [scope for scope in found if scope.startswith("type:")] == ["type:Linear", "type:other", "type:Embedding"]
    assert found["type:other"] == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_a_name_that_all_share_is_not_a_depth():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential()
            self.network.add_module("embed", nn.Linear(2, 2))
            self.network.add_module("layer1", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))

    model = Module()
    depths = [scope for scope in scopes(model, named(model)) if scope and ":" not in scope]
    assert depths == ["network.embed", "network.layer1.0", "network.layer1.1"]
    one = nn.Linear(2, 2)
    assert list(scopes(one, named(one))) == ["", "type:Linear", "weight", "bias"]


def test_names_are_those_without_wrappers():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plain = scopes(inner, named(inner), per_parameter=True)
    wrapped = nn.DataParallel(torch.compile(inner, backend="eager"))
    found = scopes(wrapped, named(wrapped), per_parameter=True)
    assert list(found) == list(plain)
    assert found["1"] == ["module._orig_mod.1.weight", "module._orig_mod.1.bias"], "keys of what was given"
    inside = nn.ModuleDict({"module": torch.compile(nn.Linear(2, 2), backend="eager"), "b": nn.Linear(1, 1)})
    assert [scope for scope in scopes(inside, named(inside)) if ":" not in scope] == ["", "module", "b"], (
        "a module of the user's that is called `module` keeps its name"
    )


def test_parametrized_modules_count_as_what_they_are():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 1))
    found = scopes(model, named(model), per_parameter=True)
    assert found["type:Linear"] == list(named(model))
    assert found["0.weight0"] == ["0.parametrizations.weight.original0"]
    assert plain_name(model, "0.parametrizations.weight.original1") == "0.weight1"


def test_parameter_groups_are_counted_through():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    first = torch.optim.SGD([{"params": [p]} for p in model[0].parameters()], lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    found = scopes(model, named(model), optimizers=[first, second])
    groups = {scope: members for scope, members in found.items() if scope.startswith("group:")}
    assert groups == {"group:0": ["0.weight"], "group:1": ["0.bias"], "group:2": ["2.weight", "2.bias"]}
    assert not any(scope.startswith("group:") for scope in scopes(model, named(model)))


def test_a_parameter_that_comes_later_and_one_of_no_module():
    model = nn.Sequential(nn.Linear(2, 2))
    before = scopes(model, named(model))
    model.append(nn.Linear(2, 2))
    after = scopes(model, named(model) | {"elsewhere.w": torch.zeros(2)})
    assert after.keys() - before.keys() == {"1", "elsewhere"}
    assert after["type:Linear"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert scopes(model, {}) == {"": []}
    with pytest.raises(ValueError, match="from 1 on"):
        scopes(model, {}, limit=0)
