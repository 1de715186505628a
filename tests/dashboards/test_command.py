"""`learnmech dashboards`."""

import json
from pathlib import Path

from typer.testing import CliRunner

from learnmech.dashboards import grafana
from learnmech.dashboards.command import app

RUNNER = CliRunner()


def test_build_writes_everything_once_and_check_agrees(tmp_path: Path) -> None:
    first = RUNNER.invoke(app, ["build", str(tmp_path)])
    assert first.exit_code == 0
    assert first.output.count("wrote") == len(grafana.files())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == grafana.files()
    assert RUNNER.invoke(app, ["build", str(tmp_path)]).output.strip() == "everything is current"
    assert RUNNER.invoke(app, ["check", str(tmp_path)]).exit_code == 0


def test_check_names_what_differs_is_missing_or_is_a_stranger(tmp_path: Path) -> None:
    RUNNER.invoke(app, ["build", str(tmp_path)])
    (tmp_path / "overview.json").write_text("{}")
    (tmp_path / "operations.json").unlink()
    (tmp_path / "mine.json").write_text("{}")
    outcome = RUNNER.invoke(app, ["check", str(tmp_path)])
    assert outcome.exit_code == 1
    for sentence in (
        "overview.json differs",
        "operations.json is missing",
        "mine.json is not generated",
        "dashboards build",
    ):
        assert sentence in outcome.output


def test_list_shows_every_panel() -> None:
    rows = json.loads(RUNNER.invoke(app, ["list", "--json"]).output)
    table = RUNNER.invoke(app, ["list"], env={"COLUMNS": "200"}).output
    assert [row["id"] for row in rows][:3] == ["edge_of_stability", "gradient_noise_scale", "rotational_equilibrium"]
    assert all(row["title"] in table for row in rows)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = RUNNER.invoke(app, ["build", str(tmp_path / "file")])
    assert outcome.exit_code == 1
    assert "expected a folder that this user may write to" in outcome.output
