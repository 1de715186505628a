"""Exactly once: however frames are cut into batches, repeated and shuffled, the store holds what a Python set holds."""

import itertools
import math
import random

from hypothesis import strategies as st

from learnmech.wire import Event, Measurement

VALUES = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])


@st.composite
def deliveries(draw):
    """Frames of several writers (observable, step, value), and slices of them in the order in which they arrive."""
    frames = [
        [
            (draw(st.sampled_from(["loss", "grad_norm"])), sequence * 3 + writer, draw(VALUES))
            for sequence in range(length)
        ]
        for writer, length in enumerate(draw(st.lists(st.integers(1, 10), min_size=1, max_size=3)))
    ]
    slices = []
    for writer, mine in enumerate(frames):
        # Whole cover first, then repetitions and overlaps.
        cuts = sorted({0, len(mine), *draw(st.lists(st.integers(0, len(mine)), max_size=4))})
        slices += [(writer, a, b) for a, b in itertools.pairwise(cuts)]
        for _ in range(draw(st.integers(0, 4))):
            a = draw(st.integers(0, len(mine) - 1))
            slices.append((writer, a, draw(st.integers(a + 1, len(mine)))))
    return frames, draw(st.permutations(slices))


def spelled(value: float) -> tuple[float | None, str | None]:
    if math.isnan(value):
        return None, "nan"
    if math.isinf(value):
        return None, "inf" if value > 0 else "-inf"
    return value, None


def check(store, writer, rows, case):
    frames, arrivals = case
    random.seed()
    writers = [writer()]
    writers += [writer(writers[0].run, rank=rank) for rank in range(1, len(frames))]
    made = [
        [
            someone.frame(
                step, Measurement(name, value, str(someone.rank)), events=(Event("user", step, 1.0, f"{name}"),)
            )
            for name, step, value in mine
        ]
        for someone, mine in zip(writers, frames, strict=True)
    ]
    accepted = duplicates = 0
    for number, first, last in arrivals:
        ack = store.ingest(writers[number].batch(*made[number][first:last]))
        accepted, duplicates = accepted + ack.accepted, duplicates + ack.duplicates
        assert ack.rejected == []
        assert ack.last_sequence == last - 1
    run = writers[0].run.id
    expected = sorted(
        (step, name, str(rank), *spelled(value)) for rank, mine in enumerate(frames) for name, step, value in mine
    )
    query = "SELECT step, observable, scope, value, nonfinite FROM observations WHERE run_id = :run"
    assert sorted(rows(store, query, run=run)) == expected
    assert accepted == len(expected) == store.run(run).points
    assert accepted + duplicates == sum(last - first for _, first, last in arrivals)
    assert sorted((e.step, e.message) for e in store.events(run)) == sorted(
        (step, name) for mine in frames for name, step, _ in mine
    )
    assert [e.id for e in store.events(run)] == list(range(1, len(expected) + 1))
    assert {s.count for s in store.series(run)} <= {
        len([1 for x in expected if x[1:3] == k]) for k in {x[1:3] for x in expected}
    }
    for series in store.series(run):
        mine = [x for x in expected if (x[1], x[2]) == (series.observable, series.scope)]
        assert (series.count, series.first_step, series.last_step) == (len(mine), mine[0][0], mine[-1][0])
    # The ledger has forgotten how the frames were cut.
    ledger = rows(
        store,
        "SELECT l.first_sequence, l.last_sequence FROM ledger l JOIN run r ON r.run_id = l.run_id WHERE r.uuid = :run",
        run=run,
    )
    assert sorted(ledger) == sorted((0, len(mine) - 1) for mine in frames)


def test_shuffled_repeated_and_split_batches_are_stored_once(shared_store, writer, rows, prove):
    prove(shared_store, deliveries(), lambda case: check(shared_store, writer, rows, case))
