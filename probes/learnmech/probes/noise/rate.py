"""The learning rate in the temperature of SGD: one number, if all parameters are trained alike."""

import math

import torch
from torch import Tensor

from learnmech.laws.batch_size import effective_learning_rate
from learnmech.probes.probe import TrainingView


def rate_of(view: TrainingView) -> float | None:
    """Return eta (1 - tau) / (1 - mu) if all parameters are trained by noisy SGD with one value; None if not."""
    if view.full_batch or not all(isinstance(optimizer, torch.optim.SGD) for optimizer in view.optimizers):
        return None
    groups = [group for optimizer in view.optimizers for group in optimizer.param_groups if group["params"]]
    if any(isinstance(group["lr"], Tensor) for group in groups):
        return None  # it is on the device: to read it would wait
    if any(not 0.0 <= group["momentum"] < 1.0 for group in groups):
        return None  # the sum of past gradients has no end
    rates = {effective_learning_rate(group["lr"], group["momentum"], group["dampening"]) for group in groups}
    return rates.pop() if len(rates) == 1 and all(map(math.isfinite, rates)) else None
