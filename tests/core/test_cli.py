"""The command as a person types it."""

import json
import subprocess
import sys

import pytest

from learnmech import laws, observables


def learnmech(*words):
    return subprocess.run(
        [sys.executable, "-m", "learnmech.cli", *words], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_lists_every_command():
    text = learnmech("--help").stdout
    for command in ("collect", "demo", "doctor", "judge", "runs", "db", "laws", "observables", "dashboards"):
        assert command in text


def test_laws_in_a_table_as_json_and_one_whole():
    rows = json.loads(learnmech("laws", "--json").stdout)
    assert [row["name"] for row in rows] == [law.name for law in laws.catalogue()]
    assert "edge_of_stability" in learnmech("laws").stdout
    assert "catapult" in learnmech("laws", "edge_of_stability").stdout


def test_an_unknown_law_is_an_error_with_a_hint():
    done = learnmech("laws", "edge")
    assert done.returncode == 2
    assert "edge_of_stability" in done.stderr
    assert "Traceback" not in done.stderr


def test_observables_as_json_are_the_vocabulary():
    rows = json.loads(learnmech("observables", "--json").stdout)
    assert [row["name"] for row in rows] == [o.name for o in observables.catalogue()]


def test_version():
    assert learnmech("--version").stdout.strip().count(".") == 2


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
    from learnmech.cli import app

    def build():
        def run(**_):
            raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy.orm")

        return run

    monkeypatch.setattr(app, "build", build)
    with pytest.raises(SystemExit) as stop:
        app.main(["collect", "--port", "0"])
    assert stop.value.code == 3
    assert "learnmech collect needs the collector extra" in capsys.readouterr().err
