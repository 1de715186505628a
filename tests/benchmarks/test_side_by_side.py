"""The whole comparison on tiny networks, and its verdicts on made-up runs. Peers take part if they are here."""

import dataclasses
import io
import subprocess
import xml.etree.ElementTree as ET

import pytest
import torch
from benchmarks import curvature, models, tracking
from benchmarks.goals import goals
from benchmarks.measuring import Spent
from benchmarks.picture import draw
from benchmarks.report import markdown, table
from benchmarks.results import Network, Results
from benchmarks.tools import Reading
from benchmarks.tracking import COLD, EIGSH, OURS, PYHESSIAN, Track
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.progress import Progress


@pytest.fixture(scope="module")
def results():
    """A run of everything, each network a tenth of its size."""
    make = {
        "mlp": lambda: models.mlp(16),
        "cnn": lambda: models.cnn(4),
        "transformer": lambda: models.Transformer(width=16, heads=2, blocks=1),
    }
    tasks = {name: dataclasses.replace(models.TASKS[name], make=made, batch=4) for name, made in make.items()}
    plan = curvature.Plan(steps=4, every=2, middle=2, repeats=1, memory=False)
    with Progress(console=Console(file=io.StringIO())) as progress:
        return curvature.run(plan, curvature.Ticker(progress), tasks=tasks)


def test_references_agree(results):
    for network in results.networks:
        assert [reading.step for reading in network.readings] == [0, 2]
        assert all(reading.agreement < 1e-6 for reading in network.readings), network.name


def test_ours_is_right_everywhere(results):
    for network in results.networks:
        for reading in network.readings:
            rows = {row.tool: row for row in reading.rows}
            assert not any(row.trouble for name, row in rows.items() if name.startswith("learnmech"))
            assert rows["learnmech, cold"].worst(reading.truth) < 1e-2, network.name
            assert ("learnmech, warm" in rows) == (reading.step > 0)
        ours = next(track for track in network.tracks if track.tool == OURS)
        assert network.steps == [0, 2, 4]
        assert max(ours.errors(network.truths)) < 0.05
        assert len(ours.spent) == 3


def test_no_tool_fails_where_it_is_helped(results):
    assert not [
        (network.name, row.tool, row.trouble)
        for network in results.networks
        for reading in network.readings
        for row in reading.rows
        if row.trouble
    ]
    assert not [track.trouble for network in results.networks for track in network.tracks if track.trouble]


def test_tables_and_picture(results):
    text = markdown(results)
    for name in ("mlp", "cnn", "transformer", "learnmech, warm", "Along a run", "What was to be reached"):
        assert name in text
    assert "nan" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.strip().splitlines()}) == 1, block
    root = ET.fromstring(draw(results))
    assert root.tag.endswith("svg")
    curves = [element for element in root if element.tag.endswith("polyline")]
    assert len(curves) == 2 * sum(len(network.tracks) for network in results.networks)


def test_written_where_asked(results, tmp_path):
    curvature.write(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"curvature.md", "curvature.svg"}


def test_manners_have_a_column_a_tool(results):
    assert results.manners[0][:2] == ["", "learnmech"]
    assert {len(row) for row in results.manners} == {len(results.manners[0])}
    assert [row[1] for row in results.manners[1:4]] == ["right"] * 3
    assert results.manners[-1][1] == "nothing changed"


def track(tool, products, values, cpu):
    return Track(tool, [Reading(value, n) for n, value in zip(products, values, strict=True)], [Spent(cpu, cpu)] * 3)


def made_up(products, values, cpu):
    return Network(
        "mlp", 10, "", 1, steps=[0, 20, 40], truths=[1.0] * 3,
        tracks=[
            track(OURS, products, values, cpu),
            track(COLD, [9, 9, 9], [1.0] * 3, 2.0),
            track(PYHESSIAN, [12, 12, 12], [1.0, 1.02, 1.0], 4.0),
            track(EIGSH, [21, 21, 21], [1.0] * 3, 8.0),
        ],
    )  # fmt: skip


def test_goals_that_are_met():
    found = list(goals(made_up([9, 3, 2], [1.0, 1.005, 1.0], 1.0)))
    assert len(found) == 7
    assert all(met for _, _, met in found)
    assert "in 3 of 3; it misses 1 % in 1" in [text for _, text, _ in found]


def test_goals_that_are_missed():
    """Every one of them: too many products, an error over 1 %, more than cold, than PyHessian, than eigsh, too slow."""
    found = list(goals(made_up([22, 22, 22], [1.0, 1.05, 1.0], 2.0)))
    assert len(found) == 7
    assert not any(met for _, _, met in found)


def test_a_run_without_us_is_told_too():
    network = made_up([9, 3, 2], [1.0] * 3, 1.0)
    network.tracks[0] = Track(OURS, trouble="RuntimeError: gone")
    assert list(goals(network)) == [("a measurement at every step", "RuntimeError: gone", False)]
    results = Results("", "", 20, [network])
    assert "RuntimeError: gone" in markdown(results)
    ET.fromstring(draw(results))


def test_time_ratio_is_a_median_of_ratios():
    ours, theirs = Track(OURS), Track(PYHESSIAN)
    ours.spent = [Spent(1, 1), Spent(2, 2), Spent(10, 10)]
    theirs.spent = [Spent(4, 4), Spent(6, 6), Spent(20, 20)]
    assert tracking.time_ratio(theirs, ours) == 3


def test_cells_do_not_break_a_table():
    assert table([["a"], ["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_a_tool_that_raises_keeps_its_message():
    def broken(model, batch, seed):
        raise RuntimeError("no second derivative")

    problem = curvature.Problem("small", 0, torch.nn.Linear(2, 2), (torch.randn(4, 2), torch.randint(2, (4,))))
    tool = curvature.Tool("broken", broken)
    (row,) = curvature.side_by_side.compare(problem, [tool], repeats=2, patience=1.0, memory=False)
    assert row.trouble == "RuntimeError: no second derivative"
    network = Network("x", 1, "", 1, readings=[curvature.Reading(0, 1.0, 0.0, [row])], steps=[0], truths=[1.0])
    network.tracks = [track(OURS, [1, 1, 1], [1.0] * 3, 1.0), track(COLD, [1, 1, 1], [1.0] * 3, 1.0)]
    network.steps, network.truths = [0, 1, 2], [1.0] * 3
    assert "no second derivative" in markdown(Results("", "", 20, [network]))


def test_peers_are_pinned_apart(repository):
    """torchvision is what a peer would bring; a pin in two files would be two truths."""

    def pins(name):
        lines = (repository / name).read_text(encoding="utf-8").splitlines()
        return {
            canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line[:1] not in ("", "#")
        }

    peers = pins("benchmarks/peers.txt")
    assert all([one.operator for one in pin.specifier] == ["=="] for pin in peers.values())
    assert "torchvision" not in peers
    assert not set(peers) & set(pins("constraints.txt"))
    assert {canonicalize_name(name) for name in curvature.PEERS} <= set(peers)


def test_only_bench_brings_the_peers(repository, tmp_path):
    def steps(target):
        command = ["make", "--dry-run", target, f"VENV={tmp_path / 'none'}"]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout

    (line,) = [line for line in steps("bench").splitlines() if "peers.txt" in line]
    assert "--no-deps" in line
    assert "peers.txt" not in steps("check")
