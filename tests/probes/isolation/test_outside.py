"""Effects outside of the process: stopped before they happen, in evaluations only, in their own thread only."""
# ruff: noqa: SIM115 (files that are refused are never open, and one is held on purpose)

import builtins
import importlib
import io
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.util import spawnv_passfds
from pathlib import Path

import pytest
import torch
from torch import nn
from tqdm import tqdm

from learnmech.probes.isolation import FunctionSource, Refusal, isolated
from learnmech.probes.isolation.withheld import is_channel

POOL = ThreadPoolExecutor(1)
OPEN = socket.socketpair()
QUEUE = queue.Queue()
QUEUE.put(0)
FILE = Path(os.devnull).open("w", encoding="utf-8")
for end in OPEN:
    end.setblocking(False)


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    for end in (*OPEN, FILE):
        end.close()


def evaluated(effect, model=None):
    """Evaluate a loss that does something besides."""

    def loss_fn(model, batch):
        effect()
        return model.weight.square().sum()

    return isolated(FunctionSource(model or nn.Linear(2, 2), loss_fn), lambda loss: float(loss(None)))


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (lambda: Path("a").open("w", encoding="utf-8"), "writes to the file 'a'"),
        (lambda: Path("a").open("ab", buffering=0), "writes to the file 'a'"),
        (lambda: Path("a").open("r+", encoding="utf-8"), "writes to the file 'a'"),
        (lambda: os.open("a", os.O_RDWR), "writes to the file 'a'"),
        (lambda: Path("a").write_bytes(b"1"), "writes to the file 'a'"),
        (lambda: torch.save(1, "ä"), "writes to the file 'ä'"),
        (lambda: Path("a").mkdir(), "changes the file 'a'"),
        (lambda: Path("a").rename("b"), "changes the file 'a'"),
        (lambda: os.writev(OPEN[0].fileno(), [b"x"]), "writes to a file"),
        (lambda: os.pwrite(OPEN[0].fileno(), b"x", 0), "writes to a file"),
        (lambda: os.system("true"), "starts a program"),
        (lambda: spawnv_passfds(b"/bin/true", [b"true"], []), "starts a program"),
        (lambda: threading.Thread(target=print).start(), "hands work to another thread"),
        (lambda: POOL.submit(print), "hands work to another thread"),
        (lambda: QUEUE.put(1), "shares a queue with another thread"),
        (lambda: QUEUE.put_nowait(1), "shares a queue with another thread"),
        (lambda: QUEUE.get(block=False), "shares a queue with another thread"),
        (lambda: print("x", file=FILE), "prints to a file"),
        (lambda: OPEN[0].send(b"x"), "uses the network"),
        (lambda: OPEN[1].recv(1), "uses the network"),
    ],
)  # fmt: skip
def test_what_is_stopped(effect, said, tmp_path):
    with pytest.raises(Refusal) as refused:
        evaluated(effect)
    assert refused.value.reason == f"The loss function {said}, which measuring would do once more."
    assert refused.value.remedy == "Leave it out while learnmech.probes.is_probing()."
    assert not list(tmp_path.iterdir())
    assert list(QUEUE.queue) == [0]


def test_what_is_not():
    """Reading, memory, devices, a queue of its own, the screen, byte code of a module imported for the first time."""
    Path("data").write_text("1", encoding="utf-8")
    Path("own_module_of_a_step.py").write_text("x = 1", encoding="utf-8")

    def effect():
        with Path("data").open(encoding="utf-8") as file:
            file.read()
        io.BytesIO().write(b"1")
        print("x", file=io.StringIO())
        print("x", file=sys.__stderr__)
        waiting = queue.PriorityQueue()
        waiting.put((1, "of its own"))
        waiting.get()
        with Path(os.devnull).open("w", encoding="utf-8") as file:
            file.write("1")
        sys.path.insert(0, ".")
        try:
            importlib.import_module("own_module_of_a_step")
        finally:
            sys.path.remove(".")
            del sys.modules["own_module_of_a_step"]

    assert evaluated(effect) >= 0


