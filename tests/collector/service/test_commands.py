"""The commands: what they print, and one sentence with exit status 1 for what a person can put right."""

import json
import socket
import sqlite3
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from learnmech import cli, wire
from learnmech.collector.store import Store
from learnmech.wire.segments import SegmentHeader, SegmentWriter
from learnmech.wire.spool import segment_path


@pytest.fixture
def run(monkeypatch):
    """Run a command line in this process; wide, so that tables are not cut."""
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: object):
        return CliRunner().invoke(cli.build(), [str(word) for word in words])

    return invoke


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'commands.db'}"


@pytest.fixture
def filled(url, batch, run_info):
    """A database with two runs."""
    store = Store.open(url)
    runs = [run_info("first"), run_info("second")]
    for info in runs:
        store.ingest(batch(run=info))
    store.close()
    return runs


def sentence(result) -> str:
    """The one sentence of a command that could not do its work."""
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("learnmech: ")]
    assert "Traceback" not in result.output
    return line


def test_runs_are_listed(run, url, filled):
    table = run("runs", "--db", url)
    assert table.exit_code == 0
    listed = json.loads(run("runs", "--db", url, "--json").stdout)
    assert {entry["id"] for entry in listed} == {info.id for info in filled}
    for info in filled:
        assert info.name in table.stdout
        assert info.id in table.stdout


def test_the_database_comes_from_the_environment(run, url, filled, monkeypatch):
    monkeypatch.setenv("LEARNMECH_DB", url)
    assert len(json.loads(run("runs", "--json").stdout)) == 2


def test_listing_makes_no_database(run, url, tmp_path):
    assert "commands.db" in sentence(run("runs", "--db", url))
    assert not (tmp_path / "commands.db").exists()


def test_judging_one_run_by_name_id_or_beginning(run, url, filled):
    for name in ("first", filled[0].id, filled[0].id[:12]):
        result = run("judge", "--db", url, "--run", name)
        assert result.exit_code == 0, result.output
        assert "first" in result.stdout
        assert "second" not in result.stdout


def test_judging_all_runs_and_one_law(run, url, filled):
    result = run("judge", "--db", url, "--all", "--law", "edge_of_stability")
    assert result.exit_code == 0, result.output
    assert "first" in result.stdout
    assert "second" in result.stdout


def test_judging_what_is_not_there(run, url, filled):
    assert "nobody" in sentence(run("judge", "--db", url, "--run", "nobody"))
    assert "edge_of_stability" in sentence(run("judge", "--db", url, "--all", "--law", "edge_of_stabilty"))
    assert run("judge", "--db", url).exit_code == 2
    assert run("judge", "--db", url, "--all", "--run", "first").exit_code == 2


def test_a_name_that_two_runs_have_is_not_guessed(run, url, batch, run_info):
    store = Store.open(url)
    twins = [run_info("twin"), run_info("twin")]
    for info in twins:
        store.ingest(batch(run=info))
    store.close()
    assert all(info.id in sentence(run("judge", "--db", url, "--run", "twin")) for info in twins)


def test_the_database_is_made_checked_and_left_alone(run, url):
    assert "commands.db" in sentence(run("db", "check", "--db", url))
    assert run("db", "upgrade", "--db", url).exit_code == 0
    checked = run("db", "check", "--db", url)
    assert checked.exit_code == 0
    assert "current" in checked.stdout
    assert run("db", "upgrade", "--db", url).exit_code == 0


def test_a_database_that_is_not_ours_is_left_as_it_is(run, url, tmp_path):
    with sqlite3.connect(tmp_path / "commands.db") as other:
        other.execute("CREATE TABLE invoices (id INTEGER)")
    other.close()
    before = (tmp_path / "commands.db").read_bytes()
    for words in (
        ["collect"],
        ["collect", "--check"],
        ["runs"],
        ["judge", "--all"],
        ["db", "upgrade"],
        ["db", "check"],
    ):
        assert "invoices" in sentence(run(*words, "--db", url))
    assert (tmp_path / "commands.db").read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(run, url, filled, tmp_path):
    with sqlite3.connect(tmp_path / "commands.db") as database:
        database.execute("UPDATE learnmech_version SET version_num = 'from_the_future'")
    database.close()
    for words in (["collect"], ["runs"], ["db", "upgrade"], ["db", "check"]):
        assert "newer" in sentence(run(*words, "--db", url))


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mysql://localhost/x", "mysql"),
        ("nonsense", "sqlite:///learnmech.db"),
        ("sqlite:////nowhere/at/all/x.db", "x.db"),
        ("postgresql://nobody:hunter2@127.0.0.1:1/none", "127.0.0.1"),
    ],
)
def test_a_database_that_cannot_be_had_is_a_sentence(run, url, word):
    said = sentence(run("collect", "--db", url))
    assert word in said
    assert "hunter2" not in said, "a password must not be printed"


