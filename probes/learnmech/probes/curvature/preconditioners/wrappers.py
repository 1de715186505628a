"""The optimizer inside a framework's wrapper."""

from typing import Any

WRAPPERS = {
    "LightningOptimizer": ("lightning", "pytorch_lightning"),
    "_FabricOptimizer": ("lightning", "lightning_fabric"),
    "AcceleratedOptimizer": ("accelerate",),
}
"""From the name of a wrapper's class to the packages that have it. Each hands its `step` on to `.optimizer`, which
holds the same parameter objects. Other wrappers do more (Lookahead, SAM and SWA change weights, ZeRO spreads them), so
an attribute called `optimizer` is no reason to look inside."""


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer that makes the steps, also of a wrapper in a wrapper."""
    for _ in range(len(WRAPPERS)):  # each kind once
        inside = getattr(optimizer, "optimizer", None) if _hands_on(type(optimizer)) else None
        if inside is None:
            break
        optimizer = inside
    return optimizer


def _hands_on(kind: type) -> bool:
    # Lightning makes a class for every wrapper, to imitate the optimizer's: the wrapper's own is among the bases.
    return any(base.__module__.partition(".")[0] in WRAPPERS.get(base.__name__, ()) for base in kind.__mro__)
