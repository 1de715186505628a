"""The squared norm of a tensor: fast, and right to float32's last digits whatever its size."""

import torch
from torch import Tensor

ROW = 1024
"""Numbers whose squares are added up in their own type; these sums are added up in float64. On the CPU
`torch.linalg.vector_norm` adds up one after another in each lane: over 5 million float32 normals |x|^2 came out 2e-4
too small, and 1e-3 with one large number among them. By rows of 1024 it is right to 5e-7 in both cases, in the same
time (0.5 ms); squares in float64 took 20 ms."""


def square_sum(tensor: Tensor) -> Tensor:
    """Return the sum of |x|^2 over a tensor's elements, as a float64 scalar on its device, without waiting for it.

    Half precision is widened to float32 first: squares of float16 overflow beyond 256, and their sums lose everything
    in bfloat16.

    Args:
        tensor: Real or complex numbers, of any shape, strided.
    """
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if not flat.is_floating_point() or flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    if flat.numel() <= ROW:
        return flat.square().sum().double()
    whole = flat.numel() // ROW * ROW
    total: Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double().square().sum()
    return total if whole == flat.numel() else total + flat[whole:].square().sum().double()
