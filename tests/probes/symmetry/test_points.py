"""How many numbers a measurement records: those that the probe's docstring and docs/symmetries.md name."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every
from learnmech.probes.symmetries import Symmetries


class Encoder(nn.Module):
    """The layers of the transformer of `benchmarks/models.py`, narrower."""

    def __init__(self, blocks):
        super().__init__()
        self.embed, self.place = nn.Embedding(29, 16), nn.Parameter(0.02 * torch.randn(17, 16))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(blocks)
        )
        self.head = nn.Linear(16, 29)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    ("make", "kinds", "in_blocks"),
    [
        (lambda _: Encoder(2), 4, 7),
        (lambda _: Encoder(12), 4, 37),
        (lambda transformer: transformer(torch.float32), 6, 9),
        (lambda transformer: transformer(torch.float32, blocks=12), 6, 39),
    ],
    ids=["2 blocks", "12 blocks", "RMSNorm, 2 blocks", "RMSNorm, 12 blocks"],
)
def test_points_per_measurement(spool, transformer, tokens, optimizer, make, kinds, in_blocks):
    torch.manual_seed(0)
    model = make(transformer)
    steps = optimizer(model.parameters(), lr=0.01)
    probe = Symmetries(every(1), per_block=True)
    with Recorder(model, steps, tokens.loss, [probe], sink=spool.url, budget=0, strict=True) as recorder:
        for step in range(7):
            batch = tokens.batch(step)
            steps.zero_grad()
            loss = tokens.loss(model, batch)
            loss.backward()
            recorder.after_backward(batch)
            steps.step()
            recorder.after_step(batch, loss)
    last = [frame for frame in spool().frames if frame.step == 6]
    ours = [m for frame in last for m in frame.measurements if m.scope.startswith("symmetry:")]
    each = 5 if optimizer is torch.optim.SGD else 3
    assert len([m for m in ours if "/" not in m.scope]) == each * kinds
    assert len(ours) == each * (kinds + in_blocks)
    assert each * kinds <= 40
