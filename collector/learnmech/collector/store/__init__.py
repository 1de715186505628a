"""The store: measurements and verdicts in SQLite or PostgreSQL, the same tables, the same views, exactly once.

>>> import tempfile
>>> from learnmech.collector.store import Store
>>> with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/learnmech.db") as store:
...     store.runs()
[]
"""

from learnmech.collector.store.curves import Axis, Columns
from learnmech.collector.store.errors import (
    BadAddress,
    CannotOpen,
    DriverMissing,
    InvalidBatch,
    NeedsUpgrade,
    NotOurs,
    StoreError,
    TooNew,
    Unavailable,
    UnknownRun,
)
from learnmech.collector.store.facade import Store, upgrade
from learnmech.collector.store.rows import Asked, Change, EventRow, LawRow, RunRow, SeriesRow
from learnmech.collector.store.schema import REVISION
from learnmech.collector.store.views import STALLED_AFTER, VIEWS, View

__all__ = [
    "Store",
    "upgrade",
    "RunRow",
    "SeriesRow",
    "EventRow",
    "LawRow",
    "Change",
    "Asked",
    "Axis",
    "Columns",
    "REVISION",
    "STALLED_AFTER",
    "VIEWS",
    "View",
    "StoreError",
    "BadAddress",
    "CannotOpen",
    "DriverMissing",
    "InvalidBatch",
    "NeedsUpgrade",
    "NotOurs",
    "TooNew",
    "Unavailable",
    "UnknownRun",
]
