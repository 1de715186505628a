"""The store as a sink: `sqlite:///...` and `postgresql://...` in the training process, judged as it comes in."""

import logging
from typing import TYPE_CHECKING

from learnmech.collector.store.address import parse, shown
from learnmech.collector.store.errors import BadAddress, DriverMissing, InvalidBatch, StoreError
from learnmech.collector.store.facade import Store
from learnmech.sinks import Refused, SinkError, SinkMissing, Unavailable
from learnmech.wire import Ack, Batch

if TYPE_CHECKING:
    from learnmech.collector.judging import Judge

logger = logging.getLogger("learnmech.collector.store")

RETRY_SECONDS = 30.0
"""How long to leave alone a database that a person has to put right (not ours, read-only, too new)."""


def open_sink(url: str) -> "StoreSink":
    """Return the sink of a database URL. The database itself is opened by the first delivery, and again after failures.

    Raises:
        SinkError: The URL is malformed.
        SinkMissing: The PostgreSQL driver is not installed.
    """
    try:
        parse(url)
    except BadAddress as error:
        raise SinkError(str(error)) from error
    except DriverMissing as error:
        raise SinkMissing(str(error)) from error
    return StoreSink(url)


class StoreSink:
    """Stores and judges in this process; see `learnmech.sinks.Sink`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: Store | None = None
        self._judge: Judge | None = None

    def deliver(self, batch: Batch) -> Ack:
        """Store a batch, then judge what it brought.

        Raises:
            Refused: The database will never take this batch.
            Unavailable: It cannot take it now, or somebody has to put it right first; the sentence says what.
        """
        try:
            store = self._opened()
            ack = store.ingest(batch)
        except InvalidBatch as error:
            raise Refused(str(error)) from error
        except StoreError as error:
            raise Unavailable(str(error), retry_after=None if error.temporary else RETRY_SECONDS) from error
        self._judge_quietly(batch.run.id)
        return ack

    def _opened(self) -> Store:
        if self._store is None:
            from learnmech.collector.judging import Judge

            self._store = Store.open(self._url)
            self._judge = Judge(self._store)
        return self._store

    def _judge_quietly(self, run_id: str) -> None:
        if self._judge is None:
            return
        try:
            self._judge.judge(run_id)
        except StoreError as error:
            # What was not judged stays marked in the store; the next delivery takes it up.
            logger.warning("judging run %s in %s waits: %s", run_id, shown(parse(self._url)), error)
        except Exception:  # the batch is stored and must be acknowledged, whatever the judge met
            logger.exception("judging run %s failed", run_id)

    def close(self) -> None:
        """Close the database."""
        store, self._store, self._judge = self._store, None, None
        if store is not None:
            store.close()
