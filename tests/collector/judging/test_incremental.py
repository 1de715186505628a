"""Judged as it comes, in pieces, late, twice, by several judges: always what one would say who sees it all at once."""

import random
import uuid
from collections import defaultdict
from typing import ClassVar

from hypothesis import strategies as st

from learnmech.collector.judging import Judge
from learnmech.laws import LOOKS, Band, Law, Point, Prediction, State, Value, judge
from learnmech.laws.law import not_applicable
from learnmech.observables import Status
from learnmech.wire import Lineage, Measurement


class Echo(Law):
    """Says back everything it was shown, so that a wrong value, `since` or history shows in the prediction."""

    name = "echo"
    title = statement = reference = ""
    measures = ("user.m", "user.n")
    needs = ("learning_rate",)
    uses = ("user.u",)
    band = Band(0.5, 2.0, "a test")
    window = 3
    minimum = 2
    advice: ClassVar = {}

    def predict(self, state: State) -> Prediction | None:
        rate, other = state.values.get("learning_rate"), state.values.get("user.u")
        if rate is None or rate.value is None:
            return not_applicable("no rate")
        if state.observable == "user.m" and rate.value == 3.0:
            return None
        told = f"{state.observable} {rate} {other} {state.context}"
        return Prediction(rate.value + 1e-3 * rate.since, note=told)


def effective(attempts, records):
    """What counts, by a plain model: of the last attempt and those before it, each takes over from its start on."""
    number = len(attempts) - 1
    path = [number]
    while (number := attempts[number][0]) is not None:
        path.append(number)
    kept = []
    for number in reversed(path):
        start = attempts[number][1]
        kept = [record for record in kept if record[1] < start]
        kept += [record for record in records if record[0] == number and record[1] >= start]
    return sorted(kept, key=lambda record: record[1])


def judged_at_once(law, attempts, records):
    """Expected residuals by scope, from scratch, with nothing but lists."""
    kept, answer = effective(attempts, records), defaultdict(list)
    histories = defaultdict(list)

    def in_force(name, scope, step):
        seen = [r for r in kept if r[2] == name and r[3] == scope and r[1] <= step]
        if not seen:
            return None
        since = seen[-1][1]
        for record in reversed(seen):
            if record[4] != seen[-1][4]:
                break
            since = record[1]
        value = seen[-1][4]
        return Value(value, None, seen[-1][1], since, Status.OK if value is not None else Status.FAILED)

    for step, scope in sorted({(r[1], r[3]) for r in kept if r[2] in law.measures}):
        measured = {r[2]: r for r in kept if r[1] == step and r[3] == scope}
        for name in law.measures:
            if name not in measured:
                continue
            values = {n: in_force(n, scope, step) or in_force(n, "", step) for n in (*law.needs, *law.uses)}
            number = measured[name][0]
            state = State(name, step, scope, {n: v for n, v in values.items() if v}, {"attempt": number})
            said = law.predict(state)
            if said is None:
                continue
            value = measured[name][4]
            point = Point(
                step, value, None, said.value, None,
                Status.OK if value is not None else Status.FAILED, said.not_applicable, said.note,
            )  # fmt: skip
            verdict = judge(law, point, histories[scope][-law.window - LOOKS :])
            histories[scope].append(point)
            answer[scope].append((step, value, said.value, verdict.verdict.value, verdict.reason, verdict.ratio))
            break
    return answer


NAMES = st.sampled_from(["user.m", "user.m", "user.n", "learning_rate", "user.u"])


@st.composite
def stories(draw):
    """Attempts (parent, start); records (attempt, step, name, scope, value) as they come; acts after each; a chunk."""
    others = range(1, draw(st.integers(1, 5)))
    attempts = [(None, 0), *((draw(st.integers(0, n - 1)), draw(st.integers(0, 12))) for n in others)]
    records = {}
    for _ in range(draw(st.integers(1, 30))):
        number = draw(st.integers(0, len(attempts) - 1))
        step = attempts[number][1] + draw(st.integers(0, 12))
        key = (number, step, draw(NAMES), draw(st.sampled_from(["", "", "a"])))
        records[key] = draw(st.sampled_from([1.0, 1.0, 2.0, 3.0, None]))
    listed = [(*key, value) for key, value in records.items()]
    if draw(st.booleans()):
        listed.sort()
    acts = [draw(st.sampled_from(["wait", "judge", "judge", "another judge"])) for _ in listed]
    return attempts, listed, acts, draw(st.sampled_from([1, 5, 1000]))


