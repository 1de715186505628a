"""Forks: a copy of the outbox in a child does no harm, and writes under a name of its own."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

from learnmech.probes.delivery.lock import WriterLock


def test_workers_forked_from_a_training_process_do_no_harm(script):
    # What a DataLoader does every epoch: fork, work, collect garbage, exit; some exit through sys.exit and atexit.
    script(
        """
        class Fragile(Store):
            pid = os.getpid()
            def __del__(self):
                if os.getpid() != self.pid:
                    Path("finalised in a child").write_text("x")

        def work(queue, box, end):
            began = time.monotonic()
            assert box.report().written == 0 and not any("courier" in thread.name for thread in threading.enumerate())
            box.close()
            assert box.flush(60)
            gc.collect()
            queue.put(time.monotonic() - began)
            queue.close()
            queue.join_thread()
            if end == "exit":
                sys.exit(0)

        box = Outbox(RUN, sink="http://collector.test", open_sink=lambda url: Fragile())
        box.start()
        fork = multiprocessing.get_context("fork")
        step = 0
        for epoch in range(6):
            queue = fork.Queue()
            workers = [fork.Process(target=work, args=(queue, box, end)) for end in ("return", "exit")]
            for worker in workers:
                worker.start()
                for _ in range(20):
                    box.put(step, VALUES)
                    step += 1
            took = [queue.get(timeout=30) for worker in workers]
            for worker in workers:
                worker.join(30)
                assert worker.exitcode == 0
            queue.close()
            queue.join_thread()
            assert max(took) < 5
        pid = os.fork()
        if pid == 0:
            del box
            gc.collect()
            sys.exit(0)  # a child that ends like a script, atexit included
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert box.flush(30)
        box.close()
        """
    )
    lines = [line.split() for line in Path("store").read_text().splitlines()]
    assert len({writer for writer, _, _ in lines}) == 1
    assert [int(sequence) for _, sequence, _ in lines] == list(range(240))
    assert not Path("finalised in a child").exists()


def test_a_child_that_records_has_a_spool_of_its_own(script):
    script(
        """
        box = Outbox(RUN, sink="http://collector.test", open_sink=lambda url: Store())
        for step in range(5):
            box.put(step)
        pid = os.fork()
        for step in range(5, 10):
            box.put(step)
        box.close(20)
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """
    )
    lines = [line.split() for line in Path("store").read_text().splitlines()]
    by_writer: dict[str, list[tuple[int, int]]] = {}
    for writer, sequence, step in lines:
        by_writer.setdefault(writer, []).append((int(sequence), int(step)))
    # Frames that waited at the fork are delivered by the parent alone.
    assert sorted(by_writer.values(), key=len) == [
        [(sequence, sequence + 5) for sequence in range(5)],
        [(sequence, sequence) for sequence in range(10)],
    ]


def test_a_worker_that_outlives_its_parent_does_not_hold_the_lock(child, prelude):
    code = prelude + textwrap.dedent(
        """
        box = Outbox(RUN, sink="spool:kept")
        box.put(0)
        pid = os.fork()
        if pid == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], env=child, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        (lock,) = Path("kept").glob("*/*/lock")
        assert WriterLock.adopt(lock) is None
        parent.kill()
        parent.wait()
        owner = WriterLock.adopt(lock)
        subprocess.run(["kill", "-9", str(worker)], check=True)
    assert owner is not None
    owner.release()


def test_starting_costs_no_heavy_import(script):
    began = time.monotonic()
    out = script(
        """
        heavy = ("torch", "numpy", "urllib3", "sqlalchemy", "pytorch_lightning")
        print([name for name in heavy if name in sys.modules])
        """
    )
    assert out.strip() == "[]"
    assert time.monotonic() - began < 30
