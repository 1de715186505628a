"""Numbers that are not finite are data: marked, kept, and no failure of a probe."""

import math

import torch

from learnmech.probes import BaseProbe, Moment, Sharpness, Vitals, WeightDynamics, every
from learnmech.wire import Measurement


def test_numbers_that_are_not_finite_are_marked_and_kept(quartic, spool):
    class Infinite(BaseProbe):
        moment = Moment.UPDATE

        def measure(self, view):
            view.defer([torch.tensor(math.nan)], lambda numbers: [Measurement("user.late", numbers[0])])
            return [Measurement("user.now", math.inf)]

    quartic.descend([Infinite(every(1))], spool.url, steps=1)
    run = spool()
    assert run.all("user.now")[0][1].status == run.all("user.late")[0][1].status == "non_finite"
    assert run.values("user.now") == {0: math.inf}


def test_a_diverged_training_is_data(quartic, spool):
    quartic.descend([Sharpness(every(1)), WeightDynamics(every(1)), Vitals(every(1))], spool.url, steps=12, lr=30.0)
    run = spool()
    assert run.all("sharpness")[-1][1].status == "non_finite"
    assert run.all("loss")[-1][1].status == "non_finite"
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].message