def check(store, writer, new_run, story):
    attempts, records, acts, chunk = story
    random.seed()
    first = new_run(context={"attempt": 0})
    writers = []
    for n, (parent, start) in enumerate(attempts):
        before = None if parent is None else writers[parent]
        lineage = Lineage(id=uuid.uuid4().hex, begun=float(n), parent=None if before is None else before.lineage.id)
        claimed = 0 if before is None else before.attempt + 1
        info = new_run(id=first.id, context={"attempt": n})
        writers.append(writer(info, attempt=claimed, start_step=start, lineage=lineage))
    law = Echo()
    one, two = Judge(store, [law], chunk=chunk), Judge(store, [law])
    for (number, step, name, scope, value), act in zip(records, acts, strict=True):
        someone = writers[number]
        made = Measurement(name, value, scope, status=Status.OK if value is not None else Status.FAILED)
        assert store.ingest(someone.batch(someone.frame(step, made))).accepted == 1
        if act != "wait":
            (one if act == "judge" else two).judge(first.id)
    # An attempt without a measurement says late that it is there, and supersedes nevertheless.
    for someone in writers:
        store.ingest(someone.batch())
    one.judge(first.id)
    expected = {"": [], "a": [], **judged_at_once(law, attempts, records)}

    def found(scope):
        columns = store.residuals(first.id, "echo", scope)
        names = ("step", "measured", "predicted", "verdict", "reason", "ratio")
        return list(zip(*(columns[name] for name in names), strict=True))

    for scope in ("", "a"):
        assert found(scope) == expected[scope]
    standing = {row.scope: row for row in store.laws(first.id)}
    assert set(standing) == {scope for scope, rows in expected.items() if rows}
    for scope, rows in ((scope, rows) for scope, rows in expected.items() if rows):
        changes = [(r[0], r[3]) for i, r in enumerate(rows) if i == 0 or rows[i - 1][3] != r[3]]
        assert [(change.step, change.verdict) for change in standing[scope].changes] == changes
        assert (standing[scope].since_step, standing[scope].verdict) == changes[-1]
    # From scratch, and again: the same.
    for _ in range(2):
        assert Judge(store, [law], chunk=chunk).judge(first.id, from_step=0) == sum(map(len, expected.values()))
        for scope in ("", "a"):
            assert found(scope) == expected[scope]
    assert one.judge(first.id) == 0


def test_the_order_of_arrival_does_not_matter(shared_store, writer, new_run, prove):
    prove(shared_store, stories(), lambda story: check(shared_store, writer, new_run, story))


def test_a_resume_that_measures_late_forgets_what_it_superseded_at_once(store, writer):
    """The values in force when it measures first are those of before it began, not the superseded ones."""
    first = writer()
    second = writer(first.run, attempt=1, start_step=5)
    judge = Judge(store, [Echo()])
    frames = [
        first.frame(step, Measurement("user.m", 1.0), learning_rate=1.0 if step < 5 else 2.0) for step in range(10)
    ]
    store.ingest(first.batch(*frames))
    judge.judge(first.run.id)
    store.ingest(second.batch(second.frame(12, Measurement("user.m", 1.0))))
    judge.judge(first.run.id)
    residuals = store.residuals(first.run.id, "echo")
    assert residuals["step"] == [0, 1, 2, 3, 4, 12]
    assert residuals["predicted"][-1] == 1.0


def test_a_value_is_in_force_since_before_the_resume(store, writer):
    first = writer()
    second = writer(first.run, attempt=1, start_step=5)
    store.ingest(first.batch(*(first.frame(step, learning_rate=2.0 if step < 3 else 1.0) for step in range(8))))
    store.ingest(second.batch(second.frame(5, learning_rate=1.0), second.frame(6, Measurement("user.m", 1.0))))
    judge = Judge(store, [Echo()])
    assert judge.judge(first.run.id) == 1
    for either in (Judge(store, [Echo()]), judge):
        assert either.judge(first.run.id, from_step=6) == 1
        assert store.residuals(first.run.id, "echo")["predicted"] == [1.0 + 1e-3 * 3]


def test_nothing_new_is_nothing_written(store, writer):
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, sharpness=1.0)))
    judge = Judge(store)
    assert judge.judge(someone.run.id) == 1
    before = store.run(someone.run.id).revision
    assert judge.judge(someone.run.id) == 0
    assert store.run(someone.run.id).revision == before
    store.ingest(someone.batch(someone.frame(1, loss=1.0)))
    after = store.run(someone.run.id).revision
    assert judge.judge(someone.run.id) == 0
    assert store.run(someone.run.id).revision == after


