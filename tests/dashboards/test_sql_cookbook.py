"""docs/sql.md: every query runs on SQLite and PostgreSQL, and says what Python makes of the raw measurements."""

import importlib.util
import re
import sqlite3
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from learnmech.collector.judging import Judge
from learnmech.collector.store import Store
from learnmech.wire import Batch

ROOT = Path(__file__).resolve().parents[2]


def _beside(name: str) -> ModuleType:
    """Import a module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cookbook_runs = _beside("cookbook_runs")
cookbook_answers = _beside("cookbook_answers")
Answer = list[tuple[Any, ...]]
ANSWERS: dict[str, Callable[[Any], Answer]] = cookbook_answers.ANSWERS


def _ingest(store: Store, world: list[Any]) -> None:
    judge = Judge(store)
    for run in world:
        for number, (start, frames) in enumerate(run.attempts):
            batch = Batch(run=run.info, attempt=number, start_step=start, writer=uuid.uuid4().hex,
                          sent=frames[-1].time, frames=frames)  # fmt: skip
            ack = store.ingest(batch, received=batch.sent)
            assert not ack.rejected
        judge.judge(run.info.id)


class World:
    """What was sent, and how each database is asked."""

    def __init__(
        self, runs: list[Any], stores: dict[str, Store], ask: dict[str, Callable[[str], list[tuple[Any, ...]]]]
    ) -> None:
        self.runs = sorted(runs, key=lambda run: run.name)
        self.stores, self.ask = stores, ask


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[World]:
    runs = cookbook_runs.runs()
    path = tmp_path_factory.mktemp("cookbook") / "cookbook.db"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE cookbook")
    url = postgres_url.replace("/panels?", "/cookbook?")
    stores = {"sqlite": Store.open(f"sqlite:///{path}"), "postgresql": Store.open(url)}
    for store in stores.values():
        _ingest(store, runs)
    light = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    heavy = psycopg.connect(url, autocommit=True)
    yield World(
        runs,
        stores,
        {
            "sqlite": lambda sql: light.execute(sql).fetchall(),
            "postgresql": lambda sql: heavy.execute(sql.encode()).fetchall(),
        },
    )
    light.close()
    heavy.close()
    for store in stores.values():
        store.close()


def _questions() -> dict[str, str]:
    """Every heading of docs/sql.md that has a query below it, with the query."""
    text = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^### (.+?)\n\n```sql\n(.+?)```", text, re.MULTILINE | re.DOTALL))


QUESTIONS = _questions()


def test_every_query_has_a_question_and_an_answer() -> None:
    text = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    assert text.count("```sql") == len(QUESTIONS)
    assert list(QUESTIONS) == list(ANSWERS)


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_answer_is_that_of_the_raw_measurements(world: World, question: str, database: str) -> None:
    expected = ANSWERS[question](world)
    assert expected, "an empty answer would say nothing of the query"
    answer = [tuple(map(_number, row)) for row in world.ask[database](QUESTIONS[question])]
    assert len(answer) == len(expected)
    for row, right in zip(answer, expected, strict=True):
        assert row == tuple(_close(value) for value in right)


def _number(value: Any) -> Any:
    """PostgreSQL's averages of integers are decimals."""
    return value if value is None or isinstance(value, str | int | float) else float(value)


def _close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def test_answers_tell_runs_apart(world: World) -> None:
    """The store has what the questions ask about: a world in which all runs are alike would let any query pass."""
    answers = cookbook_answers
    assert [name for name, _ in answers.below_critical(world)] == ["baseline"]
    assert Counter(row[0] for row in answers.thrown_away(world)) == {"baseline": 1}
    assert {row[0] for row in answers.equilibrium(world)} == {"baseline"}, "the other's rate was halved: it left again"
    ((*_, before, after),) = answers.temperature_at_resume(world)
    assert before == pytest.approx(2 * after, rel=0.1)
    assert 0 < len(answers.turn_unlike(world)) < 6
