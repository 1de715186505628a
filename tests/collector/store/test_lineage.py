"""Resuming more than once from one checkpoint: the curve is that of the newest attempt and of what led to it."""

import random
import threading
import uuid
from collections import Counter

from hypothesis import strategies as st

from learnmech.collector.store import Store
from learnmech.wire import Lineage


def lineage(begun: float, parent: Lineage | None = None) -> Lineage:
    """An identity that no other attempt has."""
    made = uuid.UUID(int=random.getrandbits(128)).hex
    return Lineage(id=made, begun=begun, parent=None if parent is None else parent.id)


def values(store, run):
    columns = store.observations(run, "loss")
    return dict(zip(columns["step"], columns["value"], strict=True))


def frames(writer, steps, offset):
    return [writer.frame(step, loss=offset + step) for step in steps]


def resumed_twice(writer):
    """Attempt 0 gives steps 0 to 15; from step 10 a first resume gives 10 to 14, a second one 10 and 12."""
    root = lineage(1.0)
    first = writer(lineage=root)
    again = [writer(first.run, attempt=1, start_step=10, lineage=lineage(begun, root)) for begun in (2.0, 3.0)]
    batches = [
        first.batch(*frames(first, range(16), 0.0)),
        again[0].batch(*frames(again[0], range(10, 15), 100.0)),
        again[1].batch(*frames(again[1], (10, 12), 200.0)),
    ]
    return first.run.id, batches, {**{step: float(step) for step in range(10)}, 10: 210.0, 12: 212.0}


def test_nothing_of_two_resumes_from_one_checkpoint_is_lost_or_mixed(store, writer, rows):
    run, batches, expected = resumed_twice(writer)
    for batch in batches:
        assert store.ingest(batch).duplicates == 0
    assert values(store, run) == expected
    assert store.run(run).attempts == 3
    assert store.run(run).last_step == 12
    everything = rows(store, "SELECT attempt, step, value, superseded FROM measurements ORDER BY attempt, step")
    assert everything == [
        *((0, step, float(step), int(step > 9)) for step in range(16)),
        *((1, step, 100.0 + step, 1) for step in range(10, 15)),
        *((2, step, 200.0 + step, 0) for step in (10, 12)),
    ]


def test_what_a_dead_sibling_left_in_its_spool_does_not_supersede_the_living_one(store, writer, rows):
    run, (first, dead, living), expected = resumed_twice(writer)
    for batch in (first, living, dead, dead, living):
        store.ingest(batch)
    assert values(store, run) == expected
    assert store.run(run).points == 23
    assert rows(store, "SELECT attempt, count(*) FROM measurements GROUP BY attempt ORDER BY 1") == [
        (0, 16), (1, 2), (2, 5),
    ]  # fmt: skip


def test_only_what_changed_is_judged_again(store, writer, rows):
    run, batches, _ = resumed_twice(writer)
    for batch in batches[:2]:
        store.ingest(batch)
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE run SET judge_from = NULL")
    store.ingest(batches[2])
    assert rows(store, "SELECT judge_from FROM run WHERE uuid = :run", run=run) == [(10,)]


def test_a_branch_that_is_taken_up_again_counts_whole(store, writer):
    """Not the pieces that lie newest at each step: no training went through those."""
    run, batches, _ = resumed_twice(writer)
    for batch in batches:
        store.ingest(batch)
    dead = batches[1]
    third = writer(dead.run, attempt=2, start_step=13, lineage=lineage(4.0, dead.lineage))
    store.ingest(third.batch(*frames(third, range(13, 15), 300.0)))
    expected = {step: float(step) for step in range(10)} | {10: 110.0, 11: 111.0, 12: 112.0, 13: 313.0, 14: 314.0}
    assert values(store, run) == expected


def test_a_wrong_clock_does_not_put_a_resume_before_its_checkpoint(store, writer):
    root = lineage(1000.0)
    first, second = writer(lineage=root), lineage(5.0, root)
    store.ingest(first.batch(*frames(first, range(4), 0.0)))
    again = writer(first.run, attempt=1, start_step=2, lineage=second)
    store.ingest(again.batch(*frames(again, range(2, 4), 100.0)))
    assert values(store, first.run.id) == {0: 0.0, 1: 1.0, 2: 102.0, 3: 103.0}


