"""Probes of one's own: what is enough to be one, and what is refused from one."""

import random

import numpy as np
import pytest
import torch

from learnmech.probes import BaseProbe, Moment, every, is_probing
from learnmech.wire import Measurement


def test_any_object_with_name_schedule_and_measure_is_a_probe(quartic, spool):
    class Own:
        name, schedule = "own", every(2)

        def measure(self, view):
            norm = view.isolate(lambda loss: float(loss(view.batch).detach()))
            return [Measurement("user.loss", norm), Measurement("user.probing", float(is_probing()))]

    weights = quartic.descend([Own()], spool.url, steps=4)
    assert spool().values("user.loss") == pytest.approx({t: float(weights[t].pow(4).sum() / 12) for t in (2, 4)})


def test_random_numbers_that_it_draws_are_not_missed_by_the_training(quartic, spool):
    class Sampling(BaseProbe):
        """Draws at every moment that a probe has."""

        moment, watches = Moment.UPDATE, True

        def draw(self, *_):
            torch.randn(3), np.random.rand(2), random.random()
            return []

        arm = prepare = measure = draw

        def next_piece(self, batch, examples):
            pass

    states = []
    for probes in ([], [Sampling(every(1))]):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        quartic.descend(probes, spool.url, steps=4)
        states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()))
    assert states[0] == states[1]
    assert not spool().of_kind("probe_failed")


def test_an_undeclared_observable_is_a_failure_of_the_probe(quartic, spool):
    class Typo(BaseProbe):
        def measure(self, view):
            return [Measurement("sharpnes", 1.0)]

    quartic.descend([Typo(every(1))], spool.url, steps=2)
    assert "did you mean sharpness" in spool().of_kind("probe_failed")[0].message
