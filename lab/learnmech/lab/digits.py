"""Handwritten digits and a tanh network: the classic setting of the edge of stability, in seconds of CPU time."""

from dataclasses import dataclass
from typing import Final

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import one_hot

CLASSES: Final = 10
FEATURES: Final = 64
AVAILABLE: Final = 1797


@dataclass(frozen=True, slots=True)
class Digits:
    """A set of pre-processed digits.

    Attributes:
        inputs: Images, [n, 64].
        targets: One-hot classes, [n, 10].
    """

    inputs: Tensor
    targets: Tensor

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """The whole set as one batch."""
        return self.inputs, self.targets


def load(n: int = 500, seed: int = 0) -> Digits:
    """Load `n` of the 1797 digits that come with scikit-learn, in a seeded order.

    Pixels are divided by 16, every feature's mean over all 1797 images is removed, and the result is divided by the
    standard deviation of the pixels (0.376). Sharpness depends on each of these steps, so they are part of the setting.

    Raises:
        ValueError: `n` is not between 1 and 1797.
    """
    if not 1 <= n <= AVAILABLE:
        raise ValueError(f"load(n={n}): expected 1 to {AVAILABLE} digits")
    images, labels = load_digits(return_X_y=True)
    pixels = torch.as_tensor(images, dtype=torch.float64) / 16  # [1797, 64]
    inputs = ((pixels - pixels.mean(dim=0)) / pixels.std()).float()
    targets = one_hot(torch.as_tensor(labels, dtype=torch.int64), CLASSES).float()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:n]
    return Digits(inputs[order], targets[order])


def tanh_network(width: int = 32, hidden: int = 2, seed: int = 0) -> nn.Sequential:
    """Build a network 64 - width - ... - width - 10 with tanh and torch's own initial weights.

    Args:
        width: Units per hidden layer.
        hidden: Hidden layers.
        seed: Seed of the weights; the global generator is left as it was.

    Raises:
        ValueError: There would be no hidden layer, or an empty one.
    """
    if width < 1 or hidden < 1:
        raise ValueError(f"tanh_network(width={width}, hidden={hidden}): expected at least 1 of each")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in in [FEATURES] + [width] * (hidden - 1):
            layers += [nn.Linear(fan_in, width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return half the squared distance to the one-hot target, summed over classes and averaged over images."""
    inputs, targets = batch
    errors: Tensor = model(inputs) - targets
    return 0.5 * errors.square().sum(dim=1).mean()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Return the share of images whose largest output is their class."""
    with torch.no_grad():
        return float((model(digits.inputs).argmax(dim=1) == digits.targets.argmax(dim=1)).float().mean())
