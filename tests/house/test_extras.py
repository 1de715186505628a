"""Each extra of the built wheel, alone: what it declares suffices, and what it must not bring is absent."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

# What each extra must not bring, by import name.
SERVER = {"sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "prometheus_client", "psycopg"}
TRAINING = {"torch", "numpy", "pytorch_lightning", "lightning", "sklearn"}
ABSENT = {
    "": SERVER | TRAINING | {"urllib3"},
    "probes": SERVER | {"pytorch_lightning", "lightning", "sklearn"},
    "collector": TRAINING | {"psycopg"},
    "postgres": TRAINING,
    "dashboards": SERVER | TRAINING,
    "lab": {"psycopg"},
    "all": set(),
}

# The parts of learnmech whose every module must import under an extra.
CORE = ["learnmech.observables", "learnmech.wire", "learnmech.laws", "learnmech.sinks", "learnmech.cli"]
PARTS = {
    "": [],
    "probes": ["learnmech.probes"],
    "collector": ["learnmech.collector"],
    "postgres": ["learnmech.collector"],
    "dashboards": ["learnmech.dashboards"],
    "lab": ["learnmech.probes", "learnmech.collector", "learnmech.dashboards", "learnmech.lab"],
    # What `lab` does not bring; everything together is what runs these tests.
    "all": ["learnmech.collector", "learnmech.dashboards"],
}

# Imports every module of some packages, and says which failed and which forbidden packages can be found.
SURVEY = """
import importlib, importlib.util, json, pkgutil, sys
parts, forbidden = json.loads({arguments!r})
failed, imported = {{}}, []
for part in parts:
    package = importlib.import_module(part)
    imported.append(part)
    for module in pkgutil.walk_packages(package.__path__, part + "."):
        # Alembic runs its own scripts, with a context that exists only then; `__main__` modules run a program.
        if ".migrations." in module.name or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = f"{{type(error).__name__}}: {{error}}"
        else:
            imported.append(module.name)
print(json.dumps({{
    "failed": failed,
    "imported": imported,
    "origins": sorted({{str(importlib.util.find_spec(part).origin) for part in parts}}),
    "found": sorted(name for name in forbidden if importlib.util.find_spec(name) is not None),
}}))
"""


@pytest.mark.parametrize("extra", list(ABSENT))
def test_extra_alone(extra, environment, tmp_path):
    here = environment(extra)
    arguments = json.dumps([CORE + PARTS[extra], sorted(ABSENT[extra])])
    done = here.run(SURVEY.format(arguments=arguments), tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    # An adapter is for machines that have its trainer, which an extra for any loop cannot ask for.
    failed = report["failed"]
    if extra == "probes" and (said := failed.pop("learnmech.probes.lightning", None)):
        assert "lightning" in said, said
    for name in ("huggingface", "huggingface_logs", "huggingface_loss", "huggingface_step"):
        if extra in ("probes", "lab") and (said := failed.pop(f"learnmech.probes.{name}", None)):
            assert "transformers" in said, said
    assert not failed
    assert not report["found"], f"learnmech[{extra}] brings what it must not"
    assert all(origin.startswith(str(here.root)) for origin in report["origins"]), "not the wheel's own modules"

    help_text = here.command("--help", cwd=tmp_path)
    assert help_text.returncode == 0, help_text.stderr
    assert "collect" in help_text.stdout
    assert "demo" in help_text.stdout


@pytest.mark.parametrize("extra", list(ABSENT))
def test_nothing_declared_is_missing(extra, environment):
    """`pip check` reads the metadata itself: an oracle independent of how the environment was composed."""
    done = environment(extra).pip("check")
    assert done.returncode == 0, done.stdout


def test_pip_check_sees_a_missing_distribution(environment):
    """The check above can fail: without one of its dependencies the base install is broken."""
    here = environment("")
    (metadata,) = here.root.glob("lib/python*/site-packages/msgspec-*.dist-info")
    target = metadata.readlink()
    metadata.unlink()
    try:
        done = here.pip("check")
    finally:
        metadata.symlink_to(target)
    assert done.returncode != 0
    assert "msgspec" in done.stdout


@pytest.mark.parametrize(
    ("installed", "arguments", "missing"),
    [
        ("", ["collect"], "collector"),
        ("", ["runs"], "collector"),
        ("", ["judge", "--all"], "collector"),
        ("", ["db", "check"], "collector"),
        ("", ["demo"], "lab"),
        ("probes", ["collect"], "collector"),
        ("collector", ["demo"], "lab"),
    ],
)
def test_missing_extra_is_a_sentence(installed, arguments, missing, environment, tmp_path):
    done = environment(installed).command(*arguments, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"pip install 'learnmech[{missing}]'" in " ".join(said.split())
    assert "Traceback" not in said


def test_base_lists_laws(environment, tmp_path):
    done = environment("").command("laws", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for law in ("edge_of_stability", "gradient_noise_scale", "rotational_equilibrium"):
        assert law in done.stdout


TRAINING_RUN = """
import sys, torch
from learnmech.probes import Recorder, WeightDynamics, every

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batch = (torch.randn(8, 4), torch.randn(8, 1))

