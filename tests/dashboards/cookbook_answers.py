"""The answers to the questions of docs/sql.md, worked out from the raw measurements without any SQL."""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

from cookbook_runs import BLOCKS, Run

from learnmech.collector.store import Store
from learnmech.observables import Status

Answer = list[tuple[Any, ...]]


class World(Protocol):
    """What the answers are worked out from: the runs by name, and the stores that were filled with them."""

    runs: list[Run]
    stores: dict[str, Store]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _how_did_it_end(world: World) -> Answer:
    ends = {"baseline": "finished", "wide": "finished", "broken": "failed"}
    runs = sorted(world.runs, key=lambda run: run.info.created)
    return [
        (r.name, ends[r.name], last.step, len(r.attempts), last.time - r.info.created)
        for r in runs
        for last in [r.attempts[-1][1][-1]]
    ]


def _how_fast(world: World) -> Answer:
    found = []
    for run in world.runs:
        frames = [frame for _, frame in run.kept()]
        columns = zip(*((f.step, f.tokens, f.time) for f in frames), strict=True)
        spans = [max(column) - min(column) for column in columns]
        found.append((run.name, spans[0] / spans[2], spans[1] / spans[2]))
    return found


def _pauses(world: World) -> Answer:
    gaps = [
        (run.name, after.step, after.time - before.time)
        for run in world.runs
        for before, after in pairwise([frame for _, frame in run.kept()])
    ]
    return [gap for gap in gaps if gap[2] > 60]


def thrown_away(world: World) -> Answer:
    found = []
    for run in world.runs:
        keep = [frame for _, frame in run.kept()]
        for number, (_, frames) in enumerate(run.attempts):
            lost = [frame for frame in frames if not any(frame is other for other in keep)]
            if lost:
                found.append((run.name, number, lost[0].step, lost[-1].step, sum(len(f.measurements) for f in lost)))
    return found


def _changed(world: World) -> Answer:
    names = ("learning_rate", "weight_decay", "momentum", "batch_size", "accumulation")
    return [
        (run.name, name, "", after[0].step, before[1].value, after[1].value)
        for run in world.runs
        for name in names
        for before, after in pairwise(run.rows(name))
        if before[1].value != after[1].value
    ]


def _equal_tokens(world: World) -> Answer:
    runs = {run.name: run for run in world.runs}

    def loss(name: str, tokens: int) -> float | None:
        return [m.value for frame, m in runs[name].rows("loss") if (frame.tokens or 0) <= tokens][-1]

    return [(mark, loss("baseline", mark), loss("wide", mark)) for mark in (20_000, 50_000, 110_000)]


def _against_batch(run: Run) -> list[tuple[int, float, float, float]]:
    return [
        (f.step, m.value or 0.0, m.stderr or 0.0, run.at("batch_size", f.step) or 0.0)
        for f, m in run.rows("noise_scale")
        if m.status is Status.OK
    ]


def below_critical(world: World) -> Answer:
    shares = [
        (run.name, _mean([1.0 if value > batch else 0.0 for _, value, _, batch in rows]))
        for run in world.runs
        if (rows := _against_batch(run))
    ]
    return sorted((row for row in shares if row[1] > 0.5), key=lambda row: -row[1])


def _below_for_good(world: World) -> Answer:
    found = []
    for run in world.runs:
        tail = None
        for step, value, error, batch in _against_batch(run):
            if value - error <= batch:
                tail = None
            elif tail is None:
                tail = step
        if tail is not None:
            found.append((run.name, tail))
    return found


def _twice_the_batch(world: World) -> Answer:
    runs = [run for run in world.runs if run.rows("doubling_speedup")]
    last = [(run, *run.rows("doubling_speedup")[-1]) for run in runs]
    return [(run.name, frame.step, m.value, m.stderr, m.status.value) for run, frame, m in last]


def _lowest_signal(world: World) -> Answer:
    found = []
    for run in world.runs:
        newest: dict[str, tuple[int, float]] = {}
        for frame, m in run.rows("signal_to_noise", None):
            if frame.step <= 400 and m.scope in BLOCKS and m.value is not None:
                newest[m.scope] = (frame.step, m.value)
        if newest:
            scope = min(newest, key=lambda name: newest[name][1])
            found.append((run.name, scope, *newest[scope]))
    return found


def temperature_at_resume(world: World) -> Answer:
    found = []
    for run in world.runs:
        rows = [(f.step, m.value) for f, m in run.rows("temperature") if m.status is Status.OK]
        for number, (start, _) in enumerate(run.attempts):
            if number:
                before = [value for step, value in rows if step < start][-1]
                found.append((run.name, number, start, before, next(value for step, value in rows if step >= start)))
    return found


def _one_over_b(world: World) -> Answer:
    found = []
    for run in world.runs:
        between, within = (
            [m.value or 0.0 for _, m in run.rows(name)] for name in ("noise_trace_between", "noise_trace")
        )
        if between:
            found.append((run.name, _mean(between) / _mean(within)))
    return found


