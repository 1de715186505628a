"""What the judge writes: residuals, replaced by range so that twice is once, and events of laws that failed."""

import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from learnmech.collector.judging.examine import Finding, finite
from learnmech.collector.judging.inputs import Inputs
from learnmech.collector.store.codes import SEVERITY, STATUS, VERDICT
from learnmech.collector.store.engine import clean
from learnmech.collector.store.schema import event, law_point, law_series

_INSERT = sa.insert(law_point)

logger = logging.getLogger("learnmech.collector.judging")

FAILED = "law_failed"
"""Kind of the event that says a law failed; one per law and run."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A finding, and the step from which its verdict has been the same."""

    finding: Finding
    since_step: int


Owners = dict[tuple[int, str, str], int]
"""Numbers of the series of residuals, by attempt, law and scope."""


def owners_of(connection: sa.Connection, run_id: int) -> Owners:
    """Read the series of residuals that a run has."""
    query = sa.select(law_series).where(law_series.c.run_id == run_id)
    return {(row.attempt, row.law, row.scope): row.law_series_id for row in connection.execute(query)}


def write(inputs: Inputs, owners: Owners, residuals: list[Residual]) -> Owners:
    """Write residuals where there are none.

    Args:
        inputs: The run.
        owners: The series of residuals that it has.
        residuals: The residuals, in order of step.

    Returns:
        The series of residuals that it has now.
    """
    if not residuals:
        return owners
    wanted = {(item.finding.attempt, item.finding.law.name, item.finding.scope) for item in residuals}
    made = {
        key: number for number, key in enumerate(sorted(wanted - owners.keys()), max(owners.values(), default=0) + 1)
    }
    if made:
        inputs.connection.execute(
            sa.insert(law_series),
            [
                {"run_id": inputs.run_id, "law_series_id": number, "attempt": key[0], "law": key[1], "scope": key[2]}
                for key, number in made.items()
            ],
        )
        owners = {**owners, **made}
    inputs.connection.execute(_INSERT, [_row(inputs.run_id, owners, item) for item in residuals])
    _note_failures(inputs.connection, inputs, residuals)
    return owners


def delete(inputs: Inputs, owners: Owners, laws: Collection[str], first: int, until: int | None) -> None:
    """Delete the residuals of some laws and steps. What later attempts superseded stays as it was.

    Args:
        inputs: The run.
        owners: The series of residuals that it has.
        laws: Names of the laws.
        first: First step.
        until: The step after the last one; None for no end.
    """
    for attempt, kept in inputs.kept.items():
        last = kept if until is None else min(kept, until - 1)
        mine = [number for key, number in owners.items() if key[0] == attempt and key[1] in laws]
        if mine and last >= first:
            inputs.connection.execute(
                sa.delete(law_point).where(
                    law_point.c.run_id == inputs.run_id,
                    law_point.c.law_series_id.in_(mine),
                    law_point.c.step.between(first, last),
                )
            )


def _row(run_id: int, owners: Owners, item: Residual) -> dict[str, Any]:
    finding, point, judgement = item.finding, item.finding.point, item.finding.judgement
    return {
        "run_id": run_id,
        "law_series_id": owners[finding.attempt, finding.law.name, finding.scope],
        "step": point.step,
        "measured": finite(point.measured),
        "measured_stderr": _error_bar(point.measured_stderr),
        "predicted": finite(point.predicted),
        "predicted_stderr": _error_bar(point.predicted_stderr),
        "lower": finite(judgement.lower),
        "upper": finite(judgement.upper),
        "ratio": finite(judgement.ratio),
        "status": STATUS[point.status],
        "verdict": VERDICT[judgement.verdict],
        "version": finding.law.version,
        "since_step": item.since_step,
        "reason": clean(judgement.reason),
    }


def _error_bar(number: float | None) -> float | None:
    """Return an error bar as it is stored: one that could not be computed is infinite, never absent."""
    return None if number is None else math.inf if math.isnan(number) else float(number)


def _note_failures(connection: sa.Connection, inputs: Inputs, residuals: list[Residual]) -> None:
    failed: dict[str, Finding] = {}
    for item in residuals:
        if item.finding.failure:
            failed.setdefault(item.finding.law.name, item.finding)
    if not failed:
        return
    mine = event.c.run_id == inputs.run_id
    told = {
        row.data.get("law") for row in connection.execute(sa.select(event.c.data).where(mine, event.c.kind == FAILED))
    }
    last = connection.execute(sa.select(sa.func.max(event.c.event_id)).where(mine)).scalar() or 0
    now = time.time()
    fresh = [finding for name, finding in failed.items() if name not in told]
    for position, finding in enumerate(fresh, start=1):
        logger.error("law %s failed: %s", finding.law.name, finding.failure)
        connection.execute(
            sa.insert(event).values(
                run_id=inputs.run_id,
                event_id=last + position,
                attempt=finding.attempt,
                step=finding.point.step,
                time=now,
                received=now,
                kind=FAILED,
                severity=SEVERITY["error"],
                message=clean(f"The law {finding.law.name} failed: {finding.failure}"),
                data={"law": finding.law.name, "scope": finding.scope, "version": finding.law.version},
            )
        )
