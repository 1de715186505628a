"""Random streams: all of them come back, in the right state, whatever happens in between."""

import random

import numpy as np
import pytest
import torch

from learnmech.probes.isolation.rng import Streams, preserved, streams


def owned():
    return [
        torch.Generator().manual_seed(1),
        np.random.default_rng(2),
        np.random.Generator(np.random.MT19937(3)),
        np.random.RandomState(4),
        random.Random(5),
    ]


def draw_all(generators):
    tensor, pcg, mt, old, py = generators
    return (
        random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.rand((), generator=tensor)),
        float(pcg.random()), float(mt.random()), float(old.rand()), py.random(),
    )  # fmt: skip


def test_every_stream_continues_as_if_nothing_had_been_drawn():
    generators, twins = owned(), owned()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    expected = draw_all(twins)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    with preserved(owned=generators):
        draw_all(generators)
        np.random.standard_normal()  # leaves a second normal number cached in the legacy generator
    assert draw_all(generators) == expected


def test_streams_come_back_after_an_exception():
    torch.manual_seed(0)
    before = torch.get_rng_state()

    def interrupted():
        with preserved():
            torch.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_fixed_and_different_from_one_another():
    generators = owned()
    kept = Streams(owned=generators)
    found = []
    for number in (0, 1, 2, 1, 0):
        kept.draw(number)
        found.append(draw_all(generators))
    assert found[0] == found[4]
    assert found[1] == found[3]
    assert len({value for draw in found[:3] for value in draw}) == 24, "no two streams or draws alike"


def test_one_stream_that_cannot_be_put_back_does_not_keep_the_others(monkeypatch, caplog):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kept = Streams()
    kept._states[0] = "rubbish"
    torch.rand(1)
    kept.restore()
    assert torch.equal(torch.get_rng_state(), before)
    assert "could not put back the random stream random" in caplog.text


def test_unknown_generators_are_refused():
    with pytest.raises(TypeError, match="not a random generator"):
        streams(owned=[object()])
