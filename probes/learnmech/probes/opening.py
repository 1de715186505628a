"""Opening an attempt of a run: who is measured, as which attempt, and where it is written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learnmech.probes.logs import Logs
from learnmech.probes.probe import Probe
from learnmech.probes.run import new_lineage, new_run, open_mailbox
from learnmech.probes.schedule import OnDemand
from learnmech.probes.writer import Nowhere, Writer


@dataclass(frozen=True, slots=True)
class Destination:
    """What the user says of a run and of where its measurements go.

    Attributes:
        sink: URL of where they go.
        run: Name of the run; None makes one.
        project: Project it belongs to.
        tags: Free labels.
        tokens_per_sample: Tokens in one example, to count tokens.
        logs: Where numbers go besides.
    """

    sink: str
    run: str | None = None
    project: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    tokens_per_sample: int | None = None
    logs: Logs | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An attempt that has begun.

    Attributes:
        identity: Run and attempt, as they go into checkpoints: plain values only.
        writer: Takes its measurements.
    """

    identity: Mapping[str, Any]
    writer: Writer

    @property
    def run_id(self) -> str:
        """Identity of the run."""
        return str(self.identity["run_id"])

    def progress(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint needs for the run to go on as the same run."""
        return {**self.identity, "step": step, "samples": self.writer.seen}


def _answer(probes: Iterable[Probe]) -> Callable[[], None] | None:
    """Return what asks all probes that measure on demand to do so; None if there is none."""
    schedules = [probe.schedule for probe in probes if isinstance(probe.schedule, OnDemand)]
    if not schedules:
        return None

    for schedule in schedules:
        schedule.tell(on=False)  # here, before anything is delivered: what is asked from then on is asked of this run

    def answer() -> None:
        for schedule in schedules:
            schedule.tell()

    return answer


def opened(
    destination: Destination,
    context: Mapping[str, Any],
    earlier: Mapping[str, Any],
    step: int,
    *,
    keep: bool = True,
    probes: Iterable[Probe] = (),
) -> Opened:
    """Begin a run, or the next attempt of an earlier one.

    Args:
        destination: Where it goes, under which name.
        context: What the run says of itself.
        earlier: Progress of the attempt that goes on; empty for a new run.
        step: First step.
        keep: False to keep nothing.
        probes: Those that may be asked for a measurement from outside, at the collector; the run says so if there are
            any with a schedule on demand.
    """
    answer = _answer(probes)
    if answer is not None:
        context = {**context, "on_demand": True}
    attempt = int(earlier.get("attempt", -1)) + 1
    run = new_run(
        destination.run,
        destination.project,
        destination.tags,
        context,
        run_id=earlier.get("run_id"),
        created=earlier.get("created"),
    )
    lineage = new_lineage(earlier.get("attempt_id"))
    if keep:
        mailbox = open_mailbox(run, destination.sink, attempt=attempt, start_step=step, lineage=lineage, answer=answer)
    else:
        mailbox = Nowhere()
    samples = earlier.get("samples", 0)
    writer = Writer(mailbox, destination.tokens_per_sample, samples or 0, destination.logs)
    writer.counts_samples = samples is not None
    writer.tell("run_started", step, f"attempt {attempt} from step {step}", attempt=attempt)
    identity = {"version": 1, "run_id": run.id, "created": run.created, "attempt": attempt, "attempt_id": lineage.id}
    return Opened(identity, writer)
