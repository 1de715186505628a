"""Probes of one's own: what is enough to be one, and what is refused from one."""

import pytest

from learnmech.probes import BaseProbe, every, is_probing
from learnmech.wire import Measurement


def test_any_object_with_name_schedule_and_measure_is_a_probe(quartic, spool):
    class Own:
        name, schedule = "own", every(2)

        def measure(self, view):
            norm = view.isolate(lambda loss: float(loss(view.batch).detach()))
            return [Measurement("user.loss", norm), Measurement("user.probing", float(is_probing()))]

    weights = quartic.descend([Own()], spool.url, steps=4)
    assert spool().values("user.loss") == pytest.approx({t: float(weights[t].pow(4).sum() / 12) for t in (2, 4)})


def test_an_undeclared_observable_is_a_failure_of_the_probe(quartic, spool):
    class Typo(BaseProbe):
        def measure(self, view):
            return [Measurement("sharpnes", 1.0)]

    quartic.descend([Typo(every(1))], spool.url, steps=2)
    assert "did you mean sharpness" in spool().of_kind("probe_failed")[0].message
