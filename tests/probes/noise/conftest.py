"""What tests of noise share: many small problems with known truth in one model."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def heads():
    """The module `heads.py`, which a scenario of several processes loads, too."""
    spec = importlib.util.spec_from_file_location("noise_heads", Path(__file__).with_name("heads.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