def test_an_attempt_whose_parent_never_arrived_goes_on_from_the_newest_before_it(store, writer):
    first = writer(lineage=lineage(1.0))
    store.ingest(first.batch(*frames(first, range(6), 0.0)))
    orphan = writer(first.run, attempt=2, start_step=4, lineage=lineage(3.0, lineage(2.0)))
    store.ingest(orphan.batch(*frames(orphan, range(4, 6), 200.0)))
    assert values(store, first.run.id) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 204.0, 5: 205.0}


def test_clients_are_upgraded_in_the_middle_of_a_run(store, writer):
    """Attempts 0 and 1 do not say who they are; checkpoints of theirs are resumed by a client that does."""
    old = writer()
    store.ingest(old.batch(*frames(old, range(9), 0.0)))
    older = writer(old.run, attempt=1, start_step=6)
    store.ingest(older.batch(*frames(older, range(6, 9), 100.0)))
    new = writer(old.run, attempt=1, start_step=4, lineage=lineage(5.0))
    store.ingest(new.batch(*frames(new, range(4, 6), 200.0)))
    assert values(store, old.run.id) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 204.0, 5: 205.0}
    # A late batch of the old client is still that of attempt 1.
    store.ingest(older.batch(*frames(older, range(9, 10), 100.0)))
    assert store.run(old.run.id).attempts == 3
    assert values(store, old.run.id)[5] == 205.0


def test_a_collector_is_upgraded_in_the_middle_of_an_attempt(store, writer):
    """It stored the first batches without reading who they were of: the writer tells that it is the same attempt."""
    first = writer()
    before = first.batch(*frames(first, range(3), 0.0))
    store.ingest(before)
    first.lineage = lineage(1.0)
    after = first.batch(*before.frames[2:], *frames(first, range(3, 5), 0.0))
    for opened in (store, Store(store.database)):
        ack = opened.ingest(after)
    assert ack.duplicates == 3
    assert values(store, first.run.id) == {step: float(step) for step in range(5)}
    assert store.run(first.run.id).attempts == 1


def test_the_newest_attempt_describes_the_run_whenever_it_arrives(store, writer, new_run):
    root = lineage(1.0)
    first = writer(new_run("first"), lineage=root)
    older, newer = (
        writer(new_run(name, id=first.run.id, context={"is": name}), attempt=1, lineage=lineage(begun, root))
        for begun, name in ((2.0, "older"), (3.0, "newer"))
    )
    for someone in (first, newer, older):
        store.ingest(someone.batch())
    row = store.run(first.run.id)
    assert (row.name, row.context) == ("newer", {"is": "newer"})