def test_a_taken_port_is_a_sentence(run, url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = sentence(run("collect", "--db", url, "--port", port))
        assert str(port) in said
        assert "--port 0" in said
        run("db", "upgrade", "--db", url)
        assert str(port) in sentence(run("collect", "--db", url, "--port", port, "--check"))


def test_an_open_address_without_a_token_is_refused(run, url):
    said = sentence(run("collect", "--db", url, "--host", "0.0.0.0"))
    assert "--token-file" in said


def test_check_says_what_would_be_served(run, url, filled, tmp_path, token):
    (tmp_path / "token").write_text(token)
    result = run("collect", "--check", "--db", url, "--port", 0, "--token-file", tmp_path / "token")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("ready: ")
    assert token not in result.output


def test_check_of_an_empty_database_changes_nothing(run, url, tmp_path):
    sentence(run("collect", "--check", "--db", url))
    assert not (tmp_path / "commands.db").exists()


# --- spools ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path, run_info, frame):
    """A spool that a training run left behind: two segments of one writer."""
    info = run_info("spooled")
    folder = tmp_path / "spool" / info.id / ("a" * 32)
    folder.mkdir(parents=True)
    for index in range(2):
        writer = SegmentWriter(segment_path(folder, index), SegmentHeader(run=info, writer="a" * 32))
        for sequence in range(index * 10, index * 10 + 10):
            writer.append(wire.encode(frame(sequence)))
        writer.close()
    return tmp_path / "spool", info, folder


def stored(url: str, run_id: str) -> list[float | None]:
    store = Store.open(url)
    try:
        return list(store.observations(run_id, "loss")["value"])
    finally:
        store.close()


def test_a_spool_is_stored_and_storing_it_again_changes_nothing(run, url, spool):
    root, info, folder = spool
    files = {path: path.read_bytes() for path in folder.iterdir()}
    first = run("collect", "--ingest", root, "--db", url)
    assert first.exit_code == 0, first.output
    assert "stored 20 measurements of 1 runs (0 were there already)" in first.stdout
    again = run("collect", "--ingest", root, "--db", url)
    assert "stored 0 measurements of 1 runs (20 were there already)" in again.stdout
    assert stored(url, info.id) == [float(n) for n in range(20)]
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_a_damaged_spool_gives_what_it_can_and_says_what_not(run, url, spool):
    root, info, folder = spool
    segment = segment_path(folder, 0)
    segment.write_bytes(segment.read_bytes()[:-5])
    result = run("collect", "--ingest", root, "--db", url)
    assert result.exit_code == 1
    assert "stored 19 measurements" in result.stdout
    assert str(segment) in result.stderr
    assert len(stored(url, info.id)) == 19


def test_a_folder_that_is_no_spool_is_a_sentence(run, url, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no segments" in sentence(run("collect", "--ingest", tmp_path / "empty", "--db", url))
    assert "no folder" in sentence(run("collect", "--ingest", tmp_path / "missing", "--db", url))


def test_the_commands_are_listed_without_the_server(tmp_path):
    """`learnmech --help` of a base install must not import what only the extra brings."""
    program = (
        "import sys; from learnmech.collector.service import commands; "
        "print([m for m in ('fastapi', 'uvicorn', 'sqlalchemy', 'alembic', 'prometheus_client', 'starlette') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistyped_spool_leaves_no_database_behind(run, url, tmp_path):
    done = run("collect", "--db", url, "--ingest", tmp_path / "spol")
    assert done.exit_code == 1
    assert "is no folder; expected a spool" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_ready_file_that_cannot_be_written_is_a_sentence(run, url, tmp_path):
    done = run("collect", "--db", url, "--port", 0, "--ready-file", tmp_path / "missing" / "ready.json")
    assert done.exit_code == 1
    assert "cannot be written; expected a file in an existing folder" in done.stderr
    assert "Traceback" not in done.stderr
