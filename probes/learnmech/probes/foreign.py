"""Hooks on the training's tensors that are not ours."""

from torch import Tensor

GRADIENT = "_backward_hooks"
"""Where torch keeps hooks that may put something else in place of a gradient."""
ADDED = "_post_accumulate_grad_hooks"
"""Where it keeps those that see the gradient once it has been added."""


def foreign(tensor: Tensor, *kinds: str) -> bool:
    """Tell whether someone else has hooks on a tensor; ours measure, and change nothing.

    Args:
        tensor: The tensor.
        kinds: Where to look.
    """
    hooks = [hook for kind in kinds for hook in (getattr(tensor, kind, None) or {}).values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("learnmech.") for hook in hooks)
