"""Grafana's JSON: committed as generated, known to Grafana's own types, and consistent within itself."""

import json
import re
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common, statetimeline

from learnmech import laws
from learnmech.collector.service.metrics import Metrics
from learnmech.dashboards import grafana, panels
from learnmech.dashboards.grafana import dashboards, layout, names
from learnmech.dashboards.panels import Role

DASHBOARDS = dashboards.everything()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it prefers the new schema; the classic one is what Grafana 11 and 12 read as well
    from grafana_foundation_sdk.models.dashboard import Dashboard

CUSTOM_FIELDS = {
    "trend": common.GraphFieldConfig,
    "timeseries": common.GraphFieldConfig,
    "table": common.TableFieldOptions,
    "state-timeline": statetimeline.FieldConfig,
    "stat": types.SimpleNamespace,
}
EMPTY: tuple[Any, ...] = (None, "", [], {})
every_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def drawn(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard, those in folded rows too, without the rows' heads."""
    nested = [panel["panels"] if panel["type"] == "row" else [panel] for panel in dashboard["panels"]]
    return [panel for group in nested for panel in group]


PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in drawn(dashboard)]
every_panel = pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=lambda item: item if isinstance(item, str) else item["title"]
)


@pytest.fixture
def folder(repository: Path) -> Path:
    return repository / "dashboards" / "grafana"


def test_committed_files_are_the_generated_ones(folder: Path) -> None:
    committed = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    generated = {name: text.encode() for name, text in grafana.files().items()}
    assert committed == generated, "type: learnmech dashboards build"


def _differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Keys that Grafana's types dropped or changed; what they add (defaults) does not matter."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        dropped = [
            f"{path}.{key} was dropped" for key, value in ours.items() if key not in theirs and value not in EMPTY
        ]
        return dropped + [
            d for key in ours if key in theirs for d in _differences(ours[key], theirs[key], f"{path}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for index, (a, b) in pairs for d in _differences(a, b, f"{path}[{index}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


@every_dashboard
def test_round_trip_through_grafanas_own_types(name: str) -> None:
    register_default_plugins()
    ours = json.loads(json.dumps(DASHBOARDS[name]))
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))
    assert _differences(ours, theirs) == []


@every_panel
def test_panel_has_title_unit_description_and_source(name: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert "**Source.**" in panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] in {"${datasource}", "${metrics}"}
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {panel["datasource"]["uid"]}


@every_dashboard
def test_variables_used_are_declared_and_none_is_pasted_raw(name: str) -> None:
    text = json.dumps(DASHBOARDS[name])
    declared = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    assert set(re.findall(r"\$\{(\w+)(?::\w+)?\}", text)) <= declared
    for sql in re.findall(r'"(?:rawSql|query)": "((?:[^"\\]|\\.)*)"', text):
        assert not re.search(r"\$\{\w+(?::(?:csv|raw))?\}", sql), "in SQL only :sqlstring, which quotes"
        assert not re.search(r"IN \(\$", sql), "a syntax error when nothing is chosen"


@every_panel
def test_overrides_name_columns_that_the_query_can_make(name: str, panel: dict[str, Any]) -> None:
    if panel["type"] != "trend":
        return  # only Trend panels have columns per slot
    sql = panel["targets"][0]["rawSql"]
    roles = {role for role in Role if f"'{role}'" in sql} | set(re.findall(r"'((?:layer|interval)_\w+)'", sql))
    made = {f"{slot}:{role}" for slot in range(1, names.SLOTS + 1) for role in roles}
    named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    below = {
        p["value"]
        for o in panel["fieldConfig"]["overrides"]
        for p in o["properties"]
        if p["id"] == "custom.fillBelowTo"
    }
    assert named == made
    assert below <= made


@every_panel
def test_override_properties_are_fields_of_that_panel(name: str, panel: dict[str, Any]) -> None:
    """The round trip lets misspelt override ids pass, so they are looked up in Grafana's types."""
    allowed = {_camel(attribute) for attribute in vars(CUSTOM_FIELDS[panel["type"]]())}
    for override in panel["fieldConfig"]["overrides"]:
        for entry in override["properties"]:
            if entry["id"].startswith("custom."):
                assert entry["id"].removeprefix("custom.") in allowed
            else:
                assert entry["id"] in {"color", "displayName", "mappings", "unit"}
    assert set(panel["fieldConfig"]["defaults"].get("custom", {})) <= allowed


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


@every_dashboard
def test_dashboard_is_stable_linked_and_answers_one_question(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] == 42
    assert re.fullmatch(r"learnmech-[a-z-]{3,30}", dashboard["uid"])
    assert dashboard["description"].endswith("?")
    assert dashboard["links"][0]["tags"] == dashboard["tags"]
    assert dashboard["links"][0]["includeVars"]
    assert dashboard["links"][0]["keepTime"]
    numbers = [panel["id"] for panel in [*drawn(dashboard), *(p for p in dashboard["panels"] if p["type"] == "row")]]
    assert len(set(numbers)) == len(numbers)


def test_uids_are_unique_and_every_law_has_its_dashboard() -> None:
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(uids) == len(set(uids))
    assert {dashboards.uid(law.name) for law in laws.catalogue()} <= set(uids)


@every_dashboard
def test_first_row_is_six_to_eight_numbers(name: str) -> None:
    if name == "operations.json":
        return  # curves of counters: a number alone says nothing about a rate
    first = [panel for panel in DASHBOARDS[name]["panels"] if panel["gridPos"]["y"] == 0]
    assert {panel["type"] for panel in first} == {"stat"}
    assert 6 <= len(first) <= 8


def test_rows_fill_the_grid() -> None:
    with pytest.raises(ValueError, match="24 columns"):
        layout.place([(4, [(10, {"title": "alone"})])])


def test_curvature_is_folded_below_the_edge_of_stability() -> None:
    dashboard = DASHBOARDS["edge-of-stability.json"]
    (row,) = (panel for panel in dashboard["panels"] if panel["type"] == "row")
    assert row["collapsed"], "a run without such measurements shows a heading and asks nothing"
    assert [p["title"] for p in row["panels"]] == [panel.title for panel in panels.of(panels.Section.CURVATURE)]
    above = [panel["gridPos"] for panel in dashboard["panels"] if panel["type"] != "row"]
    below = [panel["gridPos"] for panel in row["panels"]]
    assert row["gridPos"]["y"] == max(place["y"] + place["h"] for place in above)
    assert min(place["y"] for place in below) == row["gridPos"]["y"] + 1
    taken = [(x, y) for p in below for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(taken) == len(set(taken)), "no panel lies on another"


def test_fan_is_filled_from_the_outside_in_on_an_axis_that_shows_both_signs() -> None:
    panel = next(panel for _, panel in PANELS if panel["title"] == "Spectral density over time")
    axis = panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"]
    assert axis["type"] == "symlog"
    assert axis["linearThreshold"] == panels.get("spectral_density").linear
    looks = {o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]} for o in _overrides(panel)}
    fills = [looks[f"1:interval_{number}_upper"] for number in range(1, 5)]
    assert [fill["custom.fillBelowTo"] for fill in fills] == [f"1:interval_{number}_lower" for number in range(1, 5)]
    assert [fill["custom.fillOpacity"] for fill in fills] == sorted(fill["custom.fillOpacity"] for fill in fills)
    assert "value > 0" not in panel["targets"][0]["rawSql"], "half of a spectrum is negative"