def test_all_runs_at_once(store, writer):
    writers = [writer() for _ in range(3)]
    for someone in writers:
        store.ingest(someone.batch(someone.frame(0, sharpness=1.0)))
    judge = Judge(store)
    assert judge.judge(writers[0].run.id) == 1
    assert judge.judge_all() == 2
    assert judge.judge_all() == 0
    assert judge.judge_all(from_step=0) == 3


def test_a_law_taken_away_leaves_its_residuals_and_a_changed_one_replaces_them(store, writer, rows):
    class Newer(Echo):
        version = 2

        def predict(self, state):
            return Prediction(7.0) if state.step > 1 else None

    someone = writer()
    store.ingest(someone.batch(*(someone.frame(s, Measurement("user.m", 1.0), learning_rate=1.0) for s in range(4))))
    assert Judge(store, [Echo()]).judge(someone.run.id) == 4
    assert Judge(store, []).judge(someone.run.id, from_step=0) == 0
    assert len(store.residuals(someone.run.id, "echo")["step"]) == 4
    assert Judge(store, [Newer()]).judge(someone.run.id, from_step=0) == 2
    assert store.residuals(someone.run.id, "echo")["predicted"] == [7.0, 7.0]
    assert rows(store, "SELECT DISTINCT version FROM law_point") == [(2,)]


def test_a_branch_that_is_taken_up_again_is_judged_anew(store, writer):
    """Its residuals were written before another branch superseded it, and lie behind all that was judged since."""
    root, one, two = (Lineage(id=digit * 32, begun=float(digit), parent=None) for digit in "123")
    first = writer(lineage=root)
    judge = Judge(store, [Echo()])

    def send(attempt, start, identity, parent, *steps, rate):
        lineage = Lineage(id=identity.id, begun=identity.begun, parent=parent.id)
        someone = writer(first.run, attempt=attempt, start_step=start, lineage=lineage)
        made = [someone.frame(step, Measurement("user.m", 1.0), learning_rate=rate) for step in steps]
        store.ingest(someone.batch(*made))
        judge.judge(first.run.id)

    store.ingest(first.batch(*(first.frame(s, Measurement("user.m", 1.0), learning_rate=1.0) for s in (0, 3, 6, 9))))
    judge.judge(first.run.id)
    send(1, 10, one, root, 12, 15, rate=2.0)
    send(1, 8, two, root, rate=4.0)
    store.ingest(first.batch(first.frame(7, Measurement("user.m", 1.0), learning_rate=1.0)))
    judge.judge(first.run.id)
    assert store.residuals(first.run.id, "echo")["step"] == [0, 3, 6, 7]
    send(2, 14, Lineage(id="4" * 32, begun=4.0), one, 14, rate=2.0)
    residuals = store.residuals(first.run.id, "echo")
    assert residuals["step"] == [0, 3, 6, 7, 9, 12, 14]
    assert residuals["predicted"] == [1.0] * 5 + [2.0 + 1e-3 * 12] * 2


def test_what_was_before_is_looked_up_along_the_branch_not_by_numbers(store, writer, rows):
    """An attempt that arrives before the one it goes on from has the lower number, and is the newer one."""
    first = writer(lineage=Lineage(id="0" * 32, begun=0.0))

    def send(name, parent, attempt, start, *steps, rate, value):
        lineage = Lineage(id=name * 32, begun=float(name), parent=parent * 32)
        someone = writer(first.run, attempt=attempt, start_step=start, lineage=lineage)
        made = [someone.frame(step, Measurement("user.m", value), learning_rate=rate) for step in steps]
        store.ingest(someone.batch(*made))

    store.ingest(first.batch(*(first.frame(step, learning_rate=1.0) for step in range(5))))
    send("1", "0", 1, 5, 5, rate=2.0, value=2.0)
    send("3", "2", 2, 10, 10, 11, rate=4.0, value=1.0)
    send("2", "0", 1, 5, 5, 6, 7, rate=5.0, value=5.0)
    everything = "SELECT step, measured, predicted, verdict, reason FROM residuals ORDER BY step"
    Judge(store, [Echo()]).judge(first.run.id)
    found = rows(store, everything)
    assert [(row[0], row[2]) for row in found] == [
        *((step, 5.0 + 1e-3 * 5) for step in (5, 6, 7)),
        *((step, 4.0 + 1e-3 * 10) for step in (10, 11)),
    ]
    standing = store.laws(first.run.id)
    Judge(store, [Echo()]).judge(first.run.id, from_step=11)
    assert rows(store, everything) == found
    assert store.laws(first.run.id) == standing
    [law] = standing
    assert (law.step, law.measured) == (11, 1.0)
