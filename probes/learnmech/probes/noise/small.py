"""Batches too small to be cut: one may be the end of an epoch, several in a row are all there will be."""

from torch import nn

from learnmech.probes.context import batch_coupling
from learnmech.probes.isolation import Refusal, Skip

PATIENCE = 3
"""Batches in a row too small to be cut after which there will be none to cut."""


class SmallBatches:
    """Counts batches in a row that are too small."""

    def __init__(self) -> None:
        self._met = 0

    def look(self, model: nn.Module, examples: int | None, pieces: int, skip: str, words: str) -> int:
        """Look at a batch; return the examples that a piece needs.

        Args:
            model: The model.
            examples: Examples in the batch, None where they cannot be counted.
            pieces: Pieces that it takes at least.
            skip: What one that is too small is too small for.
            words: How many pieces those are.

        Raises:
            Skip: It is too small.
            Refusal: It is, several times in a row.
        """
        each = 2 if batch_coupling(model) else 1  # batch statistics of one example do not exist
        if examples is None or examples >= pieces * each:
            self._met = 0
            return each
        self._met += 1
        if self._met < PATIENCE:
            raise Skip(f"a batch of {examples} examples is too small to {skip}")
        raise Refusal(f"A batch of {examples} examples cannot be cut into {words} pieces.", "Use larger batches.")
