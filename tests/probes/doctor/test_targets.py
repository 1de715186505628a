"""What `module:name` may stand for."""

import sys

import pytest

from learnmech.probes.doctor import targets

FACTORIES = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

class Holder:
    @staticmethod
    def build():
        model = torch.nn.Linear(4, 1)
        data = torch.utils.data.TensorDataset(torch.randn(64, 4))
        loader = torch.utils.data.DataLoader(data, batch_size=16)
        return model, torch.optim.SGD(model.parameters(), lr=0.1), lambda model, b: model(b[0]).square().mean(), loader

def nothing():
    return 7

value = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "factories.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("factories", None)


@pytest.mark.parametrize(
    ("target", "data", "said"),
    [
        ("factories:Net", None, "needs width.*def build"),
        ("factories:Nut", None, "has no 'Nut'; it has .*Net"),
        ("factories:value", None, "is int; expected a class or a function"),
        ("factories:nothing", None, "returned int; expected a LightningModule.*def build"),
        ("fictories:Net", None, "there is no module 'fictories'"),
    ],
)
@pytest.mark.usefixtures("factories")
def test_what_cannot_be_trained_is_a_sentence_with_an_example(target, data, said):
    with pytest.raises(targets.Unusable, match=f"(?s){said}"):
        targets.train(target, data)


def test_a_module_needs_data(doctor):
    doctor.write("mine.py", "import pytorch_lightning as pl\n\nclass Net(pl.LightningModule):\n    pass\n")
    done = doctor("mine:Net")
    assert done.returncode == 2
    assert "random data would say nothing" in done.stderr
    assert "--data MODULE:FUNCTION" in done.stderr
    assert "Traceback" not in done.stderr
    assert doctor.left() == ["mine.py"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_factory_of_a_loop(doctor):
    doctor.write("factories.py", FACTORIES)
    code, report = doctor.json("factories:Holder.build")
    assert code == 0
    assert report["training"]["model"] == "Linear"
    assert report["harmless"]["identical"] is True
    assert doctor.left() == ["factories.py"]
