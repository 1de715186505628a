"""An adapter is a thin shell around the recorder, and nobody pays for one that is not used."""

import subprocess
import sys

import pytest

ADAPTERS = ("huggingface", "huggingface_step", "huggingface_loss", "huggingface_logs", "fabric")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_has_at_most_156_lines(name, repository):
    path = repository / "probes" / "learnmech" / "probes" / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 156


def test_without_their_packages_one_import_fails_with_a_sentence():
    code = """
import sys
for name in ("transformers", "accelerate", "lightning"):
    sys.modules[name] = None
import learnmech.probes.recorder, learnmech.probes.fabric
from learnmech.probes import *
try:
    import learnmech.probes.huggingface
except ImportError as error:
    assert "pip install transformers accelerate" in str(error), error
else:
    raise SystemExit("imported what is not there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recorder_imports_no_trainer():
    code = """
import sys
import learnmech.probes.recorder, learnmech.probes.fabric
assert not {"transformers", "accelerate", "lightning", "pytorch_lightning"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
