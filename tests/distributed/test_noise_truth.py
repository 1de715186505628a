"""Noise from the processes of a training: unbiased, and as sure as it says; problems are in `probes/noise/heads.py`."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def heads():
    path = Path(__file__).parents[1] / "probes" / "noise" / "heads.py"
    spec = importlib.util.spec_from_file_location("noise_heads", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("problem", ["gaussian", "network"])
def test_unbiased_and_as_sure_as_it_says(group, heads, problem):
    found = group("noise_truth", 2)[0][problem]
    print("ranks", problem, found)
    assert found["methods"] == {"ranks"}
    heads.check(found)
