"""Opening a database: ours, not ours, too new, too old, damaged, read-only, unreachable; each a sentence."""

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from learnmech.collector.store import (
    REVISION,
    BadAddress,
    CannotOpen,
    DriverMissing,
    NeedsUpgrade,
    NotOurs,
    Store,
    StoreError,
    TooNew,
    Unavailable,
    migrate,
    upgrade,
)
from learnmech.collector.store.address import parse


def execute(url: str, *statements: str) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(sa.make_url(url).database) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
    else:
        with psycopg.connect(url) as connection:
            for statement in statements:
                connection.execute(statement)


def test_an_empty_database_gets_tables_and_opens_again(empty_url, writer):
    someone = writer()
    with Store.open(empty_url) as store:
        store.ingest(someone.batch(someone.frame(0, loss=1.0)))
    with Store.open(empty_url, create=False) as store:
        assert store.run(someone.run.id).points == 1


def test_without_create_an_empty_database_stays_empty(empty_url):
    with pytest.raises(CannotOpen, match=r"no such file|is empty; `learnmech db upgrade`"):
        Store.open(empty_url, create=False)
    with Store.open(empty_url) as store:
        assert store.runs() == []


def test_processes_that_find_it_empty_at_once_agree(empty_url):
    errors = []

    def start() -> None:
        try:
            Store.open(empty_url).close()
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Store.open(empty_url, create=False) as store:
        assert store.revision() == 0


def test_other_tables_are_not_touched(empty_url, rows):
    execute(empty_url, "CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE users (id INTEGER)")
    with pytest.raises(NotOurs, match=r"other tables \(alembic_version, users\).*give it one of its own"):
        Store.open(empty_url)
    with pytest.raises(NotOurs):
        upgrade(empty_url)
    engine = sa.create_engine(parse(empty_url))
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version", "users"}
    engine.dispose()


def test_a_newer_database_is_refused_untouched(url):
    execute(url, "UPDATE learnmech_version SET version_num = '9999'")
    with pytest.raises(TooNew, match=rf"revision 9999.*up to {REVISION}.*pip install --upgrade learnmech"):
        Store.open(url)
    with pytest.raises(TooNew):
        upgrade(url)


