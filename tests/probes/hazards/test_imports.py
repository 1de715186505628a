"""Lightning that cannot be imported, for whatever reason, is in nobody's way (hazard 31)."""

import os
import subprocess
import sys

STUB = 'raise RuntimeError("operator torchvision::nms does not exist")\n'


def test_a_broken_lightning_is_no_import_error(tmp_path):
    for package in ("lightning", "pytorch_lightning"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(STUB, encoding="utf-8")
    code = """
import learnmech.probes, learnmech.wire, learnmech.laws, sys
assert not [name for name in sys.modules if "lightning" in name]
try:
    import learnmech.probes.lightning
except ImportError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "pip install pytorch-lightning" in done.stdout
    assert done.stdout.count("torchvision::nms") == 2, "each package's own reason"
