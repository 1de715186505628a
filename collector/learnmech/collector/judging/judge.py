"""The judge: takes up what ingest has marked, judges it in order of step, writes residuals.

Ingest marks the first step that brought something new (`run.judge_from`) in its own transaction; the judge takes the
mark away in the transaction that writes the residuals. So a judge that is killed loses nothing, several judges may work
on one store, and late data has everything after it judged again. Between batches the judge remembers where it was.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import sqlalchemy as sa

from learnmech.collector.judging import residuals as table
from learnmech.collector.judging.examine import Finding, examine
from learnmech.collector.judging.force import Force, Record, names
from learnmech.collector.judging.inputs import Inputs, Standing
from learnmech.collector.store import Store, UnknownRun
from learnmech.collector.store.schema import FOREVER, run
from learnmech.laws import LOOKS, Law, Point, Verdict, catalogue

logger = logging.getLogger("learnmech.collector.judging")

CHUNK = 1000
"""Measurements judged in one transaction: a tenth of a second or so, for which other writers wait."""

REMEMBERED = 64
"""Runs whose state is kept between batches; others are read again, which costs some tens of milliseconds."""


class Progress:
    """Where the judge stands in a run: the values in force and each law's earlier points, just before a step."""

    def __init__(self, force: Force, standings: dict[tuple[str, str], Standing], windows: dict[str, int]) -> None:
        self.force = force
        self._windows = windows
        self.histories = {key: deque(item.history, windows[key[0]]) for key, item in standings.items()}
        self.verdicts = {key: (item.verdict, item.since_step) for key, item in standings.items()}

    def history(self, law: str, scope: str) -> deque[Point]:
        """Return a law's earlier points in a scope."""
        return self.histories.setdefault((law, scope), deque(maxlen=self._windows[law]))

    def turn(self, law: str, scope: str, verdict: Verdict, step: int) -> int:
        """Take in a verdict and return the step from which it has been the same."""
        before, since = self.verdicts.get((law, scope), (None, step))
        if verdict is not before:
            since = step
        self.verdicts[law, scope] = (verdict, since)
        return since

    def copy(self) -> "Progress":
        """Return an independent copy."""
        other = Progress(self.force.copy(), {}, self._windows)
        other.histories = {key: deque(points, points.maxlen) for key, points in self.histories.items()}
        other.verdicts = dict(self.verdicts)
        return other


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept between batches.

    True as long as nobody else has judged the run, nothing came before `step`, and the same attempts count.

    Attributes:
        judgements: Count of the run's judgements after the last one.
        step: The last step that was judged.
        progress: Where the judge stood before that step: more may come of it.
        reach: Last step that may have residuals.
        owners: The run's series of residuals.
        kept: The last step that counts, by attempt: what no longer does may have residuals behind `reach`.
    """

    judgements: int
    step: int
    progress: Progress
    reach: int
    owners: table.Owners
    kept: dict[int, int]


# Locks the run, and counts.
_TAKE = (
    sa.update(run)
    .where(run.c.uuid == sa.bindparam("of"), run.c.judge_from.is_not(None))
    .values(judgements=run.c.judgements + 1)
    .returning(run.c.run_id, run.c.judge_from, run.c.judgements)
)
_DONE = (
    sa.update(run)
    .where(run.c.run_id == sa.bindparam("of"))
    .values(judge_from=sa.bindparam("until"), revision=run.c.revision + sa.bindparam("news"))
)


class Judge:
    """Judges the runs of a store by laws."""

    def __init__(self, store: Store, laws: Sequence[Law] | None = None, *, chunk: int = CHUNK) -> None:
        """Judge by `laws`, by all that are installed if none are given; about `chunk` measurements a transaction."""
        self._store = store
        self._chunk = chunk
        self._laws = tuple(catalogue() if laws is None else laws)
        self._windows = {law.name: law.window + LOOKS for law in self._laws}
        self._observables = names(self._laws)
        self._measured = frozenset(name for law in self._laws for name in law.measures)
        self._memory: OrderedDict[int, Memory] = OrderedDict()

    def judge(self, run_id: str, from_step: int | None = None) -> int:
        """Judge what is new in a run.

        Args:
            run_id: The run.
            from_step: Judge everything from this step on again; 0 for the whole run.

        Returns:
            How many residuals were written.

        Raises:
            UnknownRun: There is no such run.
            Unavailable: The database does not answer now; what is not judged stays marked.
        """  # noqa: DOC502 (raised by what it calls)
        if from_step is not None:
            self._mark(run_id, max(from_step, 0))
        total, more = 0, True
        while more:
            count, more = self._judge_chunk(run_id)
            total += count
        return total

    def judge_all(self, from_step: int | None = None) -> int:
        """Judge what is new in every run, as after a crash; all of it again from `from_step` on if given.

        Returns:
            How many residuals were written.
        """
        query = sa.select(run.c.uuid).order_by(run.c.run_id)
        if from_step is None:
            query = query.where(run.c.judge_from.is_not(None))
        with self._store.database.reading() as connection:
            pending = connection.execute(query).scalars().all()
        return sum(self.judge(run_id, from_step) for run_id in pending)

    def _mark(self, run_id: str, step: int) -> None:
        earlier = sa.or_(run.c.judge_from.is_(None), run.c.judge_from > step)
        with self._store.database.writing() as connection:
            connection.execute(sa.update(run).where(run.c.uuid == run_id, earlier).values(judge_from=step))

    def _judge_chunk(self, run_id: str) -> tuple[int, bool]:
        """Judge the next steps of a run in one transaction.

        Returns:
            How many residuals were written, and whether there is more to judge.

        Raises:
            UnknownRun: There is no such run.
        """
        with self._store.database.writing() as connection:
            row = connection.execute(_TAKE, {"of": run_id}).first()
            if row is None:
                if connection.execute(sa.select(run.c.run_id).where(run.c.uuid == run_id)).first() is None:
                    raise UnknownRun(run_id)
                return 0, False
            inputs = Inputs.read(connection, row.run_id, self._observables)
            until = inputs.end_of_chunk(row.judge_from, self._measured, self._chunk)
            memory = self._recall(inputs, row.judge_from, row.judgements)
            fresh = memory.reach < row.judge_from
            if not fresh:
                table.delete(inputs, memory.owners, self._windows, row.judge_from, until)
            chunk = inputs.records(memory.step, until)
            residuals, memory = self._walk(inputs, memory, chunk, row.judge_from)
            owners = table.write(inputs, memory.owners, residuals)
            # What lies behind the end of a chunk is unknown, unless nothing lay there before.
            memory = replace(memory, owners=owners, reach=memory.step if fresh or until is None else FOREVER)
            connection.execute(_DONE, {"of": row.run_id, "until": until, "news": int(bool(residuals))})
        # Only what is committed is remembered.
        self._memory[row.run_id] = memory
        self._memory.move_to_end(row.run_id)
        while len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return len(residuals), until is not None

    def _recall(self, inputs: Inputs, first: int, judgements: int) -> Memory:
        """Return the state at or before a step: remembered if that is still true, else read from the store."""
        memory = self._memory.get(inputs.run_id)
        alone = memory is not None and memory.judgements == judgements - 1
        if memory is not None and alone and memory.step <= first and memory.kept == inputs.kept:
            return replace(memory, judgements=judgements, progress=memory.progress.copy())
        progress = Progress(Force(inputs.in_force(first)), dict(inputs.standings(self._windows, first)), self._windows)
        owners = table.owners_of(inputs.connection, inputs.run_id)
        return Memory(judgements, first, progress, FOREVER, owners, inputs.kept)

    def _walk(
        self, inputs: Inputs, memory: Memory, chunk: list[Record], first: int
    ) -> tuple[list[table.Residual], Memory]:
        """Judge records in order of step.

        Returns:
            The residuals from `first` on, and the state before the last step.
        """
        progress, residuals = memory.progress, []
        last = chunk[-1].step if chunk else memory.step
        for step, group in groupby(chunk, key=lambda record: record.step):
            if step == last:
                memory = replace(memory, step=step, progress=progress.copy())
            for finding in self._at_step(inputs, progress, list(group)):
                law, verdict = finding.law.name, finding.judgement.verdict
                since = progress.turn(law, finding.scope, verdict, step)
                progress.history(law, finding.scope).append(finding.point)
                if step >= first:
                    residuals.append(table.Residual(finding, since))
        return residuals, memory

    def _at_step(self, inputs: Inputs, progress: Progress, records: list[Record]) -> Iterator[Finding]:
        for record in records:
            progress.force.take(record)
        measured = {record.key: record for record in records if record.key[0] in self._measured}
        for law in self._laws:
            for scope in sorted({scope for name, scope in measured if name in law.measures}):
                mine = [measured[name, scope] for name in law.measures if (name, scope) in measured]
                context = inputs.contexts[mine[0].attempt]
                finding = examine(law, mine, progress.force, context, progress.history(law.name, scope))
                if finding is not None:
                    yield finding
