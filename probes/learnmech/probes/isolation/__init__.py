"""Isolation: a training step as a pure function, with every side effect undone.

`isolated(source, work)` gives `work` a `PureLoss` over fresh leaves and leaves weights, buffers, gradients, optimizer,
random streams, Python state, logs and the batch byte for byte as they were.
"""

from learnmech.probes.isolation.flag import is_probing
from learnmech.probes.isolation.refusal import Refusal, Skip
from learnmech.probes.isolation.replay import PureLoss, isolated
from learnmech.probes.isolation.source import (
    FunctionSource,
    LossFunction,
    Source,
    TrainingStepSource,
    refuse_unreplayable,
)

__all__ = [
    "FunctionSource",
    "LossFunction",
    "PureLoss",
    "Refusal",
    "Skip",
    "Source",
    "TrainingStepSource",
    "is_probing",
    "isolated",
    "refuse_unreplayable",
]
