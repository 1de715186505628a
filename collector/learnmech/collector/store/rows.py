"""What the store answers with: plain structures that encode to JSON as they are."""

from typing import Any

from msgspec import Struct


class RunRow(Struct, frozen=True):
    """A run and how it stands.

    Attributes:
        id: 32 hexadecimal digits.
        name: Its name.
        project: Its project.
        status: `running`, `finished`, `failed`, or `stalled`: nothing heard for 60 s and not ended.
        since: Seconds since the epoch when that began.
        created: When the run was first started, on its own clock.
        last_seen: When it was last heard of, on the store's clock.
        last_step: Newest step that counts, None before the first.
        points: Stored measurements, superseded ones included.
        attempts: How many starts were seen.
        tags: Labels, as the newest attempt gave them.
        context: What the newest attempt said of itself.
        revision: Grows with every commit that concerns the run.
    """

    id: str
    name: str
    project: str
    status: str
    since: float
    created: float
    last_seen: float
    last_step: int | None
    points: int
    attempts: int
    tags: dict[str, str]
    context: dict[str, Any]
    revision: int


class SeriesRow(Struct, frozen=True):
    """One observable in one scope of a run, over all attempts, superseded points left out.

    Attributes:
        observable: Its name.
        scope: Its scope.
        count: Points that count.
        first_step: Step of the first of them.
        last_step: Step of the last.
        value: The last value, None if it is no finite number.
        stderr: Its error bar.
        status: Its status.
        reason: Why the status is not `ok`.
    """

    observable: str
    scope: str
    count: int
    first_step: int
    last_step: int
    value: float | None
    stderr: float | None
    status: str
    reason: str


class EventRow(Struct, frozen=True):
    """Something that happened in a run.

    Attributes:
        id: Counts up within the run: what to ask for more after.
        attempt: The attempt it belongs to.
        step: The step.
        time: When, on the clock of whoever saw it.
        received: When the store heard of it.
        kind: What kind of event.
        severity: `info`, `warning` or `error`.
        message: One sentence.
        data: Details.
    """

    id: int
    attempt: int
    step: int
    time: float
    received: float
    kind: str
    severity: str
    message: str
    data: dict[str, Any]


class Asked(Struct, frozen=True):
    """A request to measure now.

    Attributes:
        asked: Its number: requests are counted up within a run.
        waited: Whether it waited for the trainer already, so that nothing was added.
    """

    asked: int
    waited: bool


class Change(Struct, frozen=True, array_like=True):
    """A change of verdict: encoded as the pair (step, verdict)."""

    step: int
    verdict: str


class LawRow(Struct, frozen=True):
    """How one law stands in one scope of a run.

    Attributes:
        law: Its name.
        scope: The scope.
        verdict: The verdict now.
        reason: One sentence with the numbers in it.
        since_step: Step from which the verdict has been the same.
        step: Step of the newest judged measurement.
        measured: That measurement.
        measured_stderr: Its error bar.
        predicted: What the law says.
        lower: The band's lower end.
        upper: The band's upper end.
        ratio: measured/predicted.
        changes: Every change of verdict, oldest first (the newest 1000).
    """

    law: str
    scope: str
    verdict: str
    reason: str
    since_step: int
    step: int
    measured: float | None
    measured_stderr: float | None
    predicted: float | None
    lower: float | None
    upper: float | None
    ratio: float | None
    changes: list[Change]
