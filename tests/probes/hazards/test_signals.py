"""Told to stop: by SIGTERM, by Ctrl-C inside a measurement. Rows are on disk, and the run is not left running."""

import os
import signal

import pytest

from learnmech.probes import BaseProbe, every, is_probing


def test_sigterm(fit, outcome, monitor, spool):
    """Lightning finishes the batch, then leaves by a SystemExit: the run ends as failed, with all rows before it."""

    def told(module):
        if module.global_step == 5 and not is_probing():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    plain = fit((), told, raises=SystemExit)
    watched = fit([monitor()], told, raises=SystemExit)
    assert outcome(plain) == outcome(watched)
    assert signal.getsignal(signal.SIGTERM) == before, "handlers are put back"
    run = spool()
    assert run.kinds()[-1] == "run_failed"
    assert "SIGTERM" in run.of_kind("run_failed")[0].message
    assert list(run.values("update_norm"))[:5] == list(range(5))


class Interrupted(BaseProbe):
    default_name = "interrupted"
    replays = True

    def __init__(self, send):
        super().__init__(every(4))
        self.send = send

    def measure(self, view):
        def work(loss):
            loss(view.batch).backward()
            self.send()
            return []

        return view.isolate(work)


def _ctrl_c():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "send", [_ctrl_c, lambda: os.kill(os.getpid(), signal.SIGINT)], ids=["raised", "by the signal"]
)
def test_ctrl_c_inside_a_measurement(send, fit, monitor, spool, digest):
    """Weights and buffers are those of a training that ends at the same step."""
    module, _ = fit([monitor(Interrupted(send))], raises=SystemExit)
    plain, _ = fit(max_steps=4)
    assert digest(dict(module.state_dict())) == digest(dict(plain.state_dict()))
    assert "training_step" not in module.__dict__
    assert "log" not in module.__dict__
    assert not is_probing()
    run = spool()
    assert run.of_kind("run_failed")[0].message.startswith("KeyboardInterrupt at step 4")
    assert list(run.values("update_norm")) == [0, 1, 2, 3]


def test_sigterm_inside_a_measurement(fit, monitor, spool):
    """The measurement, the batch, then the end: nothing is torn."""
    fit([monitor(Interrupted(lambda: os.kill(os.getpid(), signal.SIGTERM)))], raises=SystemExit)
    run = spool()
    assert not run.of_kind("probe_failed")
    assert "SIGTERM" in run.of_kind("run_failed")[0].message
