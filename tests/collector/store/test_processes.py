"""Several threads, several processes, and processes that are killed: counted row by row."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from learnmech.collector.store import CannotOpen, Store, Unavailable

INGEST = textwrap.dedent(
    """
    import sys
    from learnmech.collector.judging import Judge
    from learnmech.collector.store import Store
    from learnmech.wire import Batch, Frame, Measurement, RunInfo

    url, run, writer, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    number = int(writer, 16)
    store = Store.open(url)
    judge = Judge(store)
    context = {"optimizer": "SGD"}
    for first in range(0, count, 5):
        frames = [
            Frame(s, s, 1.0 * s, measurements=[
                Measurement("user.value", 1000.0 * number + s, str(number)),
                Measurement("sharpness", 1.0, str(number)),
            ])
            for s in range(first, first + 5)
        ]
        store.ingest(Batch(run=RunInfo(run, "r", 0.0, context=context), writer=writer, sent=0.0, frames=frames))
        judge.judge(run)
        print(first + 5, flush=True)
    """
)


def start(url: str, run: str, number: int, count: int, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", INGEST, url, run, f"{number:032x}", str(count)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def contents(store: Store, rows, run: str, number: int) -> list[tuple[object, ...]]:
    query = "SELECT step, value FROM observations WHERE run_id = :run AND scope = :scope AND observable = 'user.value'"
    return rows(store, query + " ORDER BY step", run=run, scope=str(number))


def test_processes_write_one_run_at_once(store, url_of, rows, python_path):
    run, count = "ab" * 16, 100
    processes = [start(url_of(store), run, number, count, python_path) for number in (1, 2, 3)]
    seen = 0
    for process in processes:
        # Readers are never locked out while others write.
        seen = max(seen, len(store.runs()))
        process.communicate(timeout=120)
        assert process.returncode == 0
    for number in (1, 2, 3):
        assert contents(store, rows, run, number) == [(s, 1000.0 * number + s) for s in range(count)]
        assert len(store.residuals(run, "edge_of_stability", str(number))["step"]) == count
    row = store.run(run)
    assert row.points == 6 * count
    assert row.revision >= 3 * count // 5
    assert rows(store, "SELECT judge_from FROM run") == [(None,)]


def test_a_killed_process_loses_nothing_it_acknowledged_and_doubles_nothing(store, url_of, rows, python_path, patience):
    """Killed at two moments; each time the same frames are sent again from the start, as a courier would."""
    run, count = "cd" * 16, 200
    acknowledged = 0
    for _ in range(2):
        process = start(url_of(store), run, 1, count, python_path)
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < acknowledged + 50:
            pass
        time.sleep(0.002 * (os.getpid() % 5))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        acknowledged = max(acknowledged, *(int(text) for text in [line, *rest] if text.strip()))
        found = contents(store, rows, run, 1)
        # A batch is there whole or not at all, so whole batches from the start.
        assert len(found) >= acknowledged
        assert len(found) % 5 == 0
        assert found == [(s, 1000.0 + s) for s in range(len(found))]
    process = start(url_of(store), run, 1, count, python_path)
    process.communicate(timeout=120)
    assert contents(store, rows, run, 1) == [(s, 1000.0 + s) for s in range(count)]
    assert store.run(run).points == 2 * count
    # What the killed ones had stored and not judged was judged by the next.
    assert store.residuals(run, "edge_of_stability", "1")["step"] == list(range(count))


@pytest.fixture
def url_of():
    """The address of an open store, with everything a subprocess needs to open it too."""
    return lambda store: store.database.url.render_as_string(hide_password=False)


def test_threads_write_many_runs_at_once(store, writer):
    writers = [writer() for _ in range(4)]
    writers += [writer(writers[0].run, rank=rank) for rank in (1, 2)]
    errors = []

    def work(number: int) -> None:
        someone = writers[number]
        try:
            for step in range(40):
                ack = store.ingest(someone.batch(someone.frame(step, **{f"user.w{number}": float(step)}), sent=1.0))
                assert ack.accepted == 1
                store.runs()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {row.points for row in store.runs()} == {40, 120}
    for number, someone in enumerate(writers):
        assert store.observations(someone.run.id, f"user.w{number}")["value"] == list(range(40))


def test_a_lock_that_is_not_given_back_is_temporary(tmp_path, writer, monkeypatch):
    from learnmech.collector.store import engine

    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'store.db'}"
    someone = writer()
    with Store.open(url) as one, Store.open(url) as two:
        one.ingest(someone.batch())
        with one.database.writing(), pytest.raises(Unavailable, match="locked by another process") as caught:
            two.ingest(someone.batch())
        assert caught.value.temporary
        assert two.runs()[0].points == 0
        two.ingest(someone.batch())


def test_readers_cannot_write(store):
    with pytest.raises(CannotOpen, match="is read-only"), store.database.reading() as connection:
        connection.exec_driver_sql("DELETE FROM run")
