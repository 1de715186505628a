"""`MechanicsCallback`: measures a training under the Trainer of Hugging Face transformers."""

import atexit
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from learnmech.probes.arguments import loss_function
from learnmech.probes.budget import checked_budget
from learnmech.probes.isolation import LossFunction
from learnmech.probes.logs import Log, checked_log
from learnmech.probes.probe import Probe
from learnmech.probes.probes import probe_set
from learnmech.probes.recorder import Recorder
from learnmech.probes.run import DEFAULT_SINK

try:
    from transformers import TrainerCallback

    from learnmech.probes.huggingface_logs import logs_to
    from learnmech.probes.huggingface_loss import loss_of
    from learnmech.probes.huggingface_step import MicroBatches, calling_trainer, hidden_by, model_of, watch
except ImportError as error:
    raise ImportError(f"MechanicsCallback needs transformers: pip install transformers accelerate. {error}") from error

UNEXPLAINED = "the training ended outside of its steps, and not as it should"

logger = logging.getLogger("learnmech.probes")


class MechanicsCallback(TrainerCallback):
    """A callback of `transformers.Trainer` that measures the training and leaves it bit for bit as it would have been.

    A batch is what `training_step` gets, a dictionary of tensors; its gradient is seen before clipping. Curvature is
    that of `trainer.compute_loss(model, batch)`, the mean over one batch, label smoothing and `compute_loss_func`
    included. A subclass that has its own `compute_loss` or `training_step` may count, log or generate there, which
    nobody can undo: curvature is `unsupported` then, until `loss=` says what to differentiate. In all else this is a
    `Recorder`.

    Args:
        probes: What to measure; None for `[Sharpness(), GradientNoiseScale(), WeightDynamics()]`.
        sink: URL of where measurements go: `sqlite:///file`, `postgresql://...`, `http://host:8765`, `spool:folder`.
        run: Name of the run; None makes one.
        project: Project it belongs to.
        budget: Share of the run's time that probes without a schedule may take.
        loss: `loss(model, batch)`, the scalar mean loss of a batch; it may change nothing but the model's own state.
        tags: Free labels.
        full_batch: Whether every step sees the same whole training set; None to find out.
        dataset_size: Number of training examples.
        tokens_per_sample: Tokens in one example, to count tokens.
        log: True to pass numbers on to the trainer's reporters as well; or a function `log(values, step)`.
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
        if loss is not None:
            loss_function("loss", loss)
        identity: Any = {"sink": sink, "run": run, "project": project, "tags": dict(tags or {}), "strict": strict}
        sizes = {"full_batch": full_batch, "dataset_size": dataset_size, "tokens_per_sample": tokens_per_sample}
        self._settings = identity | sizes | {"probes": probe_set(probes), "budget": checked_budget(budget)}
        self._key = f"learnmech.MechanicsCallback[{run}]" if run else "learnmech.MechanicsCallback"
        self._loss = loss
        self._log = checked_log(log)
        self._recorder: Recorder | None = None
        self._unwatch: Callable[[], None] | None = None
        self._given_up: Any = None
        self._seen = MicroBatches()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 (as it is called)
        """Begin the run, or the next attempt of the run in the checkpoint that the trainer resumes from."""
        self._end(RuntimeError(UNEXPLAINED))
        self._guard(lambda: self._begin(calling_trainer(), args, state))

    def _begin(self, trainer: Any, args: Any, state: Any) -> None:
        recorder = Recorder(
            model_of(trainer),
            trainer.optimizer,
            self._loss or loss_of(trainer),
            gradient_clip=args.max_grad_norm if args.max_grad_norm > 0 else None,
            accumulation=args.gradient_accumulation_steps,
            precise=False if args.bf16 or args.fp16 else None,
            log=logs_to(trainer, self._log, self._settings["budget"]),
            **self._settings,
        )
        if self._key in (state.stateful_callbacks or {}):  # read from the checkpoint, whatever the trainer makes of it
            recorder.load_state_dict(state.stateful_callbacks[self._key])
        recorder.step, recorder.hidden = state.global_step, hidden_by(trainer)
        self._recorder, self._seen = recorder.__enter__(), MicroBatches()
        self._unwatch = watch(trainer, self._after_backward, self._end)
        # at any end but the good one the trainer calls nobody: what is left is the end of this object or the process
        self._given_up = weakref.finalize(self, recorder.close, RuntimeError(UNEXPLAINED))
        atexit.register(self._given_up)  # its own place in that order would be after the delivery has ended

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind whatever belongs to this process and to the training under way."""
        return self.__dict__ | {"_recorder": None, "_unwatch": None, "_given_up": None, "_seen": MicroBatches()}

    def _end(self, error: BaseException | None) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._given_up.detach()
            atexit.unregister(self._given_up)
            if self._unwatch is not None:
                self._unwatch()
            recorder.close(error)

    def _after_backward(self, batch: Any, loss: Tensor) -> None:
        recorder = self._recorder
        if recorder is not None:
            self._guard(lambda: self._seen.add(batch, loss))
            self._guard(lambda: recorder.after_backward(batch))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 (as it is called)
        """Measure the update, and put into the trainer's state what a checkpoint needs."""
        self._guard(lambda: self._after_step(state))

    def _after_step(self, state: Any) -> None:
        seen, self._seen = self._seen, MicroBatches()
        if self._recorder is not None:
            self._recorder.after_step(seen.batch, seen.loss)
            state.stateful_callbacks[self._key] = self._recorder.state_dict()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 (as it is called)
        """End the run: deliver what is left, for a few seconds at most."""
        self._end(None)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run the work of a hook; only KeyboardInterrupt and SystemExit get out of it, unless `strict`."""
        try:
            action()
        except Exception as error:
            if self._settings["strict"]:
                raise
            logger.error("learnmech stops measuring this run (training goes on): %r", error)
            self._end(error)
