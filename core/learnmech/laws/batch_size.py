"""What the gradient noise scale says of batch size: steps, examples, learning rate, temperature. Pure functions.

All of them hold where the noise of a gradient falls as 1/B, and count a step as worth what it can gain at the learning
rate that is best for its batch size (McCandlish et al. 2018, arXiv 1812.06162, section 2). The noise scale may be given
as `math.inf`, for a signal that is not resolved: the limit is returned.
"""

import math
from collections.abc import Callable

from learnmech.laws.statistics import Interval


def steps_needed(batch: float, noise_scale: float) -> float:
    """Return the steps that a goal takes at this batch size, over those with batches without noise.

    S / S_min = 1 + B_noise / B (McCandlish et al. 2018, from eq. 2.7), one of the two sides of the hyperbola
    (S / S_min - 1)(E / E_min - 1) = 1 (eq. 2.11); the noise scale is its B_crit = E_min / S_min (eq. 2.12).

    >>> steps_needed(100, noise_scale=100)
    2.0

    Args:
        batch: Batch size B, in examples, positive.
        noise_scale: B_noise, or B_simple in its place, in examples, not negative.

    Raises:
        ValueError: A batch size is not positive, or the noise scale is negative or NaN.
    """  # noqa: DOC502 (raised by _check)
    _check(noise_scale, batch)
    return 1.0 + noise_scale / batch


def examples_needed(batch: float, noise_scale: float) -> float:
    """Return the examples that a goal takes at this batch size, over those with batches of one.

    E / E_min = 1 + B / B_noise, as E = B S (McCandlish et al. 2018, eq. 2.11).

    >>> (steps_needed(50, 200) - 1) * (examples_needed(50, 200) - 1)
    1.0

    Args:
        batch: As in `steps_needed`.
        noise_scale: The same.

    Raises:
        ValueError: As for `steps_needed`.
    """  # noqa: DOC502 (raised by _check)
    _check(noise_scale, batch)
    return 1.0 + batch / noise_scale if noise_scale > 0.0 else math.inf


def speedup(batch: float, other: float, noise_scale: float) -> float:
    """Return how many times fewer steps a goal takes at batch size `other` than at `batch`: S(B) / S(B').

    Below the noise scale it is nearly B' / B, above it nearly 1.

    >>> speedup(32, 64, noise_scale=math.inf)
    2.0
    >>> speedup(32, 64, noise_scale=64)
    1.5

    Args:
        batch: Batch size B now.
        other: Batch size B' instead.
        noise_scale: As in `steps_needed`.

    Raises:
        ValueError: As for `steps_needed`.
    """  # noqa: DOC502 (raised by _check)
    _check(noise_scale, batch, other)
    # (1 + N/B) / (1 + N/B') = (B'/B) (B + N) / (B' + N)
    return other / batch * (1.0 if math.isinf(noise_scale) else (batch + noise_scale) / (other + noise_scale))


def examples_ratio(batch: float, other: float, noise_scale: float) -> float:
    """Return how many times the examples of `batch` a goal takes at batch size `other`: the price of `speedup`.

    E(B') / E(B) = (B'/B) / speedup.

    >>> examples_ratio(32, 64, noise_scale=64)
    1.3333333333333333

    Args:
        batch: Batch size B now.
        other: Batch size B' instead.
        noise_scale: As in `steps_needed`.

    Raises:
        ValueError: As for `steps_needed`.
    """  # noqa: DOC502 (raised by speedup)
    return other / batch / speedup(batch, other, noise_scale)


def batch_for_overhead(noise_scale: float, overhead: float = 0.2) -> float:
    """Return the batch size at which a goal takes 1 + `overhead` times the fewest examples: B = overhead * B_noise.

    At an overhead of 1 it is the critical batch size of McCandlish et al. 2018 (eq. 2.12), where steps and examples are
    both twice their minimum; at 0.2 the definition of Zhang et al. 2024, arXiv 2410.21676.

    >>> batch_for_overhead(1000.0)
    200.0

    Args:
        noise_scale: As in `steps_needed`.
        overhead: Examples that may be spent beyond the minimum, as a share of it; positive.

    Raises:
        ValueError: The overhead is not positive, or the noise scale is negative or NaN.
    """
    _check(noise_scale)
    if not overhead > 0.0:
        raise ValueError(f"the overhead is {overhead}; expected a positive share, such as 0.2")
    return overhead * noise_scale


def optimal_learning_rate(batch: float, noise_scale: float, largest: float = 1.0) -> float:
    """Return the learning rate of SGD that gains most in one step: eta_max / (1 + B_noise / B).

    eta_max = |G|^2 / G'HG is the best one without noise (McCandlish et al. 2018, eq. 2.6). With `largest` = 1 it is
    also the share of a noiseless step's gain that a step makes (eq. 2.7).

    >>> optimal_learning_rate(64, noise_scale=192)
    0.25

    Args:
        batch: As in `steps_needed`.
        noise_scale: The same.
        largest: eta_max.

    Raises:
        ValueError: As for `steps_needed`.
    """  # noqa: DOC502 (raised by steps_needed)
    return largest / steps_needed(batch, noise_scale)


