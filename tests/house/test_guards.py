"""The guards of tests/conftest.py, on small test suites of their own: each must be able to fail a run."""

import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def suite(repository, tmp_path):
    """Run one test module under the repository's conftest and return the finished process."""
    folder = tmp_path / "suite"
    folder.mkdir()
    for name in ("conftest.py", "expected-skips"):
        shutil.copy(repository / "tests" / name, folder)

    def run(source, *, ci="", expected=""):
        (folder / "test_it.py").write_text(source, encoding="utf-8")
        if expected:
            (folder / "expected-skips").write_text(expected, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder],
            cwd=folder,
            env={"PATH": "", "CI": ci, "LEARNMECH_SPOOL": "left over"},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    "reach",
    [
        "socket.create_connection(('8.8.8.8', 53), timeout=1)",
        "socket.create_connection(('example.com', 80), timeout=1)",
        "socket.create_connection(('2001:4860:4860::8888', 53), timeout=1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
    ],
)
def test_network_is_out_of_reach_even_when_swallowed(reach, suite):
    done = suite(f"import socket\ndef test():\n    try:\n        {reach}\n    except OSError:\n        return\n")
    assert done.returncode == 1
    assert "reached for the network" in done.stdout


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_reserved_destinations_only_refuse(host, suite):
    done = suite(
        "import socket, pytest\ndef test():\n    with pytest.raises(OSError):\n"
        f"        socket.create_connection(('{host}', 80), timeout=1)\n"
    )
    assert done.returncode == 0, done.stdout


def test_loopback_is_open(suite):
    done = suite("""
import socket
def test():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
""")
    assert done.returncode == 0, done.stdout


def test_each_test_has_its_own_empty_folder_and_no_settings(suite):
    done = suite("""
import os, pathlib
def test():
    assert not list(pathlib.Path().iterdir())
    assert not [name for name in os.environ if name.startswith("LEARNMECH_")]
    assert os.environ["OMP_NUM_THREADS"] == "1"
""")
    assert done.returncode == 0, done.stdout


SKIPS = """
import pytest
def test_inside(): pytest.skip("no reason")
@pytest.mark.skip(reason="no reason")
def test_marked(): pass
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_engines(engine):
    if engine == "postgresql": pytest.skip("no reason")
@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""


def test_unexpected_skips_fail_in_ci_only(suite):
    assert suite(SKIPS).returncode == 0
    done = suite(SKIPS, ci="true")
    assert done.returncode == 1
    assert "unexpected skips" in done.stdout
    for name in ("test_inside", "test_marked", "test_engines[postgresql]"):
        assert f"::{name}: " in done.stdout
    assert "::test_known: " not in done.stdout


def test_listed_skips_pass_in_ci(suite):
    done = suite(SKIPS, ci="true", expected="*::test_inside # a\n*::test_marked # b\n*::test_engines[postgresql] # c\n")
    assert done.returncode == 0, done.stdout


def test_skipped_module_is_seen(suite):
    done = suite("import pytest\npytest.skip('no reason', allow_module_level=True)\n", ci="1")
    assert done.returncode != 0
    assert "test_it.py: " in done.stdout
