"""Processes that are killed, interrupted or end badly: what `put` returned for is on disk, and is delivered."""

import json
from pathlib import Path

from learnmech.wire.spool import batches


def test_a_killed_writer_loses_nothing_that_put_returned_for(script):
    # A parent without threads forks writers and kills each at a random moment; the pipe holds what `put` returned for.
    out = script(
        """
        random.seed(3)
        accepted = {}
        for attempt in range(25):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                pause = [0.0, 0.0005, 0.005][attempt % 3]
                box = Outbox(RUN, sink="spool:kept", attempt=attempt)
                for step in range(10**9):
                    box.put(step, VALUES)
                    os.write(writer, b".")
                    time.sleep(pause)
            os.close(writer)
            os.read(reader, 1)
            time.sleep(random.uniform(0, 0.06))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            count = 1
            while data := os.read(reader, 65536):
                count += len(data)
            os.close(reader)
            accepted[attempt] = count
        print(json.dumps(accepted))
        """
    )
    accepted = {int(attempt): count for attempt, count in json.loads(out).items()}
    found: dict[int, list[int]] = {}
    for batch in batches(Path("kept")):
        found.setdefault(batch.attempt, []).extend(frame.step for frame in batch.frames)
    assert len(accepted) == 25
    assert sum(accepted.values()) > 500
    for attempt, count in accepted.items():
        # One more than was reported may be there: killed between the write and the report.
        assert found[attempt][:count] == list(range(count))
        assert len(found[attempt]) in {count, count + 1}


def test_trainers_killed_while_delivering_lose_nothing_and_the_next_ones_deliver_it(script):
    out = script(
        """
        random.seed(5)
        accepted = 0
        for attempt in range(8):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                settings = {"attempt": attempt, "open_sink": lambda url: Store(), "max_age": 0.05}
                box = Outbox(RUN, sink="http://collector.test", **settings)
                for step in range(10**9):
                    box.put(step, VALUES)
                    os.write(writer, b".")
                    time.sleep(0.002)
            os.close(writer)
            os.read(reader, 1)
            time.sleep(random.uniform(0, 0.4))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            accepted += 1
            while data := os.read(reader, 65536):
                accepted += len(data)
            os.close(reader)
        box = Outbox(RUN, sink="http://collector.test", attempt=99, open_sink=lambda url: Store())
        box.put(0)
        deadline = time.monotonic() + 30
        def left():
            return [str(path) for path in Path(".learnmech/spool").glob("*/*/*")]
        while len(left()) > 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        # This writer's own segment and lock; of the others at most an empty folder, killed while it was removed.
        locks = [path.read_text() for path in Path(".learnmech/spool").glob("*/*/lock")]
        assert len(left()) == 2, (left(), locks)
        box.close()
        assert left() == []
        print(accepted)
        """
    )
    delivered = [line.split() for line in Path("store").read_text().splitlines()]
    once = {(writer, int(sequence)) for writer, sequence, _ in delivered}
    assert int(out) > 100
    # One frame of each killed writer may have been written without being reported; the last writer wrote one.
    assert int(out) + 1 <= len(once) <= int(out) + 9
    writers = {writer for writer, _ in once}
    assert len(writers) == 9
    for writer in writers:
        sequences = sorted(sequence for name, sequence in once if name == writer)
        assert sequences == list(range(len(sequences)))


def test_the_end_of_a_script_without_close_delivers_what_it_can(script):
    script(
        """
        box = Outbox(RUN, sink="http://collector.test", open_sink=lambda url: Store())
        for step in range(100):
            box.put(step, VALUES)
        """
    )
    assert len(Path("store").read_text().splitlines()) == 100
    assert list(Path(".learnmech/spool").iterdir()) == []


def test_the_end_of_a_script_waits_for_a_dead_collector_no_longer_than_two_seconds(script):
    out = script(
        """
        class Dead(Store):
            def deliver(self, batch):
                time.sleep(60)
        import atexit
        boxes = [Outbox(RUN, sink="http://collector.test", open_sink=lambda url: Dead()) for _ in range(3)]
        for box in boxes:
            box.put(0, VALUES)
        began = time.monotonic()
        from learnmech.probes.delivery.lifetimes import LIFETIMES
        LIFETIMES.at_exit()
        print(time.monotonic() - began)
        """
    )
    assert float(out) < 4.0  # two seconds, and a little for each thread that is left behind
    assert len(list(batches(Path(".learnmech/spool")))) == 3


def test_an_exception_in_training_loses_nothing(script):
    script(
        """
        box = Outbox(RUN, sink="http://collector.test", open_sink=lambda url: Store())
        for step in range(10):
            box.put(step, VALUES)
        raise RuntimeError("loss is nan")
        """,
        check=False,
    )
    assert len(Path("store").read_text().splitlines()) == 10


def test_ctrl_c_in_the_middle_of_put_keeps_the_order(script):
    # An interrupt may skip a number; it must not use one twice, tear a frame or leave a lock held.
    script(
        """
        def interrupt(number, frame):
            raise KeyboardInterrupt
        # By CPU time, so that a busy machine does not starve the loop; the kernel rounds up to a few milliseconds.
        signal.signal(signal.SIGPROF, interrupt)
        box = Outbox(RUN, sink="spool:kept")
        caught = step = 0
        while caught < 25:
            try:
                signal.setitimer(signal.ITIMER_PROF, 0.0005 * random.random())
                while True:
                    step += 1
                    box.put(step, VALUES[:2])
            except KeyboardInterrupt:
                caught += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        box.put(step + 1, VALUES[:2])
        assert box.flush(30)
        box.close(20)
        """
    )
    damaged = []
    found = []
    for batch in batches(Path("kept"), on_damage=lambda path, damage: damaged.append(damage)):
        found.extend((frame.sequence, frame.step) for frame in batch.frames)
    assert damaged == []
    sequences, steps = [sequence for sequence, _ in found], [step for _, step in found]
    assert sequences == sorted(set(sequences))
    assert steps == sorted(set(steps))
    # Each interrupt took at most the frame that it hit.
    assert sequences[-1] + 1 - len(sequences) <= 25
    assert steps[-1] - len(steps) <= 25
    assert len(found) > 500
