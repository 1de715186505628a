"""What the demo trains, in two sizes. The README beside this file has the measurements behind the numbers."""

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Full-batch gradient descent on handwritten digits, with the learning rate halved on the way.

    Attributes:
        digits: Training images.
        width: Units in each of the two hidden layers.
        learning_rate: Learning rate of the first part; half of it in the second.
        halved_at: Step of the first update with half the learning rate.
        steps: Updates.
        every: Steps between measurements.
    """

    digits: int
    width: int = 128
    learning_rate: float = 0.4
    halved_at: int
    steps: int
    every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """AdamW on a character transformer.

    Attributes:
        characters: Length of the text.
        context: Characters per window.
        batch: Windows per batch.
        width: Size of the residual stream.
        hidden: Units of each SwiGLU.
        learning_rate: Learning rate, constant: equilibrium is a law of constant rates.
        weight_decay: Decay of the matrices; gains of norms are not decayed.
        steps: Updates.
        every_weights: Steps between measurements of weight dynamics.
        every_noise: Steps between measurements of the gradient noise.
        every_sharpness: Steps between measurements of the sharpness.
    """

    characters: int = 1_000_000
    context: int
    batch: int
    width: int
    hidden: int = 128
    learning_rate: float
    weight_decay: float = 1.0
    steps: int
    every_weights: int
    every_noise: int
    every_sharpness: int

    @property
    def relaxation(self) -> int:
        """Steps in which the squared norm of a scale-invariant matrix forgets: 1/(2 eta lambda)."""
        return math.ceil(1.0 / (2.0 * self.learning_rate * self.weight_decay))


@dataclass(frozen=True, slots=True)
class Settings:
    """Both runs of the demo."""

    descent: Descent
    language: Language


FULL: Final = Settings(
    Descent(digits=500, halved_at=600, steps=4000, every=20),
    Language(
        context=48,
        batch=32,
        width=64,
        learning_rate=5e-3,
        steps=1200,
        every_weights=10,
        every_noise=10,
        every_sharpness=150,
    ),
)

QUICK: Final = Settings(
    Descent(digits=500, halved_at=400, steps=1800, every=20),
    Language(
        context=32,
        batch=32,
        width=48,
        learning_rate=1e-2,
        steps=320,
        every_weights=5,
        every_noise=5,
        every_sharpness=100,
    ),
)
