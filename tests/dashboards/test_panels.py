"""The declarations: complete, readable, and about things that exist."""

import json
import re
from pathlib import Path

import pytest

from learnmech import laws, observables
from learnmech.collector.store import VIEWS
from learnmech.dashboards import page, panels
from learnmech.dashboards.panels import Panel, Role, Section, View, notation
from learnmech.observables.gradients import GRADIENTS
from learnmech.observables.symmetry import SYMMETRY

PANELS = [*panels.catalogue(), *(panel.companion for panel in panels.catalogue() if panel.companion)]
every_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.id)


@every_panel
def test_panel_says_what_it_is_when_it_fails_and_where_it_is_from(panel: Panel) -> None:
    text = panel.description
    assert panel.title
    assert panel.question.endswith("?")
    assert len(text.shows.split()) >= 8
    assert len(text.fails.split()) >= 6
    assert text.source.strip()
    assert text.formula, "a panel shows a quantity, and a quantity has a definition"
    assert "**Does not apply when.**" in text.markdown()
    assert "\\" not in text.markdown(), "Grafana shows no LaTeX"


@every_panel
def test_panel_reads_what_is_declared(panel: Panel) -> None:
    assert set(panel.columns) <= set(VIEWS[panel.view].columns)
    if panel.view is View.RESIDUALS:
        assert laws.get(panel.name).name == panel.name
    else:
        assert observables.get(panel.name).unit == panel.unit
    if panel.reference:
        assert observables.is_declared(panel.reference.observable)
    for part in panel.parts:
        assert observables.get(part.observable).unit == panel.unit, "lines on one axis have one unit"
        assert {curve.column for curve in part.curves} == {"value"}
    assert panel.unit in {observable.unit for observable in observables.catalogue()}


@every_panel
def test_bands_have_both_ends(panel: Panel) -> None:
    roles = [curve.role for curve in panel.curves]
    assert len(roles) == len(set(roles))
    assert Role.MEASURED in roles
    assert (Role.UPPER in roles) == (Role.LOWER in roles)
    assert (Role.ZONE_UPPER in roles) == (Role.ZONE_LOWER in roles)


@every_panel
def test_layers_and_intervals_are_told_apart_and_complete(panel: Panel) -> None:
    roles = [curve.role for part in panel.parts for curve in part.curves]
    assert len(roles) == len(set(roles))
    assert set(roles).isdisjoint(curve.role for curve in panel.curves)
    upper, lower = ({role.removesuffix(end) for role in roles if role.endswith(end)} for end in ("_upper", "_lower"))
    assert upper == lower, "a shade has two ends"
    series = [(part.observable, part.scope) for part in panel.parts]
    assert len(series) == len(set(series))
    assert (panel.name, panel.scope) not in series
    assert panel.fixed == any(scope is not None for _, scope in series)
    assert panel.fixed == (not any(scope is None for _, scope in series)) or not series, "all of one kind"


def test_fan_encloses_ever_fewer_eigenvalues_around_the_median() -> None:
    fan = panels.get("spectral_density")
    ends = [(float(interval.lower), float(interval.upper)) for interval in fan.intervals]
    assert (fan.name, fan.scope) == ("hessian_quantile", "0.5")
    assert ends == [(0.001, 0.999), (0.01, 0.99), (0.05, 0.95), (0.25, 0.75)]
    for lower, upper in ends:
        assert lower + upper == pytest.approx(1)
    for interval, share in zip(fan.intervals, (99.8, 98, 90, 50), strict=True):
        assert interval.label.startswith(f"{share:g} %" if share != 50 else "half")
    assert fan.signed
    assert fan.scale == "log"
    opaque = 1.0
    for interval in fan.intervals:
        opaque *= 1 - interval.strength
    assert 1 - opaque < 0.7, "the median stays visible on the innermost shade"


@every_panel
def test_axis_of_both_signs_says_where_it_turns_linear(panel: Panel) -> None:
    if panel.signed and panel.scale == "log":
        assert 0 < panel.linear < 1, "a number was chosen"


def test_limits_are_drawn_where_there_is_one() -> None:
    assert {panel.id: panel.rules for section in Section for panel in panels.of(section) if panel.rules} == {
        "doubling_speedup": (1.0, 2.0),
        "signal_to_noise_map": (1.0,),
        "fluctuation_dissipation": (1.0,),
        "symmetry_residual": (1e-3,),
        "critical_step": (1.0,),
        "curvature_share": (1.0,),
    }
    stable = panels.get("batch_sharpness").reference
    assert stable is not None
    assert (stable.observable, stable.over) == ("learning_rate", 2.0)


def test_every_panel_is_in_one_place() -> None:
    sections = [panel for section in Section for panel in panels.of(section)]
    assert len(sections) + len(laws.catalogue()) == len(panels.catalogue())
    written = json.loads(page.panels_json())
    assert [section["id"] for section in written["sections"]] == list(panels.TITLES) == list(Section)
    for section in written["sections"]:
        assert section["title"] == panels.TITLES[section["id"]]
        assert [panel["id"] for panel in section["panels"]] == [panel.id for panel in panels.of(Section(section["id"]))]