def equilibrium(world: World) -> Answer:
    found = []
    for run in world.runs:
        for law in world.stores["sqlite"].laws(run.info.id):
            if law.law != "rotational_equilibrium":
                continue
            rows = world.stores["sqlite"].residuals(run.info.id, law.law, law.scope, points=10_000)
            tail = None
            for step, verdict in zip(rows["step"], rows["verdict"], strict=True):
                tail = (tail if tail is not None else step) if verdict == "holds" else None
            if tail is not None:
                found.append((run.name, law.scope, tail))
    return sorted(found)


def _decay_by_layer(world: World) -> Answer:
    groups: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in world.runs:
        for frame, m in run.rows("weight_decay_share", None):
            if m.scope in BLOCKS and m.status is Status.OK:
                groups[run.name, m.scope, frame.step // 500 * 500].append(m.value or 0.0)
    return [(*key, _mean(values)) for key, values in sorted(groups.items())]


def turn_unlike(world: World) -> Answer:
    found = []
    for run in world.runs:
        if not run.rows("angular_update"):
            continue
        whole = _mean([m.value or 0.0 for _, m in run.rows("angular_update")])
        for scope in ("blocks.0", "head", "embedding"):
            ratio = _mean([m.value or 0.0 for _, m in run.rows("angular_update", scope)]) / whole
            if not 0.5 <= ratio <= 2:
                found.append((run.name, scope, ratio))
    return sorted(found, key=lambda row: (row[0], -row[2]))


def _stationary(world: World) -> Answer:
    found = []
    for run in world.runs:
        end = run.attempts[-1][1][-1].step
        late = [m.value or 0.0 for f, m in run.rows("fluctuation_dissipation") if f.step > 0.75 * end]
        if late:
            found.append((run.name, _mean(late), min(late), max(late)))
    return found


def _self_test(world: World) -> Answer:
    found = []
    for run in world.runs:
        for scope in ("symmetry:scale", "symmetry:shift"):
            rows = [(m.value or 0.0, f.step) for f, m in run.rows("symmetry_residual", scope)]
            if rows:
                value, step = max(rows, key=lambda row: row[0])
                found.append((run.name, scope, step, value))
    return sorted(found, key=lambda row: -row[3])


def _probe_costs(world: World) -> Answer:
    found = []
    for run in world.runs:
        for scope in ("sharpness", "symmetries"):
            costs = [m.value or 0.0 for _, m in run.rows("probe_cost", scope)]
            if costs:
                row = (run.name, scope, len(costs), _mean(costs), max(costs), run.last("overhead").value)
                found.append(row)
    return sorted(found, key=lambda row: (row[0], -row[3]))


def _how_often(world: World) -> Answer:
    found = []
    for run in world.runs:
        steps: dict[str, set[int]] = defaultdict(set)
        for _, frame in run.kept():
            for m in frame.measurements:
                if m.scope == "":
                    steps[m.observable].add(frame.step)
        for name, at in sorted(steps.items()):
            if len(at) > 1:
                found.append((run.name, name, len(at), min(at), max(at), (max(at) - min(at)) / (len(at) - 1)))
    return found


def _no_value(world: World) -> Answer:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for run in world.runs:
        for _, frame in run.kept():
            for m in frame.measurements:
                if m.status is not Status.OK:
                    groups[run.name, m.observable, m.status.value, m.reason].append(frame.step)
    rows = [(*key, len(steps), min(steps), max(steps)) for key, steps in groups.items()]
    return sorted(rows, key=lambda row: (-row[4], row[0], row[1], row[3]))


def _went_wrong(world: World) -> Answer:
    return [
        (run.name, number, event.step, event.kind, event.severity, event.message)
        for run in world.runs
        for number, event in run.events()
        if event.severity != "info"
    ]


ANSWERS: dict[str, Callable[[World], Answer]] = {
    "How long did each run train, and how did it end?": _how_did_it_end,
    "How fast was each run?": _how_fast,
    "Where did training stand still for more than a minute?": _pauses,
    "What did a resume throw away?": thrown_away,
    "Which hyperparameters changed in mid-run, and when?": _changed,
    "How do two runs compare at equal tokens?": _equal_tokens,
    "Which runs were below their critical batch size for more than half of the training?": below_critical,
    "When did each run fall below its critical batch size for good?": _below_for_good,
    "What would twice the batch buy now?": _twice_the_batch,
    "Which block has the lowest signal to noise at step 400?": _lowest_signal,
    "Did the temperature change at a resume?": temperature_at_resume,
    "Does noise average as 1/B?": _one_over_b,
    "When did norm equilibrium set in?": equilibrium,
    "How large is weight decay in the update, by layer over time?": _decay_by_layer,
    "Which blocks turn at another rate than the model as a whole?": turn_unlike,
    "Was the end of the training stationary?": _stationary,
    "Did the instrument pass its self-test?": _self_test,
    "What did each probe cost, and how much was that of the run?": _probe_costs,
    "How often was each quantity measured?": _how_often,
    "Which measurements have no value, and why?": _no_value,
    "What went wrong, in order?": _went_wrong,
}
