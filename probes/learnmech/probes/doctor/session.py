"""The dry run of one training: one probe after the other measures, every update is timed, then it is over."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from learnmech.probes.doctor.fingerprint import fingerprint, side_effects
from learnmech.probes.doctor.trials import Trial, trials
from learnmech.probes.engine import Engine
from learnmech.probes.probe import Probe

LEAD = 4
"""Updates before the first measurement: allocator, kernels and the optimizer's state are made in the first two."""

PATIENCE = 12
"""Updates that a probe is waited for: the self-test of a replay may need ten until it has a gradient to compare."""

IMPATIENCE = 3
"""The same once a probe never came: the self-test has been made by then."""

_MOMENTS = ("at_rest", "before_backward", "after_backward", "before_update", "after_update")
"""Methods of the engine that a training calls: what they take beside the probes is bookkeeping."""


class Stop(BaseException):
    """The dry run is over. No `Exception`: a script that catches those must not go on training."""


class Session:
    """Follows one training, and writes down what was seen.

    Args:
        folder: Temporary folder: measurements and the result go there.
        uses: Measurements of each probe: the first and warm ones.
        updates: Updates to make without any probe; None: as many as the probes need.
    """

    def __init__(self, folder: Path, uses: int, updates: int | None) -> None:
        self.folder = folder
        self.alone = updates is not None
        self.over = False
        self.sink = f"spool:{folder / 'spool'}"
        self.trials: list[Trial] = []
        self.changes: list[str] = []
        self.facts: dict[str, Any] = {}
        self.own: Any = None
        self._uses = uses
        self._limit = updates or 0
        self._queue: list[Trial] = []
        self._current: Trial | None = None
        self._waited, self._patience = 0, PATIENCE
        self._steps: list[dict[str, Any]] = []
        self._prints: list[str] = []
        self._model: nn.Module | None = None
        self._optimizers: Sequence[Optimizer] = ()
        self._device = torch.device("cpu")
        self._hooks, self._inside = 0.0, False
        self._since = 0.0
        _time_the_engine(self._timed)

    def try_out(self, own: Sequence[Probe] | None) -> list[Probe]:
        """Return the probes to measure with: those of the script, and all others that there are.

        Args:
            own: The probes of the script, None if it has none.
        """
        self.trials = trials(own, self._synchronize)
        self._queue = [trial for trial in self.trials for _ in range(self._uses)]
        return [trial.probe for trial in self.trials]

    def begin(self, model: nn.Module, optimizers: Sequence[Optimizer], **facts: Any) -> None:
        """Begin: the next thing that happens is the first update.

        Args:
            model: The model.
            optimizers: Its optimizers.
            facts: What is known of the training, in JSON values.
        """
        self._model, self._optimizers = model, optimizers
        self._device = next((p.device for p in model.parameters()), self._device)
        self.facts |= {"side_effects": side_effects(model)} | facts
        self._prints.append(fingerprint(model, optimizers))
        self._resume()

    def updated(self) -> None:
        """Take note of an update, and decide what is measured at the next one.

        Raises:
            Stop: The dry run is over.
        """
        if self._model is None:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._since
        busy = [trial.label for trial in self.trials if trial.drain(len(self._steps))]
        self._steps.append({"seconds": seconds, "busy": busy, "bookkeeping": 0.0 if busy else self._hooks})
        self._prints.append(fingerprint(self._model, self._optimizers))
        if len(self._steps) >= self._limit if self.alone else self._advance():
            raise Stop
        self._resume()

    def _advance(self) -> bool:
        """Ask the next probe for a measurement; an update without any comes before each probe, for its time.

        Returns:
            True if all had their turn.
        """
        if len(self._steps) < LEAD:
            return False
        trial = self._current
        if trial is not None:
            self._waited += 1
            if not trial.answered and self._waited < self._patience:
                return False
            if not trial.answered or trial.refused:
                self._patience = self._patience if trial.answered else IMPATIENCE
                self._queue = [other for other in self._queue if other is not trial]
            self._current = None
            if self._queue[:1] != [trial]:
                return not self._queue
        self._current, self._waited = self._queue.pop(0), 0
        self._forget_others()
        self._current.ask()
        self.tell(f"update {len(self._steps)}: {self._current.label}")
        return False

    def _forget_others(self) -> None:
        """Let go of the vectors of probes that had their turn: a run that has only one of them holds only its own."""
        still = [trial for trial in (*self._queue, self._current) if trial is not None]
        needed = {id(getattr(trial.probe, "of", None)) for trial in still} | {id(trial.probe) for trial in still}
        for trial in self.trials:
            if id(trial.probe) not in needed:
                trial.forget()

    def _resume(self) -> None:
        self._hooks = 0.0
        self._synchronize()
        self._since = time.perf_counter()

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize()

    def _timed(self, work: Callable[[], Any]) -> Any:
        """Run a method of the engine; one that calls another counts once."""
        if self._inside:
            return work()
        self._inside, begin = True, time.perf_counter()
        try:
            return work()
        finally:
            self._inside = False
            self._hooks += time.perf_counter() - begin

    def tell(self, words: str) -> None:
        """Tell the parent how far it is."""
        (self.folder / "progress").write_text(words, encoding="utf-8")

    def finish(self) -> None:
        """Write down what was seen. The script's training is over, stopped or by itself."""
        self.over = True
        result = {
            "facts": self.facts,
            "changes": self.changes,
            "steps": self._steps,
            "fingerprints": self._prints,
            "trials": [trial.document() for trial in self.trials],
            "complete": not self._queue and self._current is None,
        }
        (self.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _time_the_engine(timed: Callable[[Callable[[], Any]], Any]) -> None:
    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: timed(lambda: method(*args, **kwargs))

    for name in _MOMENTS:
        setattr(Engine, name, around(getattr(Engine, name)))
