"""A disk that is full or read-only: the training is the same, and what memory holds is still delivered or told."""

import errno
import multiprocessing
import os
import resource

import pytest

from learnmech.wire.disk import Disk


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("call", "number"), [("write", errno.ENOSPC), ("make_folder", errno.EROFS), ("create", errno.EACCES)],
    ids=["disk full", "read-only home", "no permission"],
)  # fmt: skip
def test_training_goes_on(call, number, fit, outcome, monitor, monkeypatch, caplog):
    plain = outcome(fit())

    def broken(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Disk, call, broken)
    watcher = monitor(sink="http://127.0.0.1:9")
    assert outcome(fit([watcher])) == plain
    assert os.strerror(number) in caplog.text
    assert watcher.run_id is not None


@pytest.mark.usefixtures("hasty")
def test_a_limit_of_the_operating_system(fit, outcome, monitor):
    """Files may hold 4 KiB: the kernel itself refuses the rest, from some step on."""
    plain = outcome(fit())

    def child(pipe):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        pipe.send(outcome(fit([monitor()])))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.poll(60)
    assert here.recv() == plain
    process.join(20)
    assert process.exitcode == 0