def _overrides(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return panel["fieldConfig"]["overrides"]


def test_verdicts_keep_their_words_beside_their_colours() -> None:
    assert set(names.VERDICT_COLOURS) == {verdict.value for verdict in laws.Verdict}
    timeline = next(panel for _, panel in PANELS if panel["type"] == "state-timeline")
    options = timeline["fieldConfig"]["defaults"]["mappings"][0]["options"]
    assert {verdict: entry["text"] for verdict, entry in options.items()} == {
        verdict: verdict.replace("_", " ") for verdict in names.VERDICT_COLOURS
    }


def test_prometheus_expressions_name_metrics_that_the_collector_has() -> None:
    metrics = Metrics("test").render().decode()
    declared = set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE))
    declared |= {f"{name}_bucket" for name in declared}
    for _, panel in PANELS:
        for target in panel["targets"]:
            for metric in re.findall(r"learnmech_\w+", target.get("expr", "")):
                assert metric in declared


def test_data_source_uids_are_those_that_are_provisioned(folder: Path) -> None:
    written = yaml.safe_load((folder / "provisioning/datasources/learnmech.yaml").read_text(encoding="utf-8"))
    provisioned = {source["uid"]: source["type"] for source in written["datasources"]}
    assert provisioned == {names.POSTGRES_UID: names.POSTGRES_TYPE, names.PROMETHEUS_UID: names.PROMETHEUS_TYPE}
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "datasource":
                assert provisioned[variable["current"]["value"]] == variable["query"]


def test_folder_of_the_dashboards(folder: Path) -> None:
    written = yaml.safe_load((folder / "provisioning/dashboards/learnmech.yaml").read_text(encoding="utf-8"))
    (provider,) = written["providers"]
    assert (provider["folder"], provider["folderUid"]) == (names.FOLDER, names.FOLDER_UID)
    assert provider["allowUiUpdates"] is False