def test_siblings_that_arrive_at_once_at_several_collectors(url, writer, rows):
    root = lineage(1.0)
    first = writer(lineage=root)
    siblings = [writer(first.run, attempt=1, start_step=1, lineage=lineage(2.0 + n, root)) for n in range(4)]
    with Store.open(url) as store:
        store.ingest(first.batch(*frames(first, range(3), 0.0)))
    ready = threading.Barrier(len(siblings))

    def send(number, someone):
        with Store.open(url) as mine:
            ready.wait()
            for step in range(1, 4):
                mine.ingest(someone.batch(*frames(someone, (step,), 100.0 * (number + 1))))

    threads = [threading.Thread(target=send, args=item) for item in enumerate(siblings)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store.open(url) as store:
        assert values(store, first.run.id) == {0: 0.0, 1: 401.0, 2: 402.0, 3: 403.0}
        found = rows(store, "SELECT attempt, count(DISTINCT CAST(value / 100 AS INTEGER)), count(*) FROM measurements "
                            "GROUP BY attempt ORDER BY attempt")  # fmt: skip
    assert found == [(0, 1, 3), *((number, 1, 3) for number in range(1, 5))]


@st.composite
def trees(draw):
    """(parent, start, length, begun) per attempt, and pieces (attempt, from, to) in the order of their arrival."""
    count = draw(st.integers(1, 7))
    clocks = list(range(count)) if draw(st.booleans()) else draw(st.permutations(range(count)))
    attempts, pieces = [], []
    for number in range(count):
        parent = draw(st.integers(0, number - 1)) if number else None
        low, high = (0, 0) if parent is None else (attempts[parent][1], sum(attempts[parent][1:3]))
        attempts.append((parent, draw(st.integers(low, high)), draw(st.integers(0, 8)), float(clocks[number])))
        length = attempts[-1][2]
        cut = draw(st.integers(0, length))
        pieces += [(number, 0, cut), (number, cut, length)]
        if draw(st.booleans()):
            first = draw(st.integers(0, length))
            pieces.append((number, first, draw(st.integers(first, length))))
    return attempts, draw(st.permutations(pieces))


def points(number, start, length):
    """Every other step: so that a step which only a superseded attempt measured would show."""
    return {step: 1000.0 * number + step for step in range(start, start + length) if (step + number) % 2}


def model(attempts):
    """Follow the newest leaf to the root; from there, each attempt replaces everything from its start on."""
    leaves = set(range(len(attempts))) - {parent for parent, *_ in attempts}
    path = [max(leaves, key=lambda number: attempts[number][3])]
    while (parent := attempts[path[-1]][0]) is not None:
        path.append(parent)
    effective: dict[int, tuple[int, float]] = {}
    for number in reversed(path):
        _, start, length, _ = attempts[number]
        effective = {step: found for step, found in effective.items() if step < start}
        effective |= {step: (number, value) for step, value in points(number, start, length).items()}
    return effective


def depth(attempts, number):
    parent = attempts[number][0]
    return 0 if parent is None else 1 + depth(attempts, parent)


def check(store, writer, rows, case):
    attempts, pieces = case
    random.seed()
    run, names, made, senders = None, [], [], []
    for number, (parent, start, length, begun) in enumerate(attempts):
        names.append(lineage(begun, None if parent is None else names[parent]))
        someone = writer(run, attempt=depth(attempts, number), start_step=start, lineage=names[-1])
        run = someone.run
        senders.append(someone)
        mine = points(number, start, length)
        made.append(
            [
                someone.frame(step, samples=step, **({"loss": mine[step]} if step in mine else {}))
                for step in range(start, start + length)
            ]
        )
    # Two processes with a cache each.
    collectors = [store, Store(store.database)]
    for turn, (number, low, high) in enumerate(pieces):
        collectors[turn % 2].ingest(senders[number].batch(*made[number][low:high]))
    expected = model(attempts)
    curve = [(step, expected[step][1]) for step in sorted(expected)]
    view = "SELECT step, value, time FROM observations WHERE run_id = :run ORDER BY step"
    assert rows(store, view, run=run.id) == [(step, value, 1000.0 + step) for step, value in curve]
    assert rows(store, "SELECT step, value FROM latest WHERE run_id = :run", run=run.id) == curve[-1:]
    for limit in (2000, 3):
        columns = store.observations(run.id, "loss", points=limit, x="samples")
        found = list(zip(columns["step"], columns["value"], columns["x"], strict=True))
        assert (
            found == [(s, v, s) for s, v in curve] if len(curve) <= limit else set(found) < {(*p, p[0]) for p in curve}
        )
    assert [(s.count, s.first_step, s.last_step, s.value) for s in store.series(run.id)] == (
        [(len(curve), curve[0][0], curve[-1][0], curve[-1][1])] if curve else []
    )
    # Everything ever measured is there, once, in an attempt of its own.
    everything = rows(store, "SELECT attempt, step, value, superseded FROM measurements WHERE run_id = :r", r=run.id)
    measured = [
        (n, s, v) for n, (_, start, length, _) in enumerate(attempts) for s, v in points(n, start, length).items()
    ]
    assert Counter((s, v, hidden) for _, s, v, hidden in everything) == Counter(
        (s, v, int(expected.get(s) != (n, v))) for n, s, v in measured
    )
    owners = {(int(value // 1000), attempt) for attempt, _, value, _ in everything}
    assert len(owners) == len({who for who, _ in owners}) == len({attempt for _, attempt in owners})
    assert store.run(run.id).attempts == len(attempts)
    assert store.run(run.id).points == len(measured)


def test_the_views_agree_with_a_model_of_any_tree_of_resumes(shared_store, writer, rows, prove):
    prove(shared_store, trees(), lambda case: check(shared_store, writer, rows, case))
