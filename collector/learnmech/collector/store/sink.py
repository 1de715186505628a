"""The store as a sink: `sqlite:///...` and `postgresql://...` in the training process, judged as it comes in."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from learnmech.collector.store.address import parse, shown
from learnmech.collector.store.errors import BadAddress, DriverMissing, InvalidBatch, StoreError
from learnmech.collector.store.facade import Store
from learnmech.collector.store.files import OpenedFiles
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
        parsed = parse(url)
    except BadAddress as error:
        raise SinkError(str(error)) from error
    except DriverMissing as error:
        raise SinkMissing(str(error)) from error
    if parsed.get_backend_name() == "sqlite" and not str(parsed.database).startswith("file:"):
        # Now, and not at the first delivery: by then the training may be in another folder (Hydra makes one per run).
        parsed = parsed.set(database=str(Path(str(parsed.database)).absolute()))
    return StoreSink(parsed.render_as_string(hide_password=False))


class StoreSink:
    """Stores and judges in this process; see `learnmech.sinks.Sink`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: Store | None = None
        self._files: OpenedFiles | None = None
        self._judge: Judge | None = None

    def deliver(self, batch: Batch) -> Ack:
        """Store a batch, then judge what it brought.

        Raises:
            Refused: The database will never take this batch.
            Unavailable: It cannot take it now, or somebody has to put it right first; the sentence says what.
        """
        try:
            store, files = self._opened()
            ack = store.ingest(batch)
            self._verify(files)
        except InvalidBatch as error:
            raise Refused(str(error)) from error
        except StoreError as error:
            raise Unavailable(str(error), retry_after=None if error.temporary else RETRY_SECONDS) from error
        self._judge_quietly(batch.run.id)
        return ack

    def _opened(self) -> tuple[Store, OpenedFiles]:
        if self._store is None or self._files is None:
            from learnmech.collector.judging import Judge

            self._store = Store.open(self._url)
            self._files = OpenedFiles(self._store.database)
            self._judge = Judge(self._store)
        return self._store, self._files

    def _verify(self, files: OpenedFiles) -> None:
        """Acknowledge nothing that went into a deleted file: open what is there now, and have the batch come again."""
        try:
            files.check()
        except StoreError:
            self.close()
            raise

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
        store, self._store, self._files, self._judge = self._store, None, None, None
        if store is not None:
            store.close()
