"""The probes of a run: the default set, and what a user's list must satisfy."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from learnmech.probes.gradient_noise import GradientNoiseScale
from learnmech.probes.probe import Probe
from learnmech.probes.sharpness import Sharpness
from learnmech.probes.vitals import Vitals
from learnmech.probes.weight_dynamics import WeightDynamics


def default_probes() -> list[Probe]:
    """Return the probes of a run that names none: each as often as the budget allows."""
    return [Sharpness(), GradientNoiseScale(), WeightDynamics()]


def probe_set(probes: Iterable[Probe] | None) -> list[Probe]:
    """Return the probes of a run, with `Vitals` among them.

    Raises:
        TypeError: Something is not a probe.
        ValueError: Two probes have one name.
    """
    if probes is not None and (isinstance(probes, str | Mapping) or not isinstance(probes, Iterable)):
        came, example = repr(probes), "[Sharpness(every(20)), WeightDynamics()]"
        if isinstance(probes, Probe):
            came, example = f"one {type(probes).__name__}", f"[{type(probes).__name__}(...)]"
        raise TypeError(f"probes is {came}; expected a list of probes, such as {example}")
    found = default_probes() if probes is None else list(probes)
    for probe in list[Any](found):
        if isinstance(probe, type) or not isinstance(probe, Probe):
            came = f"the class {probe.__name__}" if isinstance(probe, type) else repr(probe)
            raise TypeError(
                f"probes holds {came}; expected probes such as [Sharpness(every(20)), WeightDynamics()]: objects with "
                "name, schedule and measure(view)"
            )
    if not any(isinstance(probe, Vitals) for probe in found):
        found.append(Vitals())
    for probe in list[Any](found):
        followed = getattr(probe, "of", None)
        if followed is not None and not any(other is followed for other in found):
            raise ValueError(
                f"{probe.name} follows {followed.name!r}, which is not among the probes; expected both, such as "
                f"one = Sharpness(every(100)); probes=[one, {type(probe).__name__}(every(10), of=one)]"
            )
    twice = [name for name, count in Counter(probe.name for probe in found).items() if count > 1]
    if twice:
        raise ValueError(
            f"two probes are called {twice[0]!r}; expected unique names: give one of them name=..., such as "
            f"name={twice[0] + '_2'!r}"
        )
    return found
