"""What mixed precision multiplies the loss by, and whether it is still in the gradient. Nothing is waited for."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LossScale:
    """The loss scale of a plain training loop.

    Args:
        optimizer: The optimizer.
        scaler: The `torch.amp.GradScaler` of the loop, if it is known.
        clips: True if the loop clips gradients and is known to have no scaler.
    """

    def __init__(self, optimizer: Optimizer, scaler: "torch.amp.GradScaler | None", *, clips: bool) -> None:
        self._optimizer = optimizer
        self._scaler: Any = scaler
        self._known = 1.0 if clips else None

    @property
    def scales(self) -> bool:
        """Whether there is a scaler that is in use."""
        return self._scaler is not None and bool(self._scaler.is_enabled())

    def of_loss(self) -> Tensor | float | None:
        """Return what the loss is multiplied by; None if that is not known."""
        if self._scaler is None:
            return self._known
        if not self._scaler.is_enabled():
            return 1.0
        scale: Tensor | None = self._scaler._get_scale_async()  # noqa: SLF001 (the public get_scale waits)
        return 1.0 if scale is None else scale  # before its first use

    def in_gradient(self) -> Tensor | float:
        """Return what the gradient is still multiplied by."""
        put = getattr(self._optimizer, "grad_scale", None)  # a fused optimizer takes it out itself: it is put there
        if isinstance(put, Tensor):
            return put
        if self._scaler is None or self._unscaled():
            return 1.0
        return self.of_loss() or 1.0

    def _unscaled(self) -> bool:
        states = getattr(self._scaler, "_per_optimizer_states", {})
        state = states.get(id(self._optimizer), {})  # not by item: that would add one
        return getattr(state.get("stage"), "name", "READY") != "READY"
