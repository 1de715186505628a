"""A text that every machine has: the source of Python's own standard library, character by character."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

ALPHABET: Final = "\n\t" + "".join(map(chr, range(32, 127)))
"""The characters that are told apart; every other one is `UNKNOWN`. Fixed, so that it is the same on every version."""

UNKNOWN: Final = len(ALPHABET)
VOCABULARY: Final = len(ALPHABET) + 1


class CorpusError(RuntimeError):
    """There is no text to train on."""


def encode(text: str) -> Tensor:
    """Return the character codes of `text`, int64 [len(text)].

    >>> encode("ab").tolist()
    [67, 68]
    """
    table = {character: code for code, character in enumerate(ALPHABET)}
    return torch.tensor([table.get(character, UNKNOWN) for character in text], dtype=torch.int64)


def decode(codes: Tensor) -> str:
    """Return the text of character codes; what is not in the alphabet comes back as U+FFFD.

    >>> decode(encode("x = 1 # é"))
    'x = 1 # \N{REPLACEMENT CHARACTER}'
    """
    return "".join((ALPHABET + "\N{REPLACEMENT CHARACTER}")[code] for code in codes.tolist())


def standard_library(limit: int = 1_000_000, folder: Path | None = None) -> str:
    """Read the top-level modules of the standard library in alphabetical order, up to `limit` characters.

    The text is the same at every call; it depends on nothing but the installed Python.

    Args:
        limit: Most characters.
        folder: Where to read, if not where `os` came from.

    Raises:
        CorpusError: There are no source files (an interpreter that ships compiled files only).
    """
    folder = folder or Path(os.__file__).resolve().parent
    text = "".join(islice(_characters(folder), limit))
    if not text:
        raise CorpusError(
            f"no .py files in {folder}: this Python ships without the source of its standard library; "
            "run the demo with an interpreter that has it"
        )
    return text


def _characters(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        yield from path.read_text(encoding="utf-8", errors="replace")


class RandomWindows(Dataset[tuple[Tensor, Tensor]]):
    """Batches of windows, each window at an independent, uniformly random place.

    Item i is a whole batch `(inputs [batch, context], next characters [batch, context])` and depends on the seed and i
    alone, so a run can be repeated or resumed. Windows are drawn with replacement: the gradients of two of them are
    independent, which is what the law of gradient noise assumes.

    Args:
        codes: The text, int64 [characters].
        context: Characters per window.
        batch: Windows per batch.
        steps: Number of batches.
        seed: Seed of all batches.

    Raises:
        ValueError: The text is too short for one window.
    """

    def __init__(self, codes: Tensor, *, context: int, batch: int, steps: int, seed: int = 0) -> None:
        if len(codes) <= context:
            raise ValueError(f"a text of {len(codes)} characters has no window of {context} and the one that follows")
        self._codes = codes
        self._offsets = torch.arange(context + 1)
        self._batch = batch
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        # One generator per batch; the multiplier keeps the batches of neighbouring seeds apart.
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + index)
        starts = torch.randint(len(self._codes) - len(self._offsets) + 1, (self._batch,), generator=generator)
        windows = self._codes[starts[:, None] + self._offsets]  # [batch, context + 1]
        return windows[:, :-1], windows[:, 1:]
