"""The declarations: complete, readable, and about things that exist."""

import json
import re
from pathlib import Path

import pytest

from learnmech import laws, observables
from learnmech.collector.store import VIEWS
from learnmech.dashboards import page, panels
from learnmech.dashboards.panels import Panel, Role, View, notation

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
    assert panel.unit in {observable.unit for observable in observables.catalogue()}


@every_panel
def test_bands_have_both_ends(panel: Panel) -> None:
    roles = [curve.role for curve in panel.curves]
    assert len(roles) == len(set(roles))
    assert Role.MEASURED in roles
    assert (Role.UPPER in roles) == (Role.LOWER in roles)
    assert (Role.ZONE_UPPER in roles) == (Role.ZONE_LOWER in roles)


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
    assert stepped == {"edge_of_stability", "rotational_equilibrium", "noise_scale"}


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
