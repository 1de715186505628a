"""Every query of every dashboard on a real PostgreSQL, with variables and macros written out as Grafana does."""

import re
import time
from types import ModuleType
from typing import Any

import psycopg
import pytest

from learnmech.collector.store import VIEWS, Store
from learnmech.dashboards.grafana.dashboards import everything

pytestmark = pytest.mark.postgres

DASHBOARDS = everything()


def _drawn(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that ask something, those in folded rows too."""
    return [inner for panel in dashboard["panels"] for inner in panel.get("panels", [panel])]


def _queries() -> list[Any]:
    """Every distinct query, under the first place where it is used."""
    places: dict[str, str] = {}
    for name, dashboard in DASHBOARDS.items():
        for panel in _drawn(dashboard):
            for target in panel["targets"]:
                if "rawSql" in target:
                    places.setdefault(target["rawSql"], f"{name}:{panel['title']}")
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                places.setdefault(variable["query"], f"{name}:${variable['name']}")
    return [pytest.param(sql, id=place) for sql, place in places.items()]


def expand(sql: str, variables: dict[str, list[str]]) -> str:
    """Write out `${name:sqlstring}` as Grafana's SQL data sources do: quoted, quotes doubled, joined by commas."""
    written = re.sub(
        r"\$\{(\w+):sqlstring\}",
        lambda match: ",".join("'" + value.replace("'", "''") + "'" for value in variables[match[1]]),
        sql,
    )
    written = written.replace("$__unixEpochFrom()", "0").replace("$__unixEpochTo()", "4000000000")
    assert "$" not in written, "a variable or macro that this test does not know"
    return written


@pytest.fixture(scope="module")
def connection(filled_postgres: tuple[str, dict[str, str]]):
    with psycopg.connect(filled_postgres[0], autocommit=True) as opened:
        yield opened


SELECTIONS = {
    "none": ([], []),
    "one": (["descent"], ["whole model"]),
    "many": (["descent", "other", "adamw", "hostile"], ["whole model"]),
    "unknown": (["nobody's run"], ['it\'s a "tensor"']),
}


@pytest.mark.parametrize("sql", _queries())
def test_query_runs_for_every_selection(sql: str, connection: psycopg.Connection, filled_postgres) -> None:
    ids = filled_postgres[1]
    for runs, scope in SELECTIONS.values():
        variables = {"run": [ids.get(name, name) for name in runs], "scope": scope, "points": ["1000"]}
        assert connection.execute(expand(sql, variables)).description


def test_queries_run_on_an_empty_store(postgres_url: str) -> None:
    url = postgres_url.replace("/panels?", "/empty?")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE empty")
    Store.open(url).close()
    with psycopg.connect(url, autocommit=True) as opened:
        for parameter in _queries():
            opened.execute(expand(parameter.values[0], {"run": [], "scope": [], "points": ["1000"]}))


def _panel(name: str, title: str) -> dict[str, Any]:
    return next(panel for panel in _drawn(DASHBOARDS[name]) if panel["title"] == title)


def _curves(
    connection: psycopg.Connection, panel: dict[str, Any], runs: list[str], points: str = "1000"
) -> dict[str, dict]:
    sql = expand(panel["targets"][0]["rawSql"], {"run": runs, "scope": ["whole model"], "points": [points]})
    drawn: dict[str, dict[int, float | None]] = {}
    for step, series, value in connection.execute(sql).fetchall():
        assert step not in drawn.setdefault(series, {}), "groupingToMatrix wants each cell once"
        drawn[series][step] = value
    return drawn


def test_law_panel_draws_what_the_view_holds(connection: psycopg.Connection, filled_postgres) -> None:
    run = filled_postgres[1]["descent"]
    drawn = _curves(connection, _panel("edge-of-stability.json", "Edge of stability"), [run])
    stored = connection.execute(
        "SELECT step, measured, measured_stderr, predicted FROM residuals "
        "WHERE run_id = %s AND law = 'edge_of_stability' ORDER BY step",
        [run],
    ).fetchall()
    assert {step: value for step, value, _, _ in stored} == drawn["1:measured"]
    assert {step: value for step, _, _, value in stored} == drawn["1:predicted"]
    assert drawn["1:predicted"][1490] == pytest.approx(10.0)
    assert drawn["1:predicted"][1500] == pytest.approx(20.0), "the halved learning rate doubles the prediction"
    for step, value, error, _ in stored:
        expected = None if value is None or error is None else value + error
        assert drawn["1:upper"][step] == (None if expected is None else pytest.approx(expected))


def test_gaps_stay_gaps_and_unlike_steps_are_joined_by_lines(connection: psycopg.Connection, filled_postgres) -> None:
    ids = filled_postgres[1]
    drawn = _curves(connection, _panel("edge-of-stability.json", "Edge of stability"), [ids["descent"], ids["other"]])
    missing = [step for step, value in drawn["1:measured"].items() if value is None and step < 2000]
    assert missing
    assert all(1190 <= step <= 1290 for step in missing), "only where the measurement was NaN"
    inside = [value for step, value in drawn["2:measured"].items() if step < 1200]
    assert len(inside) > 150
    assert None not in inside, "every tenth step of the other run lies on its line"
    steps = sorted(drawn["2:measured"])
    before, between, after = 14, 20, 28
    assert {before, between, after} <= set(steps)
    low, middle, high = (drawn["2:measured"][step] for step in (before, between, after))
    assert middle == pytest.approx(low + (high - low) * (between - before) / (after - before))


def test_points_bound_what_is_sent(connection: psycopg.Connection, filled_postgres) -> None:
    run = filled_postgres[1]["descent"]
    drawn = _curves(connection, _panel("edge-of-stability.json", "Edge of stability"), [run], points="50")
    assert 40 <= len(drawn["1:measured"]) <= 52


def test_reference_is_held_to_the_end(connection: psycopg.Connection, filled_postgres) -> None:
    run = filled_postgres[1]["adamw"]
    drawn = _curves(connection, _panel("gradient-noise-scale.json", "Noise scale against batch size"), [run])
    assert set(drawn["1:predicted"].values()) == {32.0}
    assert max(drawn["1:predicted"]) == max(drawn["1:measured"])
    assert min(value for value in drawn["1:measured"].values() if value is not None) > 0


def test_logarithmic_panel_gets_nothing_that_it_cannot_show(connection: psycopg.Connection, filled_postgres) -> None:
    run = filled_postgres[1]["adamw"]
    for series in _curves(
        connection, _panel("gradient-noise-scale.json", "Gradient noise falls as 1/B"), [run]
    ).values():
        assert all(value is None or value > 0 for value in series.values())


def test_slots_name_the_runs_in_the_panels_order(connection: psycopg.Connection, filled_postgres) -> None:
    ids = filled_postgres[1]
    chosen = [ids[name] for name in ("hostile", "adamw", "descent")]
    variables = {v["name"]: v for v in DASHBOARDS["edge-of-stability.json"]["templating"]["list"]}
    names = [
        connection.execute(expand(variables[f"slot_{slot}"]["query"], {"run": chosen})).fetchone()
        for slot in range(1, 5)
    ]
    assert [row and row[0] for row in names[:2]] == ["digits-gd", "char-adamw"]
    assert "<img" in names[2][0]
    assert names[3] is None
    drawn = _curves(connection, _panel("edge-of-stability.json", "Loss"), chosen)
    assert {series[0] for series in drawn} == {"1", "2", "3"}


def test_overview_counts_verdicts_without_reading_every_residual(
    connection: psycopg.Connection, filled_postgres
) -> None:
    ids = list(filled_postgres[1].values())
    panel = _panel("overview.json", "Verdicts of the chosen runs")
    sql = expand(panel["targets"][0]["rawSql"], {"run": ids})
    rows = connection.execute(sql).fetchall()
    assert {row[1] for row in rows} == {"edge_of_stability", "gradient_noise_scale", "rotational_equilibrium"}
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {sql}").fetchall())
    assert "Seq Scan on law_point" not in plan


def test_dashboards_read_public_views_only() -> None:
    known = set(VIEWS) | {
        "chosen",
        "raw",
        "reference",
        "further",
        "width",
        "cells",
        "points",
        "grid",
        "around",
        "filled",
        "measured",
        "parts",
        "newest",
        "changes",
    }
    for parameter in _queries():
        read = re.findall(r"(?:FROM|JOIN)\s+([a-z_]+)\b", parameter.values[0])
        assert set(read) - {"unnest", "verdict"} <= known  # IS DISTINCT FROM verdict is no table


def test_a_long_run_is_answered_in_time(postgres_url: str, connection: psycopg.Connection, filled_postgres) -> None:
    """100 000 judged steps: the panel must not take longer than a refresh, and must not scan the table."""
    run = filled_postgres[1]["other"]
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        series, run_number = opened.execute(
            "SELECT s.law_series_id, s.run_id FROM law_series s JOIN run r USING (run_id) WHERE r.uuid = %s LIMIT 1",
            [run],
        ).fetchone()
        columns = [
            row[0]
            for row in opened.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = 'law_point'"
            )
        ]
        copied = ", ".join(
            {"step": "100000 + n", "run_id": "p.run_id", "law_series_id": "p.law_series_id"}.get(name, f"p.{name}")
            for name in columns
        )
        opened.execute("BEGIN")
        opened.execute(
            f"INSERT INTO law_point ({', '.join(columns)}) SELECT {copied} FROM generate_series(1, 100000) AS n, "
            "(SELECT * FROM law_point WHERE run_id = %s AND law_series_id = %s ORDER BY step LIMIT 1) AS p",
            [run_number, series],
        )
        opened.execute("UPDATE attempt SET keep_to = 9000000 WHERE run_id = %s", [run_number])
        opened.execute("ANALYZE law_point")
        panel = _panel("edge-of-stability.json", "Edge of stability")
        sql = expand(panel["targets"][0]["rawSql"], {"run": [run], "scope": ["whole model"], "points": ["1000"]})
        began = time.process_time()
        rows = opened.execute(sql).fetchall()
        assert time.process_time() - began < 30
        assert 1000 <= len(rows) <= 4 * 1100
        opened.execute("ROLLBACK")