def test_maps_show_what_is_measured_in_parts() -> None:
    maps = {panel.id: panel for section in Section for panel in panels.of(section) if panel.rows}
    assert {panel.rows for panel in maps.values()} == {"blocks", "kinds", "probes"}
    assert [panel.id for panel in maps.values() if panel.lowest] == ["signal_to_noise_map"]
    for panel in maps.values():
        assert [curve.role for curve in panel.curves] == [Role.MEASURED], "a cell has no error bar"
        assert not panel.parts
        assert panel.reference is None
        assert len(panel.rules) <= 1, "colours turn at one value"


def test_every_observable_of_noise_and_of_symmetries_is_drawn() -> None:
    drawn = {name for panel in PANELS for name in (panel.name, *(part.observable for part in panel.parts))}
    declared = {item.name for item in (*GRADIENTS, *SYMMETRY)} - {"symmetry_groups"}
    assert declared <= drawn


def test_every_law_has_a_panel_with_a_dimensionless_companion() -> None:
    declared = {panel.name: panel for panel in panels.catalogue() if panel.view is View.RESIDUALS}
    assert list(declared) == [law.name for law in laws.catalogue()]
    for law in laws.catalogue():
        panel = declared[law.name]
        assert panel.companion is not None
        assert panel.companion.unit == "1"
        assert panel.companion.rules == (1.0,)
        for part in (panel, panel.companion):
            assert law.reference == part.description.source
            assert all(need in part.description.fails for need in law.needs)
            assert law.advice[laws.Verdict.NOT_APPLICABLE] in part.description.fails


def test_predictions_from_hyperparameters_are_steps_and_from_measurements_are_lines() -> None:
    stepped = {panel.id for panel in panels.catalogue() if panel.stepped}
    assert stepped == {
        "edge_of_stability",
        "rotational_equilibrium",
        "noise_scale",
        "noise_scale_hessian",
        "batch_sharpness",
        "overhead",
    }


def test_ids_are_unique() -> None:
    assert len({panel.id for panel in PANELS}) == len(PANELS)


def test_unknown_panel_is_refused_with_the_known_ones() -> None:
    with pytest.raises(panels.UnknownPanel, match="edge_of_stability"):
        panels.get("edge")


def test_committed_panels_json_is_the_generated_one() -> None:
    committed = page.folder() / page.PANELS_FILE
    assert committed.read_text(encoding="utf-8") == page.panels_json(), "type: learnmech dashboards build"


def test_page_knows_every_verdict_and_symbol() -> None:
    declared = json.loads(page.panels_json())
    assert set(declared["verdicts"]) == {verdict.value for verdict in laws.Verdict}
    assert set(declared["symbols"]) == {item.name for item in observables.catalogue() if item.symbol}


def test_colours_of_the_page_and_of_grafana_are_the_same() -> None:
    css = (page.folder() / "css" / "theme.css").read_text(encoding="utf-8")
    light = css[: css.index('[data-theme="dark"]')]
    assert tuple(re.findall(r"--run-\d: (#[0-9a-f]{6});", light)) == panels.RUN_COLOURS


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (r"\frac{a+b}{c d}", "(a+b)/(cd)"),
        (r"\frac{1}{\eta}", "1/η"),
        (r"\lVert w_{t+1} - w_t \rVert^2", "‖w_(t+1)−w_t‖²"),
        (r"\sqrt{2\eta\lambda}", "√(2ηλ)"),
        (r"\operatorname{tr}\Sigma / \lvert G\rvert^2", "tr Σ/|G|²"),
        (r"x \to 2, \quad y", "x → 2, y"),
    ],
)
def test_formulas_in_unicode(source: str, written: str) -> None:
    assert notation.text(notation.parse(source)) == written


@pytest.mark.parametrize("source", [r"\unheardof{x}", "{a", "a}", r"\frac{a}"])
def test_a_formula_that_would_be_shown_wrong_is_refused(source: str) -> None:
    with pytest.raises(notation.NotationError):
        notation.parse(source)


def test_a_transposed_vector_is_raised_once() -> None:
    assert notation.data(notation.parse(r"g^\top H g^2")) == [
        {"var": "g"},
        "ᵀ",
        {"var": "H"},
        {"var": "g"},
        {"sup": ["2"]},
    ]


def test_every_declared_symbol_can_be_written() -> None:
    for observable in observables.catalogue():
        written = notation.text(notation.parse(observable.symbol))
        assert "\\" not in written
        assert not re.search(r"[{}$]", written)


def test_python_of_the_dashboards_imports_only_core(repository: Path) -> None:
    foreign = re.compile(r"learnmech\.(collector|probes|lab)\b.*import|import learnmech\.(collector|probes|lab)")
    for path in (repository / "dashboards" / "learnmech").rglob("*.py"):
        assert not [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.match(r"\s*(from|import) ", line) and foreign.search(line)
        ]
