"""What every isolated measurement keeps as it was, whichever way the loss is evaluated, and the look at the end."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from learnmech.probes.isolation.batch import tensors as batch_tensors
from learnmech.probes.isolation.canary import Canary, training_tensors
from learnmech.probes.isolation.flag import probing
from learnmech.probes.isolation.quiet import quiet
from learnmech.probes.isolation.refusal import Refusal
from learnmech.probes.isolation.settings import gradients_kept, optimizer_settings_kept, trainable_flags_kept
from learnmech.probes.isolation.silence import REMEDY, silenced
from learnmech.probes.isolation.source import Source


@contextmanager
def untouched(source: Source, batch: Any) -> Iterator[ExitStack]:
    """Keep settings and flags as they are, with hooks, logs, prints and warnings silent.

    Args:
        source: Where the loss comes from.
        batch: The batch of the training step, watched for writes.

    Yields:
        A stack for what else is to be undone.

    Raises:
        Refusal: Something was written to that belongs to the training.
    """
    model = source.model
    canary = Canary(
        (*training_tensors(model, source.optimizers), *(("batch", tensor) for tensor in batch_tensors(batch)))
    )
    with ExitStack() as stack:
        stack.enter_context(probing())
        stack.enter_context(optimizer_settings_kept(source.optimizers))
        stack.enter_context(trainable_flags_kept(model))
        stack.enter_context(gradients_kept(model))
        stack.enter_context(silenced(model))
        stack.enter_context(quiet())
        yield stack
    touched = canary.touched()
    if touched:
        names = ", ".join(touched[:3]) + (" and others" if len(touched) > 3 else "")
        raise Refusal(f"The replay wrote to what belongs to the training: {names}.", REMEDY)