@pytest.fixture(scope="module")
def curved(postgres_url: str, filled_postgres, synthetic: ModuleType) -> list[str]:
    """Two runs with curvature, measured at unlike steps and in subspaces of unlike size; their ids, oldest first."""
    s = synthetic
    first = s.info("cnn-sgd", s.SGD, created=s.T0 + 5000, seed="curved")
    second = s.info("cnn-sgd-half", s.SGD, created=s.T0 + 6000, seed="curved-half")
    store = Store.open(postgres_url)
    try:
        batches = (s.curved(first), s.curved(second, rate=0.1, steps=1400, every=7, ranks=3))
        for each in batches:
            for batch in each:
                store.ingest(batch, received=batch.sent)
    finally:
        store.close()
    return [first.id, second.id]


FAN = ("edge-of-stability.json", "Spectral density over time")


def test_fan_draws_every_quantile_and_the_outliers_over_it(connection: psycopg.Connection, curved: list[str]) -> None:
    drawn = _curves(connection, _panel(*FAN), curved[:1])
    stored: dict[tuple[str, str], dict[int, float | None]] = {}
    for name, scope, step, value in connection.execute(
        "SELECT observable, scope, step, value FROM observations WHERE run_id = %s", [curved[0]]
    ).fetchall():
        stored.setdefault((name, scope), {})[step] = value
    ends = [("0.001", "0.999"), ("0.01", "0.99"), ("0.05", "0.95"), ("0.25", "0.75")]
    expected = {"1:measured": ("hessian_quantile", "0.5"), "1:layer_1": ("hessian_eigenvalue", "1")}
    expected |= {"1:layer_2": ("sharpness", ""), "1:layer_3": ("hessian_eigenvalue_smallest", "1")}
    for number, (lower, upper) in enumerate(ends, start=1):
        expected |= {f"1:interval_{number}_lower": ("hessian_quantile", lower)}
        expected |= {f"1:interval_{number}_upper": ("hessian_quantile", upper)}
    assert set(drawn) == {*expected, "1:upper", "1:lower"}
    for series, source in expected.items():
        assert {step: value for step, value in drawn[series].items() if step in stored[source]} == stored[source]
    assert drawn["1:layer_1"][1210] is not None, "the eigenvalue has a value on either side"
    hole = {step for step, value in drawn["1:interval_1_upper"].items() if value is None}
    assert hole == set(range(1160, 1300, 10)), "and the quantiles have none between the values around the gap"


