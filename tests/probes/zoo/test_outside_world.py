"""Modules that reach out of the process: nothing of it happens twice, and they are told what to pass instead."""

import queue
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from learnmech.probes import is_probing
from learnmech.probes.lightning import MechanicsMonitor

STEPS = 12


def refused_without_a_trace(run, *words):
    """The probes that evaluate the loss were refused, and no step of the training was changed by a measurement."""
    (sharpness,) = run.all("sharpness")
    assert sharpness[1].status == "unsupported"
    for word in (*words, "loss=", "is_probing()"):
        assert word in sharpness[1].reason, sharpness[1].reason
    assert len(run.all("update_norm")) >= 3
    assert not run.of_kind("probe_failed")


def test_a_file_is_written_in_the_step(monitored, zoo, tmp_path):
    class Writes(zoo.Base):
        def training_step(self, batch, batch_idx):
            with Path("lines.txt").open("a", encoding="utf-8") as file:
                file.write(f"{self.global_step}\n")
            return super().training_step(batch, batch_idx)

    refused_without_a_trace(monitored(Writes), "training_step writes to the file 'lines.txt'")
    lines = (tmp_path / "lines.txt").read_text(encoding="utf-8").split()
    assert lines == 2 * [str(step) for step in range(STEPS)], "once in each of the two trainings"


@pytest.mark.parametrize("how", ["array", "removed", "database", "program", "network"])
def test_what_else_leaves_the_process(monitored, zoo, how, tmp_path):
    def reach():
        if how == "array":
            np.save("array.npy", np.zeros(2))
        elif how == "removed":
            Path("nothing").unlink(missing_ok=True)
        elif how == "database":
            sqlite3.connect("rows.db").close()
        elif how == "program":
            subprocess.run([sys.executable, "-c", ""], check=True)
        else:
            with socket.socket() as out, pytest.raises(OSError, match="refused"):
                out.connect(("127.0.0.1", 9))

    class Reaches(zoo.Base):
        def training_step(self, batch, batch_idx):
            if batch_idx < 2:  # a program takes a while to start
                reach()
            return super().training_step(batch, batch_idx)

    said = {
        "array": "writes to the file 'array.npy'",
        "removed": "changes the file 'nothing'",
        "database": "changes the file 'rows.db'",
        "program": "starts a program",
        "network": "uses the network",
    }
    refused_without_a_trace(monitored(Reaches, epochs=1), said[how])


