"""A loss function without `return` is the likeliest mistake: it is said, not passed over."""

import torch

from learnmech.probes import Recorder, Sharpness, every


def test_a_loss_function_that_returns_nothing_is_a_failure_with_its_cause(quartic, spool):
    model, batch = quartic.model(), torch.zeros(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Recorder(model, optimizer, lambda model, batch: None, [Sharpness(every(1))], sink=spool.url) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            quartic.loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    assert "is a `return` missing" in spool().of_kind("probe_failed")[0].message
    assert spool().of_kind("probe_disabled")