def test_fans_of_two_runs_stand_in_one_frame(connection: psycopg.Connection, curved: list[str]) -> None:
    drawn = _curves(connection, _panel(*FAN), curved)
    assert {series[0] for series in drawn} == {"1", "2"}
    assert len({frozenset(points) for series, points in drawn.items() if series[0] == "1"}) == 1
    ordered = [drawn[f"2:interval_{n}_upper"][700] for n in (1, 2, 3, 4)]
    assert ordered == sorted(ordered, reverse=True)
    assert drawn["2:interval_1_lower"][700] < 0 < drawn["2:interval_1_upper"][700]


def test_reference_can_be_over_the_hyperparameter(connection: psycopg.Connection, curved: list[str]) -> None:
    drawn = _curves(connection, _panel("edge-of-stability.json", "Batch sharpness"), curved)
    assert set(drawn["1:predicted"].values()) == {40.0}
    assert {value for value in drawn["2:predicted"].values() if value is not None} == {20.0}
    assert max(drawn["1:layer_2"].values()) < 40


def test_what_is_undetermined_is_a_gap_although_it_has_a_number(
    connection: psycopg.Connection, curved: list[str], synthetic: ModuleType
) -> None:
    drawn = _curves(connection, _panel("edge-of-stability.json", "Critical step"), curved[:1])["1:measured"]
    assert {step for step, value in drawn.items() if value is None} == set(range(0, synthetic.CALM, 10))


