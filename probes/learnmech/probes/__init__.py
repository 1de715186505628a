"""Probes: measure the macroscopic state of a training without changing it.

`Recorder` measures any loop, `learnmech.probes.lightning.MechanicsMonitor` measures Lightning; both take the same
probes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnmech.probes.batch_sharpness import BatchSharpness as BatchSharpness
    from learnmech.probes.critical_sharpness import CriticalSharpness as CriticalSharpness
    from learnmech.probes.gradient_noise import GradientNoiseScale as GradientNoiseScale
    from learnmech.probes.hessian_eigenvalues import HessianEigenvalues as HessianEigenvalues
    from learnmech.probes.hessian_noise_scale import HessianNoiseScale as HessianNoiseScale
    from learnmech.probes.hessian_spectrum import HessianSpectrum as HessianSpectrum
    from learnmech.probes.isolation import is_probing as is_probing
    from learnmech.probes.loss_change import LossChange as LossChange
    from learnmech.probes.probe import BaseProbe as BaseProbe
    from learnmech.probes.probe import Moment as Moment
    from learnmech.probes.probe import Probe as Probe
    from learnmech.probes.probe import TrainingView as TrainingView
    from learnmech.probes.recorder import Recorder as Recorder
    from learnmech.probes.schedule import Schedule as Schedule
    from learnmech.probes.schedule import at as at
    from learnmech.probes.schedule import every as every
    from learnmech.probes.schedule import log_spaced as log_spaced
    from learnmech.probes.schedule import on_demand as on_demand
    from learnmech.probes.sharpness import Sharpness as Sharpness
    from learnmech.probes.sharpness_reading import SharpnessReading as SharpnessReading
    from learnmech.probes.symmetries import Symmetries as Symmetries
    from learnmech.probes.vitals import Vitals as Vitals
    from learnmech.probes.weight_dynamics import WeightDynamics as WeightDynamics

_HOMES = {
    "Recorder": "recorder",
    "Sharpness": "sharpness",
    "SharpnessReading": "sharpness_reading",
    "BatchSharpness": "batch_sharpness",
    "CriticalSharpness": "critical_sharpness",
    "LossChange": "loss_change",
    "HessianEigenvalues": "hessian_eigenvalues",
    "HessianSpectrum": "hessian_spectrum",
    "GradientNoiseScale": "gradient_noise",
    "HessianNoiseScale": "hessian_noise_scale",
    "WeightDynamics": "weight_dynamics",
    "Symmetries": "symmetries",
    "Vitals": "vitals",
    "every": "schedule",
    "at": "schedule",
    "log_spaced": "schedule",
    "on_demand": "schedule",
    "Schedule": "schedule",
    "Probe": "probe",
    "BaseProbe": "probe",
    "Moment": "probe",
    "TrainingView": "probe",
    "is_probing": "isolation",
}

__all__ = [
    "Recorder",
    "Sharpness",
    "SharpnessReading",
    "BatchSharpness",
    "CriticalSharpness",
    "LossChange",
    "HessianEigenvalues",
    "HessianSpectrum",
    "GradientNoiseScale",
    "HessianNoiseScale",
    "WeightDynamics",
    "Symmetries",
    "Vitals",
    "every",
    "at",
    "log_spaced",
    "on_demand",
    "Schedule",
    "Probe",
    "BaseProbe",
    "Moment",
    "TrainingView",
    "is_probing",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package itself loads no torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
