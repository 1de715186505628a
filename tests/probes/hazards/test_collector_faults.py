"""A collector that is not there, slow, broken or unwilling: the training is the same, and every row is on disk."""

from pathlib import Path

import pytest

SPOOL = Path(".learnmech/spool")


def everything_is_kept(recorded):
    run = recorded(SPOOL)
    assert list(run.values("update_norm")) == list(range(10))
    assert len(run.values("sharpness")) >= 8
    assert run.kinds()[-1] == "run_finished"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("plan", ["nobody", "hold", 500, 503, 401, 403, "hang up"])
def test_down_slow_broken_or_unwilling(plan, fit, outcome, monitor, collector, recorded):
    """ "hold" is a collector whose answers take longer than the training: nothing waits for one."""
    url = "http://127.0.0.1:9" if plan == "nobody" else collector(plan).url
    assert outcome(fit([monitor(sink=url)])) == outcome(fit())
    everything_is_kept(recorded)


@pytest.mark.usefixtures("hasty")
def test_gone_in_mid_run(fit, outcome, monitor, collector, recorded):
    server = collector(500)

    def gone(module):
        if module.global_step == 5 and not server.over.is_set():
            assert server.came.wait(20), "it was there before"
            server.stop()

    assert outcome(fit([monitor(sink=server.url)], gone)) == outcome(fit())
    everything_is_kept(recorded)
