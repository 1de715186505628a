"""What the routes share, attached to the application."""

from dataclasses import dataclass
from typing import cast

from anyio import CapacityLimiter
from fastapi import FastAPI

from learnmech.collector.service.changes import Changes
from learnmech.collector.service.metrics import Metrics
from learnmech.collector.service.readiness import Readiness
from learnmech.collector.service.settings import Settings
from learnmech.collector.service.worker import JudgeWorker
from learnmech.collector.store import Store


@dataclass(frozen=True)
class State:
    """The parts of one service.

    Attributes:
        settings: What it was told.
        store: Where measurements go.
        changes: The feed of changes.
        judge: The background judge.
        metrics: What was counted.
        readiness: Whether the store can do its work.
        writers: Threads that store batches, apart from those that answer queries: a slow query delays no batch.
        probes: Threads that ask whether the database answers.
    """

    settings: Settings
    store: Store
    changes: Changes
    judge: JudgeWorker
    metrics: Metrics
    readiness: Readiness
    writers: CapacityLimiter
    probes: CapacityLimiter


def attach(app: FastAPI, state: State) -> None:
    """Attach `state` to `app`."""
    app.state.learnmech = state


def state_of(app: FastAPI) -> State:
    """Return what was attached to `app`."""
    return cast("State", app.state.learnmech)
