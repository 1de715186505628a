"""Reading the optimizer from a run's context: which update rule is in force, in PyTorch's conventions."""

from collections.abc import Mapping
from typing import Any

SGD = frozenset({"SGD"})
ADAM = frozenset({"Adam"})
ADAMW = frozenset({"AdamW"})
RMSPROP = frozenset({"RMSprop"})


def optimizer_name(context: Mapping[str, Any]) -> str:
    """Return the optimizer's class name as the run recorded it, `''` when it did not."""
    name = context.get("optimizer", "")
    return name if isinstance(name, str) else ""


def clipping(context: Mapping[str, Any]) -> float | None:
    """Return the gradient-clipping bound that the trainer applies, None when there is none or it is not known."""
    bound = context.get("gradient_clip")
    return float(bound) if isinstance(bound, int | float) and bound > 0 else None


def maximizes(context: Mapping[str, Any]) -> bool:
    """Tell whether the optimizer climbs the loss (`maximize=True`)."""
    flags = context.get("optimizer_flags", ())
    return isinstance(flags, list | tuple) and "maximize" in flags
