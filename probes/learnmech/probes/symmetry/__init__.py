"""Symmetries of the loss: found in any model by structure, certified by measurement, and what follows from them.

`candidates` finds what may be a symmetry, `residual` and `certificates` decide, `drift` and `conservation` predict what
updates do to the charges, `rescaling` tests on the loss itself. Laws and other probes ask `certified(view)`.
"""

from learnmech.probes.symmetry.candidates import candidates
from learnmech.probes.symmetry.certificates import Certificates, certified, scale_invariant
from learnmech.probes.symmetry.conservation import (
    charge_recursion,
    decaying_charge,
    decaying_shift,
    oscillating_charge,
)
from learnmech.probes.symmetry.drift import LinearUpdate, predicted_drift, sgd_update
from learnmech.probes.symmetry.group import Group, Kind, Part
from learnmech.probes.symmetry.invariance import Invariant, ScaleInvariance
from learnmech.probes.symmetry.rescaling import Rescaled, rescaling

__all__ = [
    "Certificates",
    "Group",
    "Invariant",
    "Kind",
    "LinearUpdate",
    "Part",
    "Rescaled",
    "ScaleInvariance",
    "candidates",
    "certified",
    "charge_recursion",
    "decaying_charge",
    "decaying_shift",
    "oscillating_charge",
    "predicted_drift",
    "rescaling",
    "scale_invariant",
    "sgd_update",
]
