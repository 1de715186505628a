"""Telling watchers that something changed: one look at the store for all of them.

A change is seen at once when this process made it (`wake`), within `poll` seconds when another process did (a trainer
that writes to the same database, a second collector), and within `refresh` seconds when time alone did (a run stalls).
Nothing is asked of the database while nobody watches.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator

import msgspec
from anyio import to_thread

from learnmech.collector.store import Store

logger = logging.getLogger("learnmech.collector.service")

# Batches of a hundred writers arrive in bursts; ten looks a second are enough for eyes and cheap for the database.
_LEAST_PAUSE = 0.1
# With very many runs a look takes long; then four fifths of the time go to others.
_REST = 4.0


class RunChange(msgspec.Struct, frozen=True):
    """What a watcher is told of one run; the rest it fetches.

    Attributes:
        id: The run.
        revision: Grows with every committed change of the run.
        status: running, finished, failed or stalled.
        last_step: The newest step, None before the first.
    """

    id: str
    revision: int
    status: str
    last_step: int | None


class Change(msgspec.Struct, frozen=True):
    """One event: the runs that changed since the watcher's last one.

    Attributes:
        revision: Of the whole store; what the watcher resumes from.
        runs: The runs that changed.
    """

    revision: int
    runs: list[RunChange]


class _Seen(msgspec.Struct, frozen=True):
    """A run as it was last told.

    Attributes:
        change: What was told.
        serial: Number of the look that found it: what watchers that are connected compare with.
        revision: Of the store at that look: what a watcher that comes back compares with.
        timed: True when nothing was written and time alone changed the status.
    """

    change: RunChange
    serial: int
    revision: int
    timed: bool


class Changes:
    """The feed of changes of one store, for the event loop that serves the watchers."""

    def __init__(self, store: Store, *, poll: float, refresh: float) -> None:
        """Watch `store`; nothing is asked of it yet."""
        self._store = store
        self._poll = poll
        self._refresh = refresh
        self._revision = -1
        self._runs: dict[str, _Seen] = {}
        self._serial = 0
        self._watchers = 0
        self._closing = False
        self._looked = self._took = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def watchers(self) -> int:
        """How many follow now."""
        return self._watchers

    def start(self) -> None:
        """Begin on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._watch(), name="learnmech-changes")

    def wake(self) -> None:
        """Say that this process changed the store. From any thread, at any time."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._wake.set)

    def close(self) -> None:
        """End every `follow` now, so that a server can shut down with streams open. From the event loop's thread."""
        self._closing = True
        self._announce()

    async def stop(self) -> None:
        """Close, and end the watching task."""
        self.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Read the runs from the store and tell every watcher what is new."""
        async with self._looking:
            began = time.monotonic()
            revision, runs = await to_thread.run_sync(self._read)
            self._looked = time.monotonic()
            self._took = self._looked - began
            self._revision = revision
            self._serial += 1
            before, self._runs = self._runs, {}
            for run in runs:
                seen = before.get(run.id)
                if seen is None or seen.change != run:
                    timed = seen is not None and seen.change.revision == run.revision
                    seen = _Seen(run, self._serial, revision, timed)
                self._runs[run.id] = seen
            if any(seen.serial == self._serial for seen in self._runs.values()):
                self._announce()

    async def follow(self, *, run: str | None, after: int | None, keep_alive: float) -> AsyncGenerator[Change | None]:
        """Yield changes as they come (call `look` first), and None after `keep_alive` silent seconds.

        Args:
            run: Only this run; None for all.
            after: Id of the last event that the watcher has seen, to be told only what came since; None, and any number
                that this store has not reached, to be told of every run first.
            keep_alive: Seconds of silence before None.
        """
        with self._watching():
            resumed = after if after is not None and after <= self._revision else None
            cursor, first = 0, True
            while not self._closing:
                news, serial = self._news, self._serial
                fresh = [seen for seen in self._runs.values() if seen.serial > cursor]
                if first and resumed is not None:
                    # A stall changes no revision, so it may have come after the event with this very id.
                    fresh = [
                        seen for seen in fresh if seen.revision > resumed or (seen.timed and seen.revision == resumed)
                    ]
                told = [seen.change for seen in fresh if run is None or seen.change.id == run]
                # The first event of a fresh start comes even when there are no runs: it carries the revision.
                due = bool(told) or (first and resumed is None)
                first, cursor = False, serial
                if due:
                    yield Change(self._revision, told)
                    continue
                try:
                    async with asyncio.timeout(keep_alive):
                        await news.wait()
                except TimeoutError:
                    yield None

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        self._watchers += 1
        self._wake.set()
        try:
            yield
        finally:
            self._watchers -= 1

    async def _watch(self) -> None:
        failing = False
        while True:
            try:
                if self._watchers and await self._is_due():
                    await self.look()
                failing = False
            except Exception as error:  # noqa: BLE001 (whatever it is, the next look may succeed)
                # The database is away. Watchers keep their connection and hear the changes once it is back.
                if not failing:
                    logger.warning("cannot look for changes, trying on: %s", error)
                failing = True
            await asyncio.sleep(max(_LEAST_PAUSE, _REST * self._took))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll if self._watchers else None):
                    await self._wake.wait()
            self._wake.clear()

    async def _is_due(self) -> bool:
        if time.monotonic() - self._looked >= self._refresh:
            return True
        return await to_thread.run_sync(self._store.revision) != self._revision

    def _read(self) -> tuple[int, list[RunChange]]:
        # The revision first: a change that lands between the two is told now and once more later, never missed.
        revision = self._store.revision()
        return revision, [RunChange(run.id, run.revision, run.status, run.last_step) for run in self._store.runs()]

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
