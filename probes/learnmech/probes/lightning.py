"""`MechanicsMonitor`: measures a training under PyTorch Lightning, from either package.

`lightning.pytorch` and `pytorch_lightning` have separate class trees, so the monitor inherits from the `Callback` of
every one that can be imported, and both trainers take it.
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from learnmech.probes.arguments import loss_function
from learnmech.probes.budget import checked_budget
from learnmech.probes.isolation import LossFunction
from learnmech.probes.lightning_run import Attempt, begin
from learnmech.probes.logs import Log, checked_log
from learnmech.probes.probe import Probe
from learnmech.probes.probes import probe_set
from learnmech.probes.run import DEFAULT_SINK
from learnmech.probes.signals import Signals

logger = logging.getLogger("learnmech.probes")


def _callback_classes() -> tuple[type, ...]:
    found, problems = [], []
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(importlib.import_module(f"{package}.callbacks").Callback)
        except Exception as error:  # noqa: BLE001 (a torchvision that does not match raises RuntimeError, not ImportError)
            problems.append(f"{package}: {type(error).__name__}: {error}")
    if not found:
        raise ImportError(
            "MechanicsMonitor needs Lightning: pip install pytorch-lightning (or lightning). " + "; ".join(problems)
        )
    return tuple(dict.fromkeys(found))


_Callback: Any = type("_Callback", _callback_classes(), {"__module__": __name__})


class MechanicsMonitor(_Callback):  # type: ignore[misc]  # its bases are what can be imported
    """A Lightning callback that measures the training and leaves it bit for bit as it would have been.

    Curvature and gradient noise are measured on the batch about to be used, by replaying `training_step` with every
    side effect undone. Once per fit the gradient of the replay is compared with the real one; if they differ, those
    probes are `unsupported` with the reason, and `loss=` is the way out.

    Args:
        probes: What to measure; None for `[Sharpness(), GradientNoiseScale(), WeightDynamics()]`.
        sink: URL of where measurements go: `sqlite:///file`, `postgresql://...`, `http://host:8765`, `spool:folder`.
        run: Name of the run; None makes one. Two monitors on one trainer need two names.
        project: Project it belongs to.
        budget: Share of the run's time that probes without a schedule may take.
        loss: `loss(model, batch)`, the scalar mean loss of a batch, if `training_step` cannot be replayed.
        tags: Free labels.
        full_batch: Whether every step sees the same whole training set; None to find out.
        dataset_size: Number of training examples; None to ask the data loader.
        tokens_per_sample: Tokens in one example, to count tokens.
        log: True to pass numbers on to the trainer's loggers as well, as `learnmech/sharpness` and so on, at the step
            of their measurement, once a second at most; or a function `log(values, step)`, called in another thread.
        strict: True to raise what is otherwise recorded; for tests.
    """

    def __init__(
        self,
        probes: Iterable[Probe] | None = None,
        *,
        sink: str = DEFAULT_SINK,
        run: str | None = None,
        project: str | None = None,
        budget: float = 0.01,
        loss: LossFunction | None = None,
        tags: Mapping[str, str] | None = None,
        full_batch: bool | None = None,
        dataset_size: int | None = None,
        tokens_per_sample: int | None = None,
        log: bool | Log = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if loss is not None:
            loss_function("loss", loss)
        self.probes = probe_set(probes)
        self.sink = sink
        self.run = run
        self.project = project
        self.budget = checked_budget(budget)
        self.loss = loss
        self.tags = dict(tags or {})
        self.full_batch = full_batch
        self.dataset_size = dataset_size
        self.tokens_per_sample = tokens_per_sample
        self.log_to = checked_log(log)
        self.strict = strict
        self._progress: dict[str, Any] = {}
        self._loaded = False
        self._attempt: Attempt | None = None
        self._signals: Signals | None = None

    # --- identity and checkpoints -------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of the monitor's state in checkpoints: stable, and different for monitors with different run names."""
        return f"learnmech.MechanicsMonitor[{self.run}]" if self.run else "learnmech.MechanicsMonitor"

    @property
    def run_id(self) -> str | None:
        """Identity of the run, once it has begun."""
        found = self._progress.get("run_id")
        return found if isinstance(found, str) else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for the run to go on as the same run: plain values only."""
        self._remember(self._attempt)
        return dict(self._progress)

    def _remember(self, attempt: Attempt | None) -> None:
        """Note how far the run is; an error here would cost the user the checkpoint, or hide an error of the user's."""
        try:
            self._progress = self._progress if attempt is None else attempt.progress()
        except Exception as error:  # noqa: BLE001 (see above)
            logger.error("learnmech cannot tell how far the run is (training goes on): %r", error)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint."""
        self._progress = dict(state_dict)
        self._loaded = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind whatever belongs to this process."""
        return self.__dict__ | {"_attempt": None, "_signals": None, "_progress": self.state_dict()}

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin the run, or an attempt of one that goes on."""
        self._guard(lambda: self._begin(trainer, pl_module))

    def _begin(self, trainer: Any, pl_module: nn.Module) -> None:
        self._attempt = None
        self._listen(on=True)
        loaded, self._loaded = self._loaded, False
        self._attempt = begin(self, trainer, pl_module, self._progress, loaded=loaded)
        if self._attempt is not None:
            self._progress = self._attempt.progress()

    def _listen(self, *, on: bool) -> None:
        """Listen to signals that ask for measurements, in every process: one may be sent to all, and would end them."""
        if self._signals is not None:
            self._signals.close()
        self._signals = Signals(self.probes) if on else None

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Measure at the weights w_t, on the batch about to be used, before anything of the step has happened."""
        attempt = self._attempt
        if attempt is not None:
            self._guard(lambda: attempt.batch_start(trainer, pl_module, batch, batch_idx))

    def on_after_backward(self, trainer: Any, pl_module: nn.Module) -> None:
        """Compare the gradient of this very batch with the replayed one, if the self-test is under way."""
        attempt = self._attempt
        if attempt is not None:
            self._guard(lambda: attempt.after_backward(trainer))

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See the complete gradient, before clipping, and the hyperparameters of the update."""
        attempt = self._attempt
        if attempt is not None:
            self._guard(lambda: attempt.before_optimizer_step(trainer, optimizer))

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure the update, if this batch completed one."""
        attempt = self._attempt
        if attempt is not None:
            self._guard(lambda: attempt.batch_end(trainer, pl_module, outputs, batch, batch_idx))

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """End the run: deliver what is left, for a few seconds at most."""
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """End the run as failed; never raises, or the user's own error would be masked."""
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """End the run, should it still be open."""
        if stage == "fit":
            self._end(None)

    def _end(self, exception: BaseException | None) -> None:
        attempt, self._attempt = self._attempt, None
        self._guard(lambda: self._listen(on=False), raises=False)
        if attempt is not None:
            self._remember(attempt)
            self._guard(lambda: attempt.end(exception), raises=self.strict and exception is None)

    def _guard(self, action: Callable[[], None], *, raises: bool | None = None) -> None:
        """Run the work of a hook; only KeyboardInterrupt and SystemExit get out of it, unless `strict`."""
        try:
            action()
        except Exception as error:
            if self.strict if raises is None else raises:
                raise
            logger.error("learnmech stops measuring this run (training goes on): %r", error)
            if self._attempt is None or not self._attempt.engine.joined:
                self._attempt = None  # others would wait for this process: their engine is told at the next measurement