def expected_loss_change(
    learning_rate: float, batch: float, grad_sq_norm: float, curvature: float, noise_curvature: float
) -> float:
    """Return the mean change of the loss by one step of SGD on the local quadratic model.

    E[dL] = -eta |G|^2 + eta^2/2 (G'HG + tr(H Sigma)/B) (McCandlish et al. 2018, eq. 2.5).

    >>> expected_loss_change(0.1, 8, grad_sq_norm=1.0, curvature=2.0, noise_curvature=160.0)
    0.010000000000000009

    Args:
        learning_rate: eta.
        batch: Batch size B, positive.
        grad_sq_norm: |G|^2.
        curvature: G'HG.
        noise_curvature: tr(H Sigma), Sigma the covariance of the gradient of one example.

    Raises:
        ValueError: The batch size is not positive.
    """  # noqa: DOC502 (raised by _check)
    _check(0.0, batch)
    return -learning_rate * grad_sq_norm + 0.5 * learning_rate**2 * (curvature + noise_curvature / batch)


def break_even_batch(learning_rate: float, grad_sq_norm: float, curvature: float, noise_curvature: float) -> float:
    """Return the batch size at which a step neither gains nor loses: below it, noise costs more than the signal gains.

    Root of `expected_loss_change`: B = eta tr(H Sigma) / (2 |G|^2 - eta G'HG). Infinite where not even the noiseless
    step gains.

    >>> break_even_batch(0.1, grad_sq_norm=1.0, curvature=4.0, noise_curvature=160.0)
    10.0
    >>> break_even_batch(0.5, grad_sq_norm=1.0, curvature=4.0, noise_curvature=160.0)
    inf

    Args:
        learning_rate: As in `expected_loss_change`.
        grad_sq_norm: The same.
        curvature: The same.
        noise_curvature: The same.
    """
    gain = 2.0 * grad_sq_norm - learning_rate * curvature
    return learning_rate * noise_curvature / gain if gain > 0.0 else math.inf


def effective_learning_rate(learning_rate: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Return how far SGD moves in all for one gradient: eta (1 - tau) / (1 - mu), Nesterov or not.

    The buffer v <- mu v + (1 - tau) g holds a gradient (1 - tau)(1 + mu + mu^2 + ...) times.

    >>> round(effective_learning_rate(0.1, momentum=0.9), 12)
    1.0

    Args:
        learning_rate: eta.
        momentum: mu, below one.
        dampening: tau of `torch.optim.SGD`; without momentum it has no effect.

    Raises:
        ValueError: The momentum is not from 0 to below 1.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is {momentum}; expected a number from 0 to below 1")
    return learning_rate * (1.0 - dampening) / (1.0 - momentum) if momentum else learning_rate


def temperature(rate: float, noise_trace: float, batch: float, population: float | None = None) -> float:
    """Return the temperature of SGD: T = rate * tr Sigma / B, the power of the noise in its diffusion limit.

    A batch drawn without replacement from n examples scatters less: times 1 - B/n.

    Runs with the same T and the same sum of learning rates coincide while both are small (Mandt, Hoffman & Blei 2017,
    arXiv 1704.04289; Jastrzebski et al. 2017, arXiv 1711.04623; momentum: Smith et al. 2018, arXiv 1711.00489).

    >>> temperature(0.1, noise_trace=64.0, batch=32)
    0.2
    >>> temperature(0.1, noise_trace=64.0, batch=32, population=32)
    0.0

    Args:
        rate: `effective_learning_rate`.
        noise_trace: tr Sigma per example.
        batch: Batch size B, positive.
        population: Examples n of the data set, where batches are drawn from it without replacement; None, or fewer than
            B: independent draws.

    Raises:
        ValueError: The batch size is not positive.
    """  # noqa: DOC502 (raised by _check)
    _check(0.0, batch)
    left = 1.0 - batch / population if population and population >= batch else 1.0
    return rate * noise_trace / batch * left


def propagated(function: Callable[[float], float], noise_scale: Interval) -> Interval:
    """Carry an interval of the noise scale through a function that only rises or only falls, as all of the above do.

    >>> found = propagated(lambda scale: speedup(32, 64, scale), Interval(64.0, 32.0, math.inf))
    >>> round(found.center, 3), round(found.lower, 3), found.upper
    (1.5, 1.333, 2.0)

    Args:
        function: From a noise scale to a number.
        noise_scale: Value and ends; the upper one may be infinite.
    """
    ends = sorted((function(noise_scale.lower), function(noise_scale.upper)))
    return Interval(function(noise_scale.center), ends[0], ends[1])


def _check(noise_scale: float, *batches: float) -> None:
    if not noise_scale >= 0.0:
        raise ValueError(f"the noise scale is {noise_scale}; expected a number from 0 on, in examples")
    for batch in batches:
        if not (batch > 0.0 and math.isfinite(batch)):
            raise ValueError(f"the batch size is {batch}; expected a positive number of examples")
