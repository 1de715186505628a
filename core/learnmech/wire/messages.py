"""The messages between probes, spool, collector and store: one definition, versioned.

A `Batch` is what travels; it is self-contained (it names its run, attempt and writer), so that it can be delivered
twice,
late, or years later from a spool folder, and still land exactly once.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from learnmech.observables import MAX_NAME_LENGTH, Status

VERSION = 1
"""Version of the message format. A change that an older reader would misread raises it."""

MAX_STEP = 2**63 - 1
"""Largest step: a signed 64-bit integer, as SQL's bigint holds it."""

Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
Identifier = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Step = Annotated[int, Meta(ge=0, le=MAX_STEP)]
Text = Annotated[str, Meta(max_length=20_000)]


class Measurement(Struct, frozen=True, omit_defaults=True, kw_only=False):
    """One number with its quality.

    Attributes:
        observable: A declared name (`learnmech.observables`).
        value: The number; NaN and infinities are data; None when there is no number, and `status` says why.
        scope: `''` for the whole model, else a parameter's name, a module's name or a rank.
        stderr: Standard error of a statistical estimate, or the residual bound of a solver; in the value's unit.
        status: How the measurement ended.
        reason: A sentence when the status is not `ok`.
        method: How it was measured, for instance `double_backward`.
        cost: Seconds of probe time that the measurement took.
    """

    observable: Name
    value: float | None
    scope: Name = ""
    stderr: float | None = None
    status: Status = Status.OK
    reason: Text = ""
    method: Name = ""
    cost: float | None = None


class Event(Struct, frozen=True, omit_defaults=True):
    """Something that happened in a run: a start, an end, a disabled probe, a gap.

    Attributes:
        kind: `run_started`, `run_finished`, `run_failed`, `probe_failed`, `probe_disabled`, `self_test`, `gap`,
            `law_failed`, `measure_requested` (written by the store), or a user's own word.
        step: The step at which it happened.
        time: Seconds since the epoch, on the clock of whoever saw it.
        message: One sentence for people.
        severity: How much it matters.
        data: Details for programs; JSON values only.
    """

    kind: Name
    step: Step
    time: float
    message: Text = ""
    severity: Literal["info", "warning", "error"] = "info"
    data: dict[str, Any] = {}


class Frame(Struct, frozen=True, omit_defaults=True):
    """Everything that one writer recorded at one moment: the unit that is stored whole or not at all.

    Attributes:
        sequence: 0, 1, 2, ... without gaps, per writer.
        step: Optimizer updates already done at the weights that were measured.
        time: Seconds since the epoch on the trainer's clock.
        samples: Examples seen so far, where known.
        tokens: Tokens seen so far, where known.
        measurements: What was measured.
        events: What happened.
    """

    sequence: Annotated[int, Meta(ge=0, le=MAX_STEP)]
    step: Step
    time: float
    samples: Step | None = None
    tokens: Step | None = None
    measurements: list[Measurement] = []
    events: list[Event] = []


class RunInfo(Struct, frozen=True, omit_defaults=True):
    """Who is being measured.

    Attributes:
        id: 32 hexadecimal digits, made once and kept in the checkpoint: a resumed run is the same run.
        name: What people call it.
        project: Runs of one purpose.
        created: Seconds since the epoch when the run was first started.
        tags: Free labels.
        context: What does not change during an attempt: optimizer class, parameter count, precision, versions.
    """

    id: Identifier
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)]
    created: float
    project: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)] = "default"
    tags: dict[str, str] = {}
    context: dict[str, Any] = {}


class Lineage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Which attempt of a run this is, and which one it goes on from.

    Attempts are counted from what a checkpoint says, so all resumes from one checkpoint have the same number.

    Attributes:
        id: 32 hexadecimal digits, made when the attempt began; the same in all processes of the attempt.
        begun: Seconds since the epoch when it began, on the trainer's clock.
        parent: `id` of the attempt that wrote the checkpoint; None for a new run, or when the checkpoint does not say.
    """

    id: Identifier
    begun: float
    parent: Identifier | None = None


class Batch(Struct, frozen=True, kw_only=True):
    """Consecutive frames of one writer.

    Attributes:
        version: Version of this format.
        run: The run.
        attempt: 0 for the first start, for a resume one more than the attempt that wrote the checkpoint.
        start_step: Step at which the attempt began; what it goes on from is superseded from there on.
        writer: 32 hexadecimal digits; every process that writes has its own.
        rank: Distributed rank of the writer.
        sent: Seconds since the epoch on the writer's clock when the batch was sent.
        frames: The frames, in order of sequence.
        heartbeat: True for an empty batch that only says the run is alive.
        lineage: Tells attempts of the same number apart. Without it, from an older client, they are one attempt, and
            each attempt goes on from the one of the next lower number.
    """

    version: int = VERSION
    run: RunInfo
    attempt: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    start_step: Step = 0
    writer: Identifier
    rank: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    sent: float
    frames: list[Frame] = []
    heartbeat: bool = False
    lineage: Lineage | UnsetType = UNSET


class Rejection(Struct, frozen=True):
    """One measurement that the store did not take.

    Attributes:
        sequence: The frame's sequence.
        index: Position in the frame's measurements.
        observable: The name that came.
        reason: What was wrong and what to send instead.
    """

    sequence: int
    index: int
    observable: str
    reason: str


class Ack(Struct, frozen=True, omit_defaults=True):
    """The store's answer, sent after the commit.

    Attributes:
        accepted: Measurements stored by this delivery.
        duplicates: Measurements that were there already.
        rejected: Measurements that were not taken, each with a reason; everything else of the batch is stored.
        last_sequence: Sequence of the batch's last frame, -1 for a heartbeat.
        server_time: Seconds since the epoch on the collector's clock: what clock skew is computed from.
        asked: Number of the last request to measure now, made of the attempt that the batch is of; it grows with every
            request. 0 says nothing: none was made, or the collector is older than requests.
    """

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    last_sequence: int
    server_time: float
    asked: int = 0
