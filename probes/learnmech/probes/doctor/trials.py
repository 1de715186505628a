"""The probes that a dry run tries, each watched: what it returned, what it cost, why it failed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

import learnmech.probes as library
from learnmech.probes.agenda import appetite
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import Refusal, Skip
from learnmech.probes.probe import BaseProbe, Probe, TrainingView
from learnmech.probes.probes import default_probes
from learnmech.probes.schedule import on_demand
from learnmech.probes.sharpness import Sharpness
from learnmech.probes.sharpness_reading import SharpnessReading
from learnmech.probes.vitals import Vitals
from learnmech.wire import Measurement

_WATCHED = ("prepare", "arm", "next_piece", "measure")
"""What an engine calls on a probe."""


class Trial:
    """One probe in a dry run.

    Args:
        probe: The probe; its schedule becomes one on demand, and calls of its methods are timed.
        label: What to call it.
        wanted: True if the script has it, or would have it by default.
        synchronize: Waits for the device.
    """

    def __init__(self, probe: Probe, label: str, wanted: bool, synchronize: Callable[[], None]) -> None:
        self.probe = probe
        self.label = label
        self.wanted = wanted
        self.answered = False
        self.refused = False
        self._synchronize = synchronize
        self._schedule = on_demand()
        self._seconds = 0.0
        self._touched = self._open = False
        self._uses: list[dict[str, Any]] = []
        self._found: list[Measurement] = []
        self._problem = ""
        probe.schedule = self._schedule
        for name in _WATCHED:
            method = getattr(probe, name, None)
            if method is not None:
                setattr(probe, name, self._watched(name, method))

    def ask(self) -> None:
        """Ask for a measurement, at the next step."""
        self.answered = self.refused = False
        self._open = True
        self._seconds, self._problem, self._found = 0.0, "", []
        self._schedule.request()

    def drain(self, update: int) -> bool:
        """Tell whether the probe did anything since the update before; keep a use that is complete.

        Args:
            update: The update that has ended.
        """
        touched, self._touched = self._touched, False
        if self._open and self.answered:
            self._open = False
            self._uses.append(
                {
                    "update": update,
                    "seconds": self._seconds,
                    "watches": bool(getattr(self.probe, "watches", False)),
                    "problem": self._problem,
                    "measurements": self._found,
                }
            )
        return touched

    def forget(self) -> None:
        """Let go of vectors of the model's size."""
        if isinstance(self.probe, CurvatureProbe):
            self.probe.reset()

    def document(self) -> dict[str, Any]:
        """Return what was seen, in JSON values."""
        return {
            "label": self.label,
            "name": self.probe.name,
            "wanted": self.wanted,
            "observables": list(getattr(self.probe, "observables", ())),
            "appetite": appetite(self.probe),
            "uses": [use | {"measurements": msgspec.to_builtins(use["measurements"])} for use in self._uses],
        }

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], TrainingView):
                self._overhear(args[0])
            self._touched = True
            self._synchronize()
            begin = time.perf_counter()
            try:
                returned = method(*args, **kwargs)
                if name == "measure":
                    self._found.extend(returned)
                    self.answered = True
                return returned
            except Skip:
                raise
            except Exception as error:
                self.answered, self.refused = True, isinstance(error, Refusal)
                self._problem = str(error) if self.refused else f"{type(error).__name__}: {error}"
                raise
            finally:
                self._synchronize()
                self._seconds += time.perf_counter() - begin

        return call

    def _overhear(self, view: TrainingView) -> None:
        """Listen to what is measured later, when the device has the numbers."""
        defer, found = view.defer, self._found
        if getattr(defer, "heard_by", None) is self:
            return

        def deferring(tensors: Any, finish: Callable[[list[float]], list[Measurement]]) -> None:
            def finished(numbers: list[float]) -> list[Measurement]:
                measured = finish(numbers)
                found.extend(measured)
                return measured

            defer(tensors, finished)

        deferring.heard_by = self  # type: ignore[attr-defined]  # a function may have attributes
        view.defer = deferring


def trials(own: Sequence[Probe] | None, synchronize: Callable[[], None]) -> list[Trial]:
    """Return all that there is to try: the script's probes as they are set up, and one of every other kind.

    Args:
        own: The probes of the script; None: it has none, the default set is wanted.
        synchronize: Waits for the device.
    """
    probes = list(default_probes() if own is None else own)
    wanted = {id(probe) for probe in probes}
    kinds = {type(probe) for probe in probes}
    sharpness = next((probe for probe in probes if isinstance(probe, Sharpness)), None)
    if sharpness is None:
        sharpness = Sharpness()
        probes.append(sharpness)
    if SharpnessReading not in kinds:
        # at once after the one whose eigenvector it follows
        probes.insert(probes.index(sharpness) + 1, SharpnessReading(of=sharpness))
    public = [getattr(library, name) for name in library.__all__]
    for kind in (item for item in public if isinstance(item, type) and issubclass(item, BaseProbe)):
        if kind is not BaseProbe and not any(isinstance(probe, kind) for probe in probes):
            probes.append(kind())
    probes.sort(key=lambda probe: isinstance(probe, Vitals))  # stable: the others stay in order
    return [Trial(probe, label(probe), id(probe) in wanted, synchronize) for probe in probes]


def label(probe: Probe) -> str:
    """Return what to call a probe: its class, and its name if that is not the usual one."""
    kind = type(probe).__name__
    return kind if probe.name == getattr(probe, "default_name", kind) else f"{kind} {probe.name}"
