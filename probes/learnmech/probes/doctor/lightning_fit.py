"""`Trainer.fit` of Lightning: one device, nothing saved or logged, our probes, an end after some dozens of updates."""

import contextlib
import functools
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from learnmech.probes.doctor.session import Session, Stop

HOME = ".trainer.trainer"
"""Module of a package in which its trainer is."""

LEFT_OUT = frozenset(
    {
        "Checkpoint",
        "ProgressBar",
        "ModelSummary",
        "EarlyStopping",
        "LearningRateMonitor",
        "DeviceStatsMonitor",
        "Timer",
        "BasePredictionWriter",
        "SaveConfigCallback",
        "MechanicsMonitor",
    }
)
"""Callbacks that write, show, or end the training: none of them changes a training step."""

PLENTY = 100_000
"""Updates that no dry run reaches; finite, because schedules are computed from it."""

SINGLE = ("auto", "single_device", "single_xla")
"""Names of strategies for one process."""


def patch(module: ModuleType, session: Session) -> None:
    """Make every `Trainer` of a package of Lightning one of the dry run.

    Args:
        module: `trainer.trainer` of the package.
        session: The dry run.
    """
    trainer: Any = module.Trainer
    package = module.__name__.removesuffix(HOME)
    init, fit = trainer.__init__, trainer.fit

    @functools.wraps(init)  # command lines read the signature
    def dry_init(self: Any, *args: Any, **settings: Any) -> None:
        if session.over:
            raise Stop
        init(self, *args, **_dry(settings, package, session))

    @functools.wraps(fit)
    def dry_fit(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if session.over:
            raise Stop
        if kwargs.pop("ckpt_path", None) is not None:
            session.changes.append("the training begins anew, not at ckpt_path")
        monitor = _monitor(session)
        self.callbacks += [*([] if monitor is None else [monitor]), _clock(package, session)]
        with contextlib.suppress(Stop):
            fit(self, model, *args, **kwargs)
        session.finish()
        raise Stop

    trainer.__init__, trainer.fit = dry_init, dry_fit


def _dry(settings: dict[str, Any], package: str, session: Session) -> dict[str, Any]:
    """Return the settings of a trainer for a dry run; what differs in a way that matters is told."""
    changes = session.changes
    dry = dict(settings)
    callbacks = settings.get("callbacks")
    given = list(callbacks) if isinstance(callbacks, Iterable) else [] if callbacks is None else [callbacks]
    for callback in given:
        if type(callback).__name__ == "MechanicsMonitor":
            session.own = callback
    dry["callbacks"] = [callback for callback in given if not left_out(callback)]
    omitted = sorted({type(c).__name__ for c in given if left_out(c) and type(c).__name__ != "MechanicsMonitor"})
    if omitted:
        changes.append(f"without the callbacks {', '.join(omitted)}")
    strategy = settings.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name not in SINGLE and not name.startswith("SingleDevice"):
        dry["strategy"] = "auto"
        changes.append(f"one process instead of strategy {name}")
    elif settings.get("devices", "auto") not in ("auto", 1, "1") or settings.get("num_nodes", 1) != 1:
        changes.append(f"one device instead of devices={settings.get('devices', 'auto')}")
    if settings.get("fast_dev_run"):
        changes.append("without fast_dev_run")
    if settings.get("barebones"):
        changes.append("without barebones, under which nothing is measured")
    if settings.get("logger") is not False:
        module = importlib.import_module(f"{package}.loggers.logger")
        dry["logger"] = module.DummyLogger()  # whatever is called on self.logger.experiment does nothing
    if settings.get("max_steps", -1) >= 0:
        dry["max_steps"] = max(settings["max_steps"], PLENTY)
    return dry | {
        "devices": 1,
        "num_nodes": 1,
        "fast_dev_run": False,
        "barebones": False,
        "max_time": None,
        # metrics of a validation may steer a schedule; one batch is enough for them to be there
        "limit_val_batches": min(settings.get("limit_val_batches") or 1, 1),
        "num_sanity_val_steps": 0,
        "profiler": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(session.folder),
    }


def left_out(callback: Any) -> bool:
    """Tell whether a callback has no place in a dry run."""
    return any(cls.__name__ in LEFT_OUT for cls in type(callback).__mro__)


def _monitor(session: Session) -> Any:
    """Return the monitor that measures: with the settings of the script's own, if it has one."""
    from learnmech.probes.lightning import MechanicsMonitor

    own = session.own
    if session.alone:
        return None
    if own is not None:
        session.facts["budget"] = own.budget
    if own is None:
        session.facts["unmeasured"] = "callbacks=[MechanicsMonitor()] of learnmech.probes.lightning"
    settings = {} if own is None else {"loss": own.loss, "full_batch": own.full_batch, "dataset_size": own.dataset_size}
    probes = session.try_out(None if own is None else own.probes)
    return MechanicsMonitor(probes, sink=session.sink, run="doctor", **settings)


def _clock(package: str, session: Session) -> Any:
    """Return a callback of this package that follows the training; it must come after the monitor."""
    base: Any = importlib.import_module(f"{package}.callbacks").Callback

    class Clock(base):  # type: ignore[misc]  # of the package that the script uses
        """Counts and times updates."""

        def setup(self, trainer: Any, *_: Any, **__: Any) -> None:
            """Leave out what `configure_callbacks` has brought."""
            trainer.callbacks = [callback for callback in trainer.callbacks if not left_out_later(callback)]

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Begin."""
            self._step = trainer.global_step
            if trainer.fit_loop.max_epochs is not None and not trainer.lr_scheduler_configs:
                trainer.fit_loop.max_epochs = -1  # a schedule may not go on beyond its last epoch
            session.begin(
                pl_module,
                trainer.optimizers,
                trainer=f"{package} {importlib.import_module(package).__version__}",
                accumulation=trainer.accumulate_grad_batches,
                automatic=bool(pl_module.automatic_optimization),
            )

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            """Count an update, if this batch completed one."""
            if trainer.global_step != self._step:
                self._step = trainer.global_step
                session.updated()

    def left_out_later(callback: Any) -> bool:
        return left_out(callback) and getattr(callback, "run", "") != "doctor"

    return Clock()