def test_error_bars_of_a_layer_surround_it(connection: psycopg.Connection, curved: list[str]) -> None:
    drawn = _curves(connection, _panel("edge-of-stability.json", "Trace and Frobenius norm"), curved[:1])
    for step, value in drawn["1:layer_1"].items():
        assert drawn["1:layer_1_upper"][step] == pytest.approx(1.03 * value)
        assert drawn["1:layer_1_lower"][step] == pytest.approx(0.97 * value)


def test_subspace_of_another_size_is_shown_where_the_declared_one_is_not_measured(
    connection: psycopg.Connection, curved: list[str]
) -> None:
    drawn = _curves(connection, _panel("edge-of-stability.json", "Gradient in the top subspace"), curved)
    assert len([value for value in drawn["1:measured"].values() if value is not None]) > 200
    assert len([value for value in drawn["2:measured"].values() if value is not None]) > 200


def test_curvature_panels_are_empty_for_a_run_without_curvature(
    connection: psycopg.Connection, filled_postgres
) -> None:
    run = filled_postgres[1]["adamw"]
    row = next(panel for panel in DASHBOARDS[FAN[0]]["panels"] if panel["type"] == "row")
    for panel in row["panels"]:
        assert _curves(connection, panel, [run]) == {}, panel["title"]


def test_a_long_fan_is_answered_in_time(postgres_url: str, curved: list[str]) -> None:
    """10 000 spectra of nine quantiles: no longer than a refresh, found by index, and no more points than asked for."""
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        columns = [
            row[0]
            for row in opened.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'point'")
        ]
        copied = ", ".join({"step": "3000 + n"}.get(name, f"p.{name}") for name in columns)
        opened.execute("BEGIN")
        opened.execute(
            f"INSERT INTO point ({', '.join(columns)}) SELECT {copied} FROM generate_series(1, 10000) AS n, "
            "(SELECT DISTINCT ON (series_id) point.* FROM point JOIN series USING (run_id, series_id) JOIN run "
            "USING (run_id) WHERE uuid = %s AND observable = 'hessian_quantile' ORDER BY series_id, step) AS p",
            [curved[0]],
        )
        opened.execute(
            "UPDATE attempt SET keep_to = 9000000 FROM run WHERE run.run_id = attempt.run_id AND uuid = %s", [curved[0]]
        )
        opened.execute("ANALYZE point")
        sql = expand(_panel(*FAN)["targets"][0]["rawSql"], {"run": curved[:1], "points": ["1000"]})
        began = time.perf_counter()
        rows = opened.execute(sql).fetchall()
        assert time.perf_counter() - began < 30
        assert 9 * 900 <= len(rows) <= 14 * 1100
        opened.execute("ROLLBACK")
