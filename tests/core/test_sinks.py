"""Sinks by URL: what names the same store, what is missing, and what a mistyped URL is told."""

import importlib.metadata
from pathlib import Path

import pytest

from learnmech.sinks import SinkError, SinkMissing, identity, resolve


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://secret@Host.Test:8765/", "http://host.test:8765"),
        ("http://user:secret@host.test", "http://host.test"),
        ("HTTP://host.test:80/team/", "http://host.test/team"),
        ("https://host.test:443", "https://host.test"),
        ("http://[::1]:8765", "http://[::1]:8765"),
        ("http://host.test/?password=secret&api=secret", "http://host.test"),
        ("postgresql+psycopg://me:secret@db.test:5432/runs?sslmode=require", "postgresql://db.test/runs"),
        ("postgresql:///runs?host=/var/run/pg&password=secret", "postgresql:///runs?host=%2Fvar%2Frun%2Fpg"),
        ("sqlite:////var/learnmech.db", "sqlite:////var/learnmech.db"),
        ("sqlite://", "sqlite:///:memory:"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("spool:/scratch/runs", "spool:/scratch/runs"),
        ("spool:///scratch/runs/", "spool:/scratch/runs"),
    ],
)
def test_the_identity_names_the_store_and_no_secret(url, expected):
    assert identity(url) == expected
    assert "secret" not in identity(url)


def test_relative_paths_are_those_of_this_folder(tmp_path, monkeypatch):
    assert identity("sqlite:///learnmech.db") == f"sqlite:///{tmp_path}/learnmech.db"
    assert identity("spool:kept") == identity("spool://kept") == f"spool:{tmp_path}/kept"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    # The same words in another folder are another database: leftovers must not be mixed up.
    assert identity("sqlite:///learnmech.db") != f"sqlite:///{tmp_path}/learnmech.db"


def test_the_home_folder_may_be_abbreviated(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identity("spool:~/kept") == f"spool:{tmp_path}/kept"


class Entries:
    """Entry points as if installed."""

    def __init__(self, **sinks):
        self.sinks = sinks

    def __call__(self, group, name=None):
        assert group == "learnmech.sinks"
        return [Entry(key, value) for key, value in self.sinks.items() if name in {None, key}]


class Entry:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def load(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def installed(monkeypatch):
    def install(**sinks):
        monkeypatch.setattr(importlib.metadata, "entry_points", Entries(**sinks))

    return install


def test_a_scheme_finds_its_entry_point_and_gets_the_whole_url(installed):
    installed(postgresql=lambda url: ("opened", url))
    url = "postgresql+psycopg://me:secret@db/runs?sslmode=require"
    assert resolve(url) == ("opened", url)


def test_a_missing_module_names_the_extra(installed):
    def needs_driver(url):
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    installed(sqlite=ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy"), postgresql=needs_driver)
    with pytest.raises(SinkMissing, match=r"sqlalchemy.*pip install 'learnmech\[collector\]'"):
        resolve("sqlite:///learnmech.db")
    with pytest.raises(SinkMissing, match=r"psycopg.*pip install 'learnmech\[postgres\]'") as caught:
        resolve("postgresql://me:secret@db/runs")
    assert "secret" not in str(caught.value)


def test_nothing_installed_for_a_known_scheme(installed):
    installed()
    with pytest.raises(SinkMissing, match=r"pip install 'learnmech\[probes\]'"):
        resolve("http://host.test")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("learnmech.db", "no scheme"),
        ("", "no scheme"),
        ("C:\\runs\\learnmech.db", "no scheme"),
        ("secret@host.test:8765", r"\*\*\*@host"),
        ("postgres://db/runs", "did you mean postgresql"),
        ("localhost:8765", "did you mean http://localhost:8765"),
        ("ftp://host.test", "installed: http"),
        ("http://host.test:port", "expected a URL"),
        ("http://[::1", "expected a URL"),
        ("spool:", "names no folder"),
    ],
)
def test_a_mistyped_url_is_told_what_to_type(installed, url, words):
    installed(http=lambda url: None)
    with pytest.raises(SinkError, match=words) as caught:
        resolve(url)
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, SinkMissing)


def test_the_installed_entry_points_cover_the_promised_schemes(repository):
    text = (Path(repository) / "pyproject.toml").read_text(encoding="utf-8")
    for scheme in ("http", "https", "spool", "sqlite", "postgresql"):
        assert f"\n{scheme} = " in text
