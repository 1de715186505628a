"""Parts of a model in Grafana: the lines that matter first, and further lines in the scope that is shown."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from learnmech.collector.store import Store
from learnmech.dashboards import panels
from learnmech.dashboards.grafana import parts, queries, widgets
from learnmech.dashboards.grafana.dashboards import everything
from learnmech.dashboards.panels import Role, Section

DASHBOARDS = everything()
Asked = dict[str, dict[int, float | None]]


def _row(name: str, title: str) -> dict[str, Any]:
    return next(panel for panel in DASHBOARDS[name]["panels"] if panel["type"] == "row" and panel["title"] == title)


@pytest.mark.parametrize(
    ("name", "section", "above"),
    [
        ("gradient-noise-scale.json", Section.NOISE, {"Noise scale against batch size"}),
        ("rotational-equilibrium.json", Section.WEIGHTS, {"Weight norm"}),
        ("rotational-equilibrium.json", Section.SYMMETRIES, set()),
        ("overview.json", Section.COST, set()),
    ],
)
def test_sections_are_folded_below_what_they_explain(name: str, section: Section, above: set[str]) -> None:
    row = _row(name, panels.TITLES[section])
    assert row["collapsed"]
    titles = {panel["title"].removesuffix(": ${run:text}") for panel in row["panels"]}
    assert titles == {panel.title for panel in panels.of(section)} - above
    shown = {panel["title"] for panel in DASHBOARDS[name]["panels"]}
    assert above <= shown, "drawn once"


def test_parts_are_drawn_once_for_each_run() -> None:
    for section in Section:
        for panel in panels.of(section):
            if not panel.rows:
                continue
            drawn = widgets.by_part(panel)
            assert (drawn["repeat"], drawn["repeatDirection"]) == ("run", "h")
            assert drawn["fieldConfig"]["overrides"] == []
            assert f"{'Lowest' if panel.lowest else 'Highest'} {parts.FIRST} {panel.rows}" in drawn["description"]
            assert "$" not in re.sub(r"\$\{(run|points):sqlstring\}", "", drawn["targets"][0]["rawSql"])


@pytest.fixture(scope="module")
def ask(postgres_url: str, synthetic) -> Iterator[Callable[..., Asked]]:
    """Asks a PostgreSQL with two runs of many parts: rows (step, series, value) by series."""
    s = synthetic
    url = postgres_url.replace("/panels?", "/parts?")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE parts")
    store = Store.open(url)
    ids = {}
    for name, blocks in (("deep", 60), ("flat", 5)):
        run = s.info(name, s.SGD, seed=f"grafana-{name}")
        for batch in s.noisy(run, blocks=blocks, steps=600):
            store.ingest(batch, received=batch.sent)
        ids[name] = run.id

    def asked(sql: str, *names: str, points: int = 1000) -> Asked:
        runs = ",".join(f"'{ids[name]}'" for name in names)
        written = sql.replace("${run:sqlstring}", runs).replace("${points:sqlstring}", f"'{points}'")
        found: Asked = defaultdict(dict)
        with psycopg.connect(url, autocommit=True) as connection:
            for step, series, value in connection.execute(written.encode()).fetchall():
                assert step not in found[series], "groupingToMatrix wants each cell once"
                found[series][step] = value
        return dict(found)

    yield asked
    store.close()


@pytest.mark.postgres
def test_lowest_blocks_are_drawn_and_nothing_that_is_no_block(ask) -> None:
    sql = parts.curves(panels.get("signal_to_noise_map"), positive=True)
    drawn = ask(sql, "deep")
    assert set(drawn) == {f"blocks.{block}" for block in range(60 - parts.FIRST, 60)}
    for values in drawn.values():
        assert [step for step, value in values.items() if value is None] == list(range(0, 200, 20)), "undetermined"
    assert drawn["blocks.59"][400] == pytest.approx(0.1)


@pytest.mark.postgres
def test_highest_blocks_are_drawn_without_their_tensors(ask) -> None:
    drawn = ask(parts.curves(panels.get("relative_update")), "deep")
    assert set(drawn) == {f"blocks.{block}" for block in range(60 - parts.FIRST, 60)}


@pytest.mark.postgres
def test_parts_of_two_runs_are_told_apart(ask) -> None:
    drawn = ask(parts.curves(panels.get("probe_cost")), "deep", "flat")
    assert set(drawn) == {f"{slot}: {probe}" for slot in (1, 2) for probe in ("symmetries", "noise")}
    assert set(ask(parts.curves(panels.get("symmetry_residual")), "flat")) == {"symmetry:scale", "symmetry:shift"}


@pytest.mark.postgres
def test_points_bound_what_is_sent_of_each_part(ask) -> None:
    drawn = ask(parts.curves(panels.get("relative_update")), "deep", points=10)
    assert {len(values) for values in drawn.values()} <= {10, 11}
    assert max(max(values) for values in drawn.values()) <= 600


@pytest.mark.postgres
def test_further_line_is_that_of_the_scope_that_is_shown(ask) -> None:
    panel = panels.get("noise_trace")
    drawn = ask(queries.curves(panel, (Role.MEASURED,)), "deep")
    assert set(drawn) == {"1:measured", "1:layer_1"}
    assert set(drawn["1:measured"].values()) == {5.0}
    assert set(drawn["1:layer_1"].values()) == {10.0}, "not that of a type of module"
    drift = ask(queries.curves(panels.get("charge_drift"), (Role.MEASURED,)), "deep")
    assert drift["1:measured"] == drift["1:layer_1"]


def test_hessian_noise_scale_has_both_and_the_batch_size() -> None:
    text = json.dumps(DASHBOARDS["gradient-noise-scale.json"])
    for name in ("noise_scale_hessian", "noise_trace_hessian", "grad_hessian_grad"):
        assert f"'{name}'" in text
