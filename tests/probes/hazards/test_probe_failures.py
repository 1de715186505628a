"""A probe that fails, at whatever moment and in whatever way, costs its own rows and nothing else."""

import gc
import weakref

import pytest
import torch

from learnmech.probes import BaseProbe, every
from learnmech.wire import Measurement

KEPT = []


class Fails(BaseProbe):
    """Fails with a tensor in hand, at one of the moments of a probe."""

    default_name = "fails"
    observables = ("hessian_trace",)

    def __init__(self, when, error):
        super().__init__(every(1))
        self.when, self.error = when, error
        self.replays = when == "replay"
        self.moment = "update" if when in ("prepare", "update") else "at_rest"

    def _fail(self):
        large = torch.zeros(1000)
        KEPT.append(weakref.ref(large))
        raise self.error(f"out of memory: {large.numel()} numbers")

    def prepare(self, view):
        if self.when == "prepare":
            self._fail()

    def measure(self, view):
        if self.when == "replay":

            def work(loss):
                loss(view.batch).backward()
                torch.rand(3)
                self._fail()

            return view.isolate(work)
        if self.when == "value":
            return [Measurement("no_such_observable", 1.0)]
        if self.when != "prepare":
            self._fail()
        return []


@pytest.mark.parametrize("when", ["replay", "rest", "prepare", "update", "value"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ValueError], ids=["memory", "bug"])
def test_three_failures_and_the_probe_is_off(when, error, fit, outcome, monitor, spool):
    KEPT.clear()
    assert outcome(fit([monitor(Fails(when, error))])) == outcome(fit())
    run = spool()
    mine = [event for event in run.of_kind("probe_failed") if event.data["probe"] == "fails"]
    assert len(mine) == 3
    assert [event.data["probe"] for event in run.of_kind("probe_disabled")] == ["fails"]
    assert len(run.values("sharpness")) == 8, "the others go on"
    gc.collect()
    assert all(kept() is None for kept in KEPT), "a stored exception would keep its tensors alive"
