"""`Trainer.train` of transformers in a script: followed through a callback, stopped, nothing kept."""

import pytest

SCRIPT = """
    import torch
    from torch.nn import functional
    from transformers import Trainer, TrainingArguments

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, inputs, labels):
            logits = self.layer(inputs)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    data = [{"inputs": torch.randn(4), "labels": int(torch.randint(2, ()))} for _ in range(64)]
    arguments = TrainingArguments(
        "out", max_steps=5, per_device_train_batch_size=8, save_steps=1, use_cpu=True, gradient_accumulation_steps=2
    )
    Trainer(Net(), arguments, train_dataset=data).train()
    open("after", "w").close()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_script_is_followed_stopped_and_compared(doctor, by_name):
    doctor.write("train.py", SCRIPT)
    code, report = doctor.json("train.py")
    assert code == 0, report
    assert report["complete"], "max_steps=5 is no bound of a dry run"
    assert report["training"]["trainer"].startswith("transformers ")
    assert report["training"]["accumulation"] == 2
    assert report["harmless"]["identical"] is True
    assert by_name(report)["Sharpness"]["works"] == "yes"
    assert by_name(report)["GradientNoiseScale"]["methods"], report
    assert "callbacks=[MechanicsCallback()]" in report["advice"][0]
    assert doctor.left() == ["train.py"]
