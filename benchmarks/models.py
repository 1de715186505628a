"""The three networks that every benchmark here measures, with batches of random numbers and of real data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learnmech.lab import digits
from learnmech.lab.stdlib_text import VOCABULARY, RandomWindows, encode, standard_library

Batch = tuple[Tensor, Tensor]

LENGTH = 64  # characters in a window
CHARACTERS = 1_000_000  # of the standard library's source: the text to train on


class Transformer(nn.Module):
    """Pre-norm blocks over windows of characters, causal, without dropout."""

    def __init__(
        self, width: int = 128, heads: int = 4, vocabulary: int = VOCABULARY, length: int = LENGTH, blocks: int = 2
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits. [batch, length, vocabulary]"""
        x = self.embed(tokens) + self.place
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(x)


def mlp(width: int = 256) -> nn.Module:
    """Return a tanh network of 85 thousand parameters on 64 features."""
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def cnn(width: int = 32) -> nn.Module:
    """Return a CNN of 99 thousand parameters with BatchNorm, for images of 3 x 16 x 16."""
    layers: list[nn.Module] = []
    for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 4, 10))


class CrossEntropy(nn.CrossEntropyLoss):
    """The mean cross-entropy over examples and, where there are any, over positions."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar from logits [..., classes] and classes [...]."""
        return super().forward(logits.flatten(0, -2), targets.flatten())


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy."""
    return CrossEntropy()(model(batch[0]), batch[1])


def random_batch(name: str) -> Batch:
    """Return random numbers of the right shape: enough to measure costs."""
    if name == "mlp":
        return torch.randn(128, 64), torch.randint(10, (128,))
    if name == "cnn":
        return torch.randn(64, 3, 16, 16), torch.randint(10, (64,))
    tokens = torch.randint(VOCABULARY, (16, LENGTH + 1))
    return tokens[:, :-1], tokens[:, 1:]


def pixels(batch: int, seed: int, *, images: bool) -> Iterator[Batch]:
    """Draw batches of handwritten digits for ever, as 64 features or as images of 3 x 16 x 16."""
    found = digits.load(digits.AVAILABLE)
    inputs, targets = found.inputs, found.targets.argmax(1)
    if images:
        inputs = nn.functional.interpolate(inputs.view(-1, 1, 8, 8), scale_factor=2.0).expand(-1, 3, -1, -1)
    drawn = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(inputs), (batch,), generator=drawn)
        yield inputs[rows].contiguous(), targets[rows]


def windows(batch: int, seed: int) -> Iterator[Batch]:
    """Draw batches of windows of the standard library's source for ever."""
    text = RandomWindows(encode(standard_library(CHARACTERS)), context=LENGTH, batch=batch, steps=2**31, seed=seed)
    yield from (text[index] for index in range(len(text)))


@dataclass(frozen=True)
class Task:
    """A network, what it is trained on, and how.

    Attributes:
        make: Builds the network.
        data: Draws batches of a size under a seed.
        batch: Examples of a training batch, and of the fixed batch to measure on.
        optimizer: Makes the optimizer.
        recipe: The optimizer in words.
    """

    make: Callable[[], nn.Module]
    data: Callable[[int, int], Iterator[Batch]]
    batch: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    recipe: str


TASKS: dict[str, Task] = {
    "mlp": Task(
        mlp,
        lambda batch, seed: pixels(batch, seed, images=False),
        128,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        "SGD, lr 0.1",
    ),
    "cnn": Task(
        cnn,
        lambda batch, seed: pixels(batch, seed, images=True),
        32,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
        "SGD, lr 0.05",
    ),
    "transformer": Task(
        Transformer, windows, 8, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3), "AdamW, lr 1e-3"
    ),
}
