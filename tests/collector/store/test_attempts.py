"""Resuming from an earlier checkpoint: what was superseded is hidden, never deleted, in whatever order it arrives."""

import random

from hypothesis import strategies as st


def test_a_resume_supersedes_the_tail(store, writer, rows):
    first = writer()
    run = first.run.id
    store.ingest(first.batch(*(first.frame(step, loss=float(step)) for step in range(10))))
    second = writer(first.run, attempt=1, start_step=6)
    store.ingest(second.batch(*(second.frame(step, loss=100.0 + step) for step in range(6, 8))))
    assert store.observations(run, "loss")["value"] == [0, 1, 2, 3, 4, 5, 106, 107]
    assert rows(store, "SELECT value FROM latest") == [(107.0,)]
    [series] = store.series(run)
    assert (series.count, series.first_step, series.last_step, series.value) == (8, 0, 7, 107.0)
    row = store.run(run)
    assert (row.attempts, row.last_step, row.points) == (2, 7, 12)
    everything = "SELECT attempt, step, superseded FROM measurements ORDER BY attempt, step"
    assert rows(store, everything) == [(0, s, int(s > 5)) for s in range(10)] + [(1, 6, 0), (1, 7, 0)]


def test_a_second_resume_may_go_further_back(store, writer):
    first = writer()
    run = first.run.id
    store.ingest(first.batch(*(first.frame(step, loss=1.0) for step in range(10))))
    for attempt, start in ((1, 6), (2, 3)):
        again = writer(first.run, attempt=attempt, start_step=start)
        store.ingest(again.batch(*(again.frame(step, loss=attempt + 1.0) for step in range(start, start + 2))))
    assert store.observations(run, "loss")["value"] == [1, 1, 1, 3, 3]
    assert store.run(run).last_step == 4


def test_a_resume_hides_at_once_what_it_will_measure_again(store, writer):
    first = writer()
    store.ingest(first.batch(*(first.frame(step, loss=1.0) for step in range(10))))
    store.ingest(writer(first.run, attempt=1, start_step=4).batch(heartbeat=True))
    assert store.run(first.run.id).last_step == 3
    assert store.observations(first.run.id, "loss")["step"] == [0, 1, 2, 3]


def test_an_attempt_that_is_superseded_whole_leaves_the_older_one(store, writer, rows):
    """Attempt 2 goes back behind attempt 1 and measures no loss: the last loss that counts is attempt 0's."""
    first = writer()
    store.ingest(first.batch(*(first.frame(step, loss=1.0) for step in range(4))))
    second, third = writer(first.run, attempt=1, start_step=2), writer(first.run, attempt=2, start_step=1)
    store.ingest(second.batch(second.frame(2, loss=2.0)))
    store.ingest(third.batch(third.frame(1, grad_norm=3.0)))
    assert rows(store, "SELECT observable, step, value FROM latest ORDER BY 1") == [
        ("grad_norm", 1, 3.0),
        ("loss", 0, 1.0),
    ]
    assert [(s.observable, s.last_step, s.count) for s in store.series(first.run.id)] == [
        ("grad_norm", 1, 1),
        ("loss", 0, 1),
    ]


def test_the_newest_attempt_describes_the_run(store, writer, new_run):
    first = writer(new_run("old", project="a", context={"optimizer": "SGD"}))
    second = writer(new_run("new", id=first.run.id, project="b", context={"optimizer": "AdamW"}), attempt=1)
    for someone in (second, first):
        store.ingest(someone.batch())
    row = store.run(first.run.id)
    assert (row.name, row.project, row.context) == ("new", "b", {"optimizer": "AdamW"})


def test_a_step_before_the_attempt_began_is_refused(store, writer):
    someone = writer(attempt=1, start_step=5)
    ack = store.ingest(someone.batch(someone.frame(4, loss=1.0), someone.frame(5, loss=1.0)))
    assert ack.accepted == 1
    assert ack.rejected[0].reason == "step 4 lies before step 5, where attempt 1 began"


@st.composite
def histories(draw):
    """(start, length) per attempt, and (attempt, offset, length) pieces in the order of their arrival."""
    attempts = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 10)), min_size=1, max_size=4))
    pieces = []
    for number, (_, length) in enumerate(attempts):
        cut = draw(st.integers(0, length))
        pieces += [(number, 0, cut), (number, cut, length)]
    return attempts, draw(st.permutations(pieces))


def check(store, writer, rows, case):
    attempts, pieces = case
    random.seed()
    first = writer(attempt=0, start_step=attempts[0][0])
    writers = [first] + [writer(first.run, attempt=n, start_step=attempts[n][0]) for n in range(1, len(attempts))]
    for number, low, high in pieces:
        someone = writers[number]
        someone.sequence = low
        frames = [
            someone.frame(step, loss=100.0 * number + step, samples=step)
            for step in range(someone.start_step + low, someone.start_step + high)
        ]
        store.ingest(someone.batch(*frames))
    # The model: a later attempt takes over everything from its start on.
    effective: dict[int, float] = {}
    for number, (start, length) in enumerate(attempts):
        effective = {step: value for step, value in effective.items() if step < start}
        effective |= {step: 100.0 * number + step for step in range(start, start + length)}
    run = first.run.id
    expected = sorted(effective.items())
    view = "SELECT step, value, time FROM observations WHERE run_id = :run ORDER BY step"
    assert rows(store, view, run=run) == [(step, value, 1000.0 + step) for step, value in expected]
    assert rows(store, "SELECT step FROM ticks WHERE run_id = :run ORDER BY step", run=run) == [
        (s,) for s, _ in expected
    ]
    assert rows(store, "SELECT step, value FROM latest WHERE run_id = :run", run=run) == expected[-1:]
    columns = store.observations(run, "loss", x="samples")
    assert list(zip(columns["step"], columns["value"], columns["x"], strict=True)) == [(s, v, s) for s, v in expected]
    [*series] = store.series(run)
    assert [(s.count, s.first_step, s.last_step, s.value) for s in series] == (
        [(len(expected), expected[0][0], expected[-1][0], expected[-1][1])] if expected else []
    )
    everything = rows(store, "SELECT count(*) FROM measurements WHERE run_id = :run", run=run)
    assert everything == [(sum(length for _, length in attempts),)]


def test_the_views_agree_with_a_model_of_rewinding(shared_store, writer, rows, prove):
    prove(shared_store, histories(), lambda case: check(shared_store, writer, rows, case))