def test_outside_of_evaluations_and_in_other_threads_everything_is_allowed():
    def other():
        Path("of another thread").write_text("1", encoding="utf-8")

    begin, done = threading.Event(), threading.Event()

    def waits():
        begin.wait(5)
        other()
        done.set()

    def effect():
        begin.set()
        done.wait(5)

    thread = threading.Thread(target=waits)
    thread.start()
    evaluated(effect)
    thread.join()
    assert Path("of another thread").exists()
    Path("afterwards").write_text("1", encoding="utf-8")
    with pytest.raises(Refusal):
        evaluated(other)
    Path("after a refusal").write_text("1", encoding="utf-8")


def test_every_door_is_as_it_was():
    def doors():
        names = {
            owner: dict(vars(owner))
            for owner in (
                io,
                os,
                subprocess,
                socket.socket,
                subprocess.Popen,
                torch,
                builtins,
                logging.Logger,
                threading.Thread,
                ThreadPoolExecutor,
                queue.Queue,
            )
        }
        return list(names.items())

    before = doors()
    evaluated(lambda: None)
    with pytest.raises(Refusal):
        evaluated(lambda: Path("a").touch())
    assert doors() == before


def test_an_error_of_the_users_stays_one():
    def fails():
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        evaluated(fails)


def test_the_model_holds_the_original_again():
    model = nn.Linear(2, 2)
    model.rows, model.nested = queue.Queue(), {"file": Path("held").open("w", encoding="utf-8")}
    kept = model.rows, model.nested["file"]
    with pytest.raises(Refusal, match=r"Linear.nested.file \(a TextIOWrapper\)"):
        evaluated(lambda: model.nested["file"].write("x"), model)
    assert (model.rows, model.nested["file"]) == kept
    kept[1].close()
    assert Path("held").read_text(encoding="utf-8") == ""


class Stats:
    """Counts under a lock, since other threads may."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def note(self):
        with self.lock:
            self.count += 1


def test_what_is_done_under_a_lock_cannot_be_put_back():
    model = nn.Linear(2, 2)
    model.stats = stats = Stats()

    def effect():
        model.stats.note()

    with pytest.raises(Refusal, match=r"uses Linear.stats \(a Stats\)"):
        evaluated(effect, model)
    assert model.stats is stats
    assert stats.count == 0
    assert evaluated(lambda: None, model) >= 0, "one that is not used is in nobody's way"


def test_who_writes_to_the_screen_is_state_as_any_other():
    model = nn.Linear(2, 2)
    model.reporter = types.SimpleNamespace(stream=sys.stdout, lines=0)

    def effect():
        model.reporter.stream.write("")
        model.reporter.lines += 1

    assert evaluated(effect, model) >= 0
    assert model.reporter.lines == 0


def test_channels_are_known_by_their_class():
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        for channel in (reader, writer, queue.SimpleQueue(), queue.LifoQueue()):
            assert is_channel(channel)
    for other in (io.StringIO(), threading.Lock(), [], {}, None, nn.Linear(1, 1), queue.Queue):
        assert not is_channel(other)


def test_a_progress_bar_moves_once():
    model, shown = nn.Linear(2, 2), io.StringIO()
    model.bar = tqdm(range(9), file=shown)
    before = shown.getvalue()
    assert evaluated(lambda: (model.bar.update(1), model.bar.set_postfix(n=model.bar.n)), model) >= 0
    assert (model.bar.n, shown.getvalue()) == (0, before)
    with pytest.raises(Refusal, match=r"reads from Linear.bar \(a tqdm\), which is silent while measuring"):
        evaluated(lambda: list(model.bar), model)
    model.bar.close()


def test_our_own_records_get_through(caplog):
    def effect():
        logging.getLogger("of.the.user").error("dropped")
        logging.getLogger("learnmech.probes").error("kept")

    evaluated(effect)
    assert caplog.messages == ["kept"]
