"""DataLoader workers begin while a monitor delivers: no worker hangs, says anything, or takes anything along."""

import gc
import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Collects(Dataset):
    """Collects garbage in the worker, where finalizers of forked objects would run (hazard 27)."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(24, 4, generator=generator), torch.randint(0, 2, (24,), generator=generator)
        self.owner, self.collected = os.getpid(), False

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if os.getpid() != self.owner and not self.collected:
            self.collected = True
            gc.collect()  # once a worker: it takes a tenth of a second
        return self.x[index] + 0.01 * torch.rand(()), self.y[index]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sink", ["spool", "collector that never answers"])
def test_training_with_workers_is_the_same(sink, fit, outcome, monitor, collector):
    def loader():
        return DataLoader(
            Collects(), batch_size=4, shuffle=True, num_workers=2, timeout=30, multiprocessing_context="fork"
        )

    url = None if sink == "spool" else collector("hold").url
    watched = fit([monitor(sink=url)], loader=loader(), max_epochs=2)
    assert outcome(watched) == outcome(fit(loader=loader(), max_epochs=2))


@pytest.mark.usefixtures("hasty")
def test_training_with_spawned_workers_is_the_same(fit, outcome, monitor):
    """Workers that begin anew: what they are sent holds nothing of the monitor."""

    def loader():
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(24, 4, generator=generator), torch.randint(0, 2, (24,), generator=generator))
        return DataLoader(data, batch_size=4, shuffle=True, num_workers=1, timeout=60, multiprocessing_context="spawn")

    assert outcome(fit([monitor()], loader=loader())) == outcome(fit(loader=loader()))