def loss_fn(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1))], sink={sink!r}) as recorder:
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        recorder.after_step(batch, loss)
assert "sqlalchemy" not in sys.modules
print("trained")
"""


@pytest.mark.parametrize("sink", ["spool:kept", "sqlite:///run.db"])
def test_probes_train_and_measure(sink, environment, tmp_path):
    """Without the collector a SQL sink is one warning that says what to install; measurements wait in the spool."""
    done = environment("probes").run(TRAINING_RUN.format(sink=sink), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("trained\n")
    segments = list(tmp_path.rglob("*.seg"))
    assert segments
    assert sum(segment.stat().st_size for segment in segments) > 0
    if sink.startswith("sqlite"):
        assert "pip install 'learnmech[collector]'" in done.stderr
        assert not (tmp_path / "run.db").exists()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answer(url: str, process: subprocess.Popen[str], patience: float = 60) -> tuple[int, bytes]:
    """The answer of a server that may still be starting."""
    give_up = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.URLError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.1)


@pytest.mark.parametrize("extra", ["collector"])
def test_collector_serves(extra, environment, tmp_path):
    """The service runs on a machine without torch, page included: the page's files are part of every install."""
    port = _free_port()
    command = [
        environment(extra).root / "bin" / "learnmech",
        "collect",
        "--db",
        "sqlite:///runs.db",
        "--port",
        str(port),
    ]
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert _answer(f"http://127.0.0.1:{port}/healthz", process)[0] == 200
            status, page = _answer(f"http://127.0.0.1:{port}/", process)
            assert status == 200
            assert b"<html" in page
            assert json.loads(_answer(f"http://127.0.0.1:{port}/v1/runs", process)[1]) == {"runs": []}
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), said
    assert (tmp_path / "runs.db").exists()


def test_postgres_brings_its_driver(environment, tmp_path):
    """A server that is not there is a refusal of the database, not of the import system."""
    code = """
import psycopg
from learnmech.collector.store import Store
try:
    Store.open("postgresql+psycopg://nobody:secret@127.0.0.1:1/none?connect_timeout=2")
except Exception as error:
    print(type(error).__name__, error)
else:
    raise SystemExit("opened a database that does not exist")
"""
    done = environment("postgres").run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No module" not in done.stdout
    assert "secret" not in done.stdout


def test_dashboards_bring_the_page(environment, tmp_path):
    code = """
from importlib.metadata import entry_points
(page,) = entry_points(group="learnmech.pages", name="live")
folder = page.load()()
assert (folder / "index.html").is_file(), sorted(folder.iterdir())
print(folder)
"""
    here = environment("dashboards")
    done = here.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(here.root))
    assert here.command("dashboards", "--help", cwd=tmp_path).returncode == 0


def test_lab_offers_the_demo(environment, tmp_path):
    done = environment("lab").command("demo", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--keep" in done.stdout


def test_what_the_extras_bring(closure: Callable[[str], set[str]]):
    """The closure itself, by distribution name: readable when it changes."""
    assert closure("") < closure("probes")
    assert closure("") < closure("collector") < closure("postgres") < closure("all")
    assert closure("dashboards") == closure("")
    assert closure("lab") == closure("probes") | closure("collector") | closure("lab")
    assert closure("all") == closure("lab") | closure("postgres")
    assert "torch" in closure("probes")
    assert not {"torch", "numpy"} & closure("postgres")
    assert not any(name in closure("all") for name in ("torchvision", "pytest", "pyhessian"))


def test_every_extra_is_covered(wheel_requirements: list[str], wheel: Path):
    import zipfile
    from email.parser import HeaderParser

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        provided = HeaderParser().parsestr(archive.read(name).decode()).get_all("Provides-Extra")
    assert set(provided or []) == set(ABSENT) - {""} == set(PARTS) - {""}