def test_an_effect_whose_failure_is_caught(monitored, zoo, tmp_path):
    """The user's own `except` must not turn a refusal into a measurement of another step."""

    class Catches(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            try:
                Path("once.txt").write_text("x", encoding="utf-8")
            except Exception:
                return loss * 2
            return loss

    refused_without_a_trace(monitored(Catches), "writes to the file 'once.txt'")


class Sender:
    """What people write to send rows from a thread."""

    def __init__(self):
        self.rows = queue.Queue()
        self.lock = threading.Lock()

    def send(self, row):
        self.rows.put(row)


class Counter:
    """Counts under a lock, since threads of the user's count as well."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def add(self):
        with self.lock:
            self.count += 1


@pytest.mark.parametrize("what", ["file", "queue", "sender", "socket", "counter"])
def test_a_channel_that_was_opened_before(monitored, zoo, what, tmp_path):
    class Holds(zoo.Base):
        def on_fit_start(self):
            self.file = Path("held.txt").open("a", encoding="utf-8")  # noqa: SIM115 (it is held on purpose)
            self.queue, self.sender, self.socket = queue.Queue(), Sender(), socket.socketpair()
            self.counter = Counter()

        def on_fit_end(self):
            self.file.close()
            for end in self.socket:
                end.close()

        def training_step(self, batch, batch_idx):
            if what == "file":
                self.file.write("x")
            elif what == "queue":
                self.queue.put(batch_idx)
            elif what == "sender":
                self.sender.send(batch_idx)
            elif what == "counter":
                self.counter.add()
            else:
                self.socket[0].sendall(b"x")
            return super().training_step(batch, batch_idx)

        def memory(self):
            return self.queue.qsize(), self.sender.rows.qsize(), self.counter.count

    words = {"file": "Holds.file (a TextIOWrapper)", "queue": "Holds.queue (a Queue)"}
    words |= {
        "sender": "Holds.sender (a Sender)",
        "socket": "Holds.socket (a socket)",
        "counter": "Holds.counter (a Counter)",
    }
    refused_without_a_trace(monitored(Holds), f"training_step uses {words[what]}")
    assert (tmp_path / "held.txt").read_text(encoding="utf-8") == ("x" * 2 * STEPS if what == "file" else "")


def test_what_is_held_and_not_used_is_in_nobodys_way(monitored, zoo, passed):
    class Holds(zoo.Base):
        def __init__(self):
            super().__init__()
            self.queue, self.sender = queue.Queue(), Sender()

    passed(monitored(Holds))


def test_a_thread_that_empties_the_queue_meets_the_queue_itself(monitored, zoo):
    """A consumer of the user's looks at the module while it is measured."""

    class Consumed(zoo.Base):
        def on_fit_start(self):
            self.queue, self.taken, self.errors = queue.Queue(), [], []
            self.consumer = threading.Thread(target=self.consume, daemon=True)
            self.consumer.start()

        def consume(self):
            try:
                while (item := self.queue.get()) is not None:
                    self.taken.append(item)
                    self.queue.task_done()
            except Exception as error:
                self.errors.append(error)

        def on_fit_end(self):
            self.queue.put(None)
            self.consumer.join()
            assert not self.errors

        def training_step(self, batch, batch_idx):
            if not is_probing():
                self.queue.put(batch_idx)
                self.queue.join()
            return super().training_step(batch, batch_idx)

        def memory(self):
            return list(self.taken)

    run = monitored(Consumed)
    assert len(run.all("sharpness")) >= 3


def test_a_tracker_of_its_own_is_told_once(monitored, zoo, passed, monkeypatch):
    class Tracker:
        """As `wandb.init()` and `SummaryWriter()` return them: known by the package they come from."""

        def __init__(self):
            self.rows, self.summary = [], {}

        def log(self, row):
            self.rows.append(row)

    monkeypatch.setattr(Tracker, "__module__", "wandb.sdk.wandb_run")

    class Tracked(zoo.Base):
        def __init__(self):
            super().__init__()
            self.tracker = Tracker()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.tracker.log({"loss": float(loss)})
            self.tracker.summary["last"] = float(loss)
            return loss

        def memory(self):
            return repr(self.tracker.rows), repr(self.tracker.summary)

    passed(monitored(Tracked))


@pytest.mark.parametrize("how", ["contains", "busy", "list"])
def test_a_tracker_that_is_asked(monitored, zoo, refused, monkeypatch, how):
    """What it would say is not known in a replay, where it must not loop for ever either."""

    class Tracker:
        def __init__(self):
            self.config, self.history, self.step = {"lr": 1.0}, [1.0], 3

        def busy(self):
            return False

    monkeypatch.setattr(Tracker, "__module__", "wandb.sdk.wandb_run")

    class Asks(zoo.Base):
        def __init__(self):
            super().__init__()
            self.tracker = Tracker()

        def loss_of(self, x, y):
            if how == "contains":
                scale = 2.0 if "scale" in self.tracker.config else 1.0
            elif how == "list":
                scale = sum(value for value in self.tracker.history)
            else:
                scale = 1.0
                while self.tracker.busy():
                    scale += 1.0
            return super().loss_of(x, y) * scale

    refused(monitored(Asks, epochs=1), "reads from Asks.tracker (a Tracker)", "loss=")


@pytest.mark.parametrize("how", ["thread", "pool"])
def test_work_for_another_thread(monitored, zoo, how, tmp_path):
    """What it does there would not be seen."""
    pool = ThreadPoolExecutor(1)

    def write():
        with Path("rows.txt").open("a", encoding="utf-8") as file:
            file.write("x")

    class Hands(zoo.Base):
        def training_step(self, batch, batch_idx):
            if how == "thread":
                thread = threading.Thread(target=write)
                thread.start()
                thread.join()
            else:
                pool.submit(write).result()
            return super().training_step(batch, batch_idx)

    with pool:
        refused_without_a_trace(monitored(Hands), "training_step hands work to another thread")
    assert (tmp_path / "rows.txt").read_text(encoding="utf-8") == "x" * 2 * STEPS


@pytest.mark.parametrize("how", ["queue", "file"])
def test_what_nothing_of_the_model_holds(monitored, zoo, how, tmp_path):
    """But for a `file.write` itself, which nobody sees."""
    items = queue.Queue()
    with (tmp_path / "lines.txt").open("w", encoding="utf-8") as file:

        class Reaches(zoo.Base):
            def training_step(self, batch, batch_idx):
                if how == "queue":
                    items.put(batch_idx)
                else:
                    print("x", file=file)
                return super().training_step(batch, batch_idx)

        said = {"queue": "shares a queue with another thread", "file": "prints to a file"}
        refused_without_a_trace(monitored(Reaches), f"training_step {said[how]}")
    lines = (tmp_path / "lines.txt").read_text(encoding="utf-8").split()
    assert len(lines) + items.qsize() == 2 * STEPS


def test_effects_left_out_while_probing_are_the_way_out(monitored, zoo, passed, tmp_path):
    class Guarded(zoo.Base):
        def training_step(self, batch, batch_idx):
            if not is_probing():
                with Path("lines.txt").open("a", encoding="utf-8") as file:
                    file.write("x")
            return super().training_step(batch, batch_idx)

    passed(monitored(Guarded))
    assert (tmp_path / "lines.txt").read_text(encoding="utf-8") == "x" * 2 * STEPS


def test_a_loss_function_with_effects_is_refused_too(monitored, zoo, eager_probes, tmp_path):
    def loss(model, batch):
        Path("calls.txt").open("a", encoding="utf-8").close()
        return model.loss_of(*batch)

    monitor = MechanicsMonitor(eager_probes(), sink=f"spool:{tmp_path}/spool", loss=loss)
    (found,) = monitored(zoo.Base, monitor=monitor).all("sharpness")
    assert found[1].status == "unsupported"
    assert "The loss function writes to the file 'calls.txt'" in found[1].reason
    assert "is_probing()" in found[1].reason
    assert not (tmp_path / "calls.txt").exists()
