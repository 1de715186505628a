"""Broken conservation laws: what charges do over many updates of SGD, from a recursion and from closed forms.

In gradient flow the charge of a symmetry is conserved. A finite learning rate feeds it, weight decay drains it,
momentum makes it an oscillator. Q is |w|^2 of scale-invariant weights, or |w_in|^2 - |w_out|^2 of two sides that
balance; then every |.|^2 and <., .> below is that difference, too.

References:
    Kunin et al. 2021, "Neural Mechanics", arXiv 2012.04728, sections 5 and 6 (modified flow of momentum).
"""

import cmath
import math
from collections.abc import Iterable, Sequence

CRITICAL = 1e-4
"""Distance of the roots, relative to the damping, below which they are put so far apart: the solution is even in it, so
that it changes by its square."""


def charge_recursion(
    charge: float,
    steps: Iterable[tuple[float, float]],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[float]:
    """Predict a charge after each update of `torch.optim.SGD`, exactly, from the start of a run on.

    With v' the momentum buffer after an update, d its direction (w' = w - lr d), p = <w, v> and a = <w, v'>, and with
    <w, g> = 0 by the symmetry:

        a  = momentum p + (1 - dampening) weight_decay Q          (first update: a = weight_decay Q)
        <w, d> = a,      Nesterov: <w, d> = weight_decay Q + momentum a
        Q' = Q - 2 lr <w, d> + lr^2 |d|^2
        p' = a - lr <d, v'>.

    Open loop: the weights are not looked at after the start. It needs |d|^2 of every single update; closed forms are
    what is left where updates were not seen.

    >>> charge_recursion(1.0, [(4.0, 4.0)], lr=0.1)
    [1.04]

    Args:
        charge: Q before the first update, when there is no momentum buffer.
        steps: |d|^2 and <d, v'> of each update. Without Nesterov d is v', and both are the same number.
        lr: Learning rate.
        momentum: Momentum.
        dampening: Dampening; PyTorch allows none with Nesterov.
        nesterov: Whether momentum is Nesterov's.
        weight_decay: Coefficient of the L2 term.

    Returns:
        Q after each update.
    """
    found = []
    before = 0.0  # p
    fresh = 1.0  # the first buffer is the gradient itself, undampened
    for square, mixed in steps:
        after = momentum * before + fresh * weight_decay * charge
        slope = weight_decay * charge + momentum * after if nesterov else after
        charge += -2.0 * lr * slope + lr * lr * square
        before = after - lr * mixed
        fresh = 1.0 - dampening if momentum else 1.0
        found.append(charge)
    return found


def decaying_charge(charge: float, squares: Sequence[float], *, lr: float, weight_decay: float = 0.0) -> list[float]:
    """Return the closed form of a charge under SGD without momentum, after each update.

    In time t = lr * updates:  Q(t) = e^(-2 L t) (Q_0 + lr^2 sum_k e^(2 L t_k) |g_k|^2), L the weight decay. It is off
    by O((lr L)^2) an update.

    >>> decaying_charge(1.0, [4.0, 4.0], lr=0.1)
    [1.04, 1.08]

    Args:
        charge: Q before the first update.
        squares: |g|^2 of each update, without the L2 term.
        lr: Learning rate.
        weight_decay: Coefficient of the L2 term.
    """
    kept = math.exp(-2.0 * lr * weight_decay)
    found = []
    for square in squares:
        charge = kept * charge + lr * lr * square
        found.append(charge)
    return found


def oscillating_charge(
    charge: float,
    squares: Sequence[float],
    *,
    lr: float,
    momentum: float,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
) -> list[float]:
    """Return the closed form of a charge under SGD with momentum, after each update, from rest.

    The modified flow of heavy ball, with h = lr (1 - dampening) the time of an update, is
    (h/2)(1 + momentum) w'' + (1 - momentum) w' + g + L w = 0. Its product with 2w, where <w, g> = 0, is a damped
    oscillator that the motion itself drives:

        Q'' + 2 y Q' + o^2 Q = 2 |w'|^2,    y = (1 - momentum) / (h (1 + momentum)),   o^2 = 4 L / (h (1 + momentum)).

    With the roots r = -y +- sqrt(y^2 - o^2), apart (overdamped) or conjugate (underdamped), each update, half-way
    through it, adds the impulse 2 |s|^2 / h to Q'.

    Args:
        charge: Q before the first update.
        squares: |s|^2 of each update s = w_(t+1) - w_t.
        lr: Learning rate.
        momentum: Momentum.
        dampening: Dampening.
        weight_decay: Coefficient of the L2 term.
    """
    h = lr * (1.0 - dampening)
    fast, slow = _roots((1.0 - momentum) / (h * (1.0 + momentum)), 4.0 * weight_decay / (h * (1.0 + momentum)))
    apart = slow - fast
    # from rest Q = Q_0 (slow e^(fast t) - fast e^(slow t)) / (slow - fast); an impulse i adds i (e^(slow t) -
    # e^(fast t)) / (slow - fast)
    parts = [charge * slow / apart, -charge * fast / apart]
    found = []
    for square in squares:
        impulse = 2.0 * square / h
        parts = [
            parts[0] * cmath.exp(fast * h) - impulse / apart * cmath.exp(fast * h / 2),
            parts[1] * cmath.exp(slow * h) + impulse / apart * cmath.exp(slow * h / 2),
        ]
        found.append((parts[0] + parts[1]).real)
    return found


def decaying_shift(
    updates: int, *, lr: float, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float
) -> float:
    """Return by which factor the charge of a shift, the sum of weights, changes in a number of updates, from rest.

    Nothing drives it: e^(-L t) under SGD; with momentum the free oscillator of `oscillating_charge` with
    o^2 = 2 L / (h (1 + momentum)).

    Args:
        updates: How many.
        lr: Learning rate.
        momentum: Momentum.
        dampening: Dampening.
        weight_decay: Coefficient L of the L2 term.
    """
    if not momentum:
        return math.exp(-lr * weight_decay * updates)
    h = lr * (1.0 - dampening)
    fast, slow = _roots((1.0 - momentum) / (h * (1.0 + momentum)), 2.0 * weight_decay / (h * (1.0 + momentum)))
    t = h * updates
    return ((slow * cmath.exp(fast * t) - fast * cmath.exp(slow * t)) / (slow - fast)).real


def _roots(damping: float, frequency_sq: float) -> tuple[complex, complex]:
    """Return the roots of r^2 + 2 y r + o^2 = 0, never quite equal."""
    apart = cmath.sqrt(damping * damping - frequency_sq)
    if abs(apart) < CRITICAL * damping:
        apart = complex(CRITICAL * damping)
    return -damping - apart, -damping + apart