@pytest.fixture
def next_revision(tmp_path, monkeypatch):
    """A learnmech of the future, whose schema has one more column."""
    future = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, future, ignore=shutil.ignore_patterns("__pycache__"))
    (future / "versions" / "r0004_next.py").write_text(
        textwrap.dedent(
            """
            import sqlalchemy as sa
            from alembic import op

            revision = "0004"
            down_revision = "0003"


            def upgrade():
                with op.batch_alter_table("run") as run:
                    run.add_column(sa.Column("colour", sa.Text))
                    run.alter_column("name", existing_type=sa.Text, nullable=True)
            """
        )
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", future)
    monkeypatch.setattr(migrate, "REVISION", "0004")


def test_an_older_database_is_brought_forward(url, engine, writer, next_revision, monkeypatch):
    someone = writer()
    with monkeypatch.context() as past:
        past.setattr(migrate, "REVISION", REVISION)
        with Store.open(url) as store:
            store.ingest(someone.batch(someone.frame(3, loss=1.0)))
    if engine == "postgresql":
        with pytest.raises(NeedsUpgrade, match=r"at revision 0003, this learnmech needs 0004.*learnmech db upgrade"):
            Store.open(url)
        assert upgrade(url) == "0003"
    with Store.open(url) as store:
        assert store.observations(someone.run.id, "loss")["value"] == [1.0]
        with store.database.reading() as connection:
            assert connection.exec_driver_sql("SELECT colour FROM run").scalar() is None
            assert connection.exec_driver_sql("SELECT run FROM observations").scalar() == "run"
            assert connection.exec_driver_sql("SELECT version_num FROM learnmech_version").scalar() == "0004"
    assert upgrade(url) == "0004"


def test_a_failed_upgrade_changes_nothing(url, writer, next_revision, monkeypatch, tmp_path, rows):
    (tmp_path / "migrations" / "versions" / "r0004_next.py").write_text(
        'revision, down_revision = "0004", "0003"\n\n\ndef upgrade():\n    raise ZeroDivisionError\n'
    )
    with pytest.raises(ZeroDivisionError):
        upgrade(url)
    monkeypatch.setattr(migrate, "REVISION", REVISION)
    with Store.open(url) as store:
        assert rows(store, "SELECT * FROM runs") == []


def test_a_text_file_is_not_ours(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    with pytest.raises(NotOurs, match="no SQLite database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_text() == "buy milk\n"


def test_a_damaged_file_says_so(tmp_path, writer):
    path = tmp_path / "store.db"
    someone = writer()
    with Store.open(f"sqlite:///{path}") as store:
        store.ingest(someone.batch(*(someone.frame(step, loss=1.0) for step in range(2000))))
    content = bytearray(path.read_bytes())
    content[100:8000] = os.urandom(7900)
    path.write_bytes(content)
    with pytest.raises(CannotOpen, match=r"is damaged .*restore a backup"):
        Store.open(f"sqlite:///{path}")


def test_a_truncated_file_says_so(tmp_path):
    path = tmp_path / "store.db"
    Store.open(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CannotOpen, match="is damaged"):
        Store.open(f"sqlite:///{path}").runs()


def test_a_folder_and_a_missing_folder(tmp_path):
    with pytest.raises(CannotOpen, match="is a folder"):
        Store.open(f"sqlite:///{tmp_path}")
    with pytest.raises(CannotOpen, match=r"does not exist; make it: mkdir -p"):
        Store.open(f"sqlite:///{tmp_path / 'no' / 'store.db'}")


def test_an_old_sqlite_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
    with pytest.raises(CannotOpen, match=r"SQLite 3.26.0, and the store needs 3.35.0 or newer; use a newer Python"):
        Store.open(f"sqlite:///{tmp_path / 'store.db'}")


def test_a_read_only_file_says_so(tmp_path, writer, python_path):
    """In a process without root's privileges, which ignore permissions."""
    path = tmp_path / "store.db"
    someone = writer()
    with Store.open(f"sqlite:///{path}") as store:
        store.ingest(someone.batch(someone.frame(0, loss=1.0)))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    script = textwrap.dedent(
        f"""
        import os
        from learnmech.collector.store import Store, StoreError
        from learnmech.wire import Batch, Frame, Measurement, RunInfo
        import learnmech.collector.store.facade, learnmech.collector.store.sink
        if os.geteuid() == 0:
            os.setgid(65534); os.setuid(65534)
        else:
            os.chmod({str(path)!r}, 0o444); os.chmod({str(tmp_path)!r}, 0o555)
        os.chdir("/")
        try:
            Store.open("sqlite:///" + {str(path)!r}).ingest(
                Batch(run=RunInfo("a" * 32, "r", 0.0), writer="b" * 32, sent=0.0))
        except StoreError as error:
            print(type(error).__name__, error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], env=python_path, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert "CannotOpen" in done.stdout, (done.stdout, done.stderr)
    assert "read-only; give this user write permission" in done.stdout or "cannot be opened" in done.stdout


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("learnmech.db", "is no URL"),
        ("mysql://host/db", "no store on 'mysql'"),
        ("postgres://host/db", "write postgresql://"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_bad_address_says_what_to_type(address, sentence):
    with pytest.raises(BadAddress, match=sentence):
        Store.open(address)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else found(name, *rest)
    )
    with pytest.raises(DriverMissing, match=r"pip install 'learnmech\[postgres\]'"):
        Store.open("postgresql://host/db")


def test_an_unreachable_server_is_temporary_and_keeps_the_password():
    with pytest.raises(Unavailable, match=r"postgresql://user:\*\*\*@127.0.0.1:1/db does not answer") as caught:
        Store.open("postgresql://user:hush@127.0.0.1:1/db")
    assert caught.value.temporary
    assert "hush" not in str(caught.value)


@pytest.mark.postgres
def test_a_database_that_does_not_exist(postgres):
    url = postgres.database()
    postgres.drop(url)
    with pytest.raises(CannotOpen, match=r"turned us away: .*test_\d+.* does not exist; check user") as caught:
        Store.open(url)
    assert not caught.value.temporary


@pytest.mark.postgres
def test_a_user_who_may_not(postgres):
    url = postgres.database()
    postgres._admin.execute("CREATE ROLE guest LOGIN")
    guest = sa.make_url(url).set(username="guest").render_as_string(hide_password=False)
    with pytest.raises(CannotOpen, match=r"permission denied for schema public; expected a user who may create tables"):
        Store.open(guest)
    ours = postgres.learnmech()
    guest = sa.make_url(ours).set(username="guest").render_as_string(hide_password=False)
    with pytest.raises(CannotOpen, match="permission denied for table learnmech_version"):
        Store.open(guest)


@pytest.mark.postgres
def test_a_server_that_went_away_and_came_back(postgres, writer):
    """What a restart looks like from here: every connection of the pool is dead."""
    url = postgres.learnmech()
    someone = writer()
    with Store.open(url) as store:
        store.ingest(someone.batch(someone.frame(0, loss=1.0)))
        postgres._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [sa.make_url(url).database]
        )
        assert store.ingest(someone.batch(someone.frame(1, loss=1.0))).accepted == 1
        postgres.drop(url)
        with pytest.raises((Unavailable, CannotOpen)):
            store.ingest(someone.batch(someone.frame(2, loss=1.0)))


def test_migrations_are_beside_the_code():
    assert (Path(migrate.MIGRATIONS) / "env.py").is_file()


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
def test_looking_at_an_open_database_does_not_drop_our_locks_on_it(tmp_path, writer):
    """Or the next reader takes itself for the last one and deletes the log that we commit into: acknowledged and lost.

    The oracle is another program's eyes: a second process reads, closes, reads again what came in between.
    """
    path = tmp_path / "store.db"
    script = textwrap.dedent(
        """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1])
        print(connection.execute("SELECT count(*) FROM observations").fetchone()[0])
        connection.close()
        """
    )
    look = [sys.executable, "-c", script, str(path)]
    someone = writer()
    with Store.open(f"sqlite:///{path}") as store:
        for step in range(3):
            store.ingest(someone.batch(someone.frame(step, loss=1.0)))
            migrate.prepare(store.database, create=False)  # what /readyz does
            Store.open(f"sqlite:///{path}").close()  # what a second sink in the same process does
            seen = subprocess.run(look, capture_output=True, text=True, check=True).stdout
            assert int(seen) == step + 1
            assert path.with_name("store.db-wal").exists()
