"""The identity of a run, and its outbox."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from learnmech.probes.delivery import Outbox
from learnmech.probes.writer import Mailbox, Nowhere
from learnmech.wire import Lineage, RunInfo

logger = logging.getLogger("learnmech.probes")

DEFAULT_SINK = "sqlite:///learnmech.db"


def new_run(
    name: str | None,
    project: str | None,
    tags: Mapping[str, str] | None,
    context: Mapping[str, Any],
    *,
    run_id: str | None = None,
    created: float | None = None,
) -> RunInfo:
    """Return who is being measured: a new run, or an earlier one that goes on.

    Args:
        name: What people call it; None makes a name from the model and the time.
        project: Runs of one purpose.
        tags: Free labels.
        context: What the run says of itself.
        run_id: Identity of an earlier run that goes on.
        created: When that one began.
    """
    begin = time.time() if created is None else created
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(begin))
    return RunInfo(
        id=run_id or uuid.uuid4().hex,
        name=name or f"{context.get('model', 'run')}-{stamp}",
        created=begin,
        project=project or "default",
        tags={str(key): str(value) for key, value in (tags or {}).items()},
        context={str(key): _plain(value) for key, value in context.items()},
    )


def _plain(value: Any) -> Any:
    """Return a JSON value: what trainers report of themselves may be of any type."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value) in (str, int, float, bool, type(None)):
        return value
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def new_lineage(parent: Any) -> Lineage:
    """Return the identity of an attempt that begins now.

    Args:
        parent: What the checkpoint that it goes on from says of the identity of its attempt. Anything that is none, as
            from an older learnmech, is left out: a store that refuses it would refuse every measurement.
    """
    known = isinstance(parent, str) and re.fullmatch("[0-9a-f]{32}", parent)
    return Lineage(id=uuid.uuid4().hex, begun=time.time(), parent=parent if known else None)


def open_mailbox(
    run: RunInfo,
    sink: str,
    *,
    attempt: int,
    start_step: int,
    rank: int = 0,
    lineage: Lineage | None = None,
    answer: Callable[[], None] | None = None,
) -> Mailbox:
    """Open an outbox; whatever is wrong with it costs the measurements, not the training."""
    try:
        outbox = Outbox(
            run, sink=sink, attempt=attempt, start_step=start_step, rank=rank, lineage=lineage, answer=answer
        )
        outbox.start()
    except Exception as error:  # noqa: BLE001 (training goes on without measurements)
        logger.warning("learnmech keeps no measurements of this run: %r", error)
        return Nowhere()
    return outbox
