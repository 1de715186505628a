"""Two measured trainings in one process, step by step in turns: neither is touched by the other's measurements."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, WeightDynamics, every


def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class Training:
    """One training with streams of its own, so that turns do not matter."""

    def __init__(self, seed, folder=None):
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        probes = [Sharpness(every(1), max_products=4), GradientNoiseScale(every(1)), WeightDynamics(every(1))]
        sink = f"spool:{folder}"
        self.recorder = folder and Recorder(self.model, self.optimizer, loss_fn, probes, sink=sink).__enter__()

    def step(self):
        batch = (torch.randn(8, 4, generator=self.generator), torch.randint(0, 2, (8,), generator=self.generator))
        self.optimizer.zero_grad()
        loss = loss_fn(self.model, batch)
        loss.backward()
        self.optimizer.step()
        if self.recorder:
            self.recorder.after_step(batch, loss)

    def end(self, digest):
        if self.recorder:
            self.recorder.close()
        return digest([self.model.state_dict(), self.optimizer.state_dict()])


def test_two_recorders_in_turns(digest, recorded, tmp_path):
    def train(measured):
        pair = [Training(seed, measured and tmp_path / str(seed)) for seed in (1, 2)]
        for _ in range(6):
            for training in pair:
                training.step()
        return [training.end(digest) for training in pair]

    assert train(measured=True) == train(measured=False)
    for seed in (1, 2):
        run = recorded(tmp_path / str(seed))
        assert len(run.runs) == 1
        assert len(run.values("sharpness")) == 6
