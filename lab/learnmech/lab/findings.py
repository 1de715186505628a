"""What the stored runs say: one row per law, the criteria of the edge, and whatever went wrong on the way."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from learnmech import laws
from learnmech.lab.readback import Json
from learnmech.lab.settings import Descent
from learnmech.laws import Verdict

EDGE: Final = "edge_of_stability"

_WHOLE: Final = ("scale_invariant", "")
"""Scopes that speak for a whole run, the first that is there before the others."""

_FAILURES: Final = frozenset({"gap", "probe_failed", "probe_disabled", "run_failed"})
"""Kinds of events after which something that should have been measured was not, or was lost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How one law stands in one run.

    Attributes:
        run: Name of the run.
        law: Name of the law.
        title: Its heading.
        scope: What it was judged on.
        step: Step of the newest judged measurement.
        measured: That measurement.
        predicted: What the law says.
        ratio: One over the other.
        verdict: The verdict.
        reason: Why, in a sentence.
        history: Changes of verdict as (step, verdict), oldest first.
    """

    run: str
    law: str
    title: str
    scope: str
    step: int
    measured: float | None
    predicted: float | None
    ratio: float | None
    verdict: str
    reason: str
    history: tuple[tuple[int, str], ...]


def findings(run: Json) -> list[Finding]:
    """Return how every law stands in every scope of a run, the laws in the order of the catalogue."""
    order = {law.name: position for position, law in enumerate(laws.catalogue())}
    rows = [
        Finding(
            run=run["name"],
            law=row["law"],
            title=laws.get(row["law"]).title,
            scope=row["scope"],
            step=row["step"],
            measured=row["measured"],
            predicted=row["predicted"],
            ratio=row["ratio"],
            verdict=row["verdict"],
            reason=row["reason"],
            history=tuple((step, verdict) for step, verdict in row["changes"]),
        )
        for row in run["laws"]
    ]
    return sorted(rows, key=lambda row: (order[row.law], row.scope))


def headlines(rows: Sequence[Finding]) -> list[Finding]:
    """Choose one row per run and law: the one for all weights that the law is about, else for the whole model."""
    chosen: dict[tuple[str, str], Finding] = {}
    for row in rows:
        if row.scope in _WHOLE:
            other = chosen.get((row.run, row.law))
            if other is None or _WHOLE.index(row.scope) < _WHOLE.index(other.scope):
                chosen[row.run, row.law] = row
    return list(chosen.values())


def one_by_one(rows: Sequence[Finding], headline: Finding) -> str:
    """Count the verdicts of single tensors beside a headline: `12 hold, 3 not applicable`; '' when there are none."""
    counts = Counter(
        row.verdict for row in rows if (row.run, row.law) == (headline.run, headline.law) and row.scope not in _WHOLE
    )
    return ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.most_common())


def edge(residuals: Json, settings: Descent) -> dict[str, Any]:
    """Measure what the demo's gradient descent must show, from the stored residuals of the edge of stability.

    Returns:
        `median_ratio`, the median of sharpness times eta/2 over the last third of the run; `predicted_before` and
        `predicted_after` the halving of the learning rate; `rode_before` and `rode_after`, the first step at which the
        verdict was `holds` on either side, None for never; `verdict`, the last one.
    """
    columns = (residuals[name] for name in ("step", "ratio", "predicted", "verdict"))
    rows = [row for row in zip(*columns, strict=True) if row[1] is not None]
    before = [row for row in rows if row[0] < settings.halved_at]
    after = [row for row in rows if row[0] >= settings.halved_at]
    tail = [ratio for step, ratio, _, _ in rows if step >= 2 * settings.steps / 3]
    return {
        "median_ratio": statistics.median(tail) if tail else None,
        "predicted_before": before[-1][2] if before else None,
        "predicted_after": after[-1][2] if after else None,
        "rode_before": next((step for step, _, _, verdict in before if verdict == Verdict.HOLDS), None),
        "rode_after": next((step for step, _, _, verdict in after if verdict == Verdict.HOLDS), None),
        "verdict": rows[-1][3] if rows else None,
    }


def problems(run: Json, events: Sequence[Json], *, steps: int, expected: dict[str, int]) -> list[str]:
    """List what is wrong with a stored run, in sentences.

    Args:
        run: The run as the collector describes it.
        events: Its events.
        steps: Updates that were made.
        expected: Steps between measurements of observables of the whole model, by name.
    """
    name = run["name"]
    found = [f"{name}: {event['kind']}: {event['message']}" for event in events if event["kind"] in _FAILURES]
    if run["status"] != "finished":
        found.append(f"{name}: the store has it as {run['status']}, not finished: its last measurements are not there")
    counts = {series["observable"]: series["count"] for series in run["series"] if series["scope"] == ""}
    for observable, every in expected.items():
        # The first measurement may be missing: a recorder has seen no batch then, a noise estimate no second one.
        least = steps // every - 1
        if counts.get(observable, 0) < least:
            found.append(f"{name}: {counts.get(observable, 0)} of {least} measurements of {observable} are stored")
    return found
