"""When an iteration may stop: what the Ritz pairs say about the eigenvalues, and how far the start is trusted."""

import math
from dataclasses import dataclass

import numpy as np

from learnmech.probes.curvature.solvers.basis import Basis, Ritz

HOLDS = 0.4
"""Relative residual of the first start vector up to which a start is said to hold: then the challenger beside it gets a
product too, otherwise the product is better spent on where the residual points."""

HOPELESS = 2.0
"""Relative residual of the first start vector beyond which it is dropped for a random one: it then costs the product
that showed it, where a vector of the bulk would go on costing products."""

FIRM = 0.35
"""Relative residual up to which a start is trusted fully; beyond, the accuracy is tightened with its square, as the
error grows that a vector turned by this much makes."""

MARGIN, COLD = 1.4, 10.0
"""Least and largest factor by which the accuracy is tightened. The least, because the estimate falls short of the error
where the runner-up that is tracked is not the second eigenvector any more. The largest for a start that is no earlier
vector: it may have so little of the top eigenvector that its neighbour below is found first, to any estimate.

Of 1 008 measurements along 63 trainings other than those they were chosen on (20 steps apart; tanh, ReLU, GELU and
convolutional networks, fixed and changing batches, references from `eigsh` in float64), more than 1 % off, inside their
stated error, and products on average, for (MARGIN, CROWDED):

    (1, 0.7)       14    97.2 %    6.26
    (1.2, 0.7)     13    97.2 %    6.30
    (1.4, 0.75)     9    98.1 %    6.44
    (1.5, 0.8)      8    99.0 %    6.63

What is left is the same for both of the last, but for three: the second eigenvalue was taken for the first."""

CROWDED = 0.75
"""What has not been seen is taken to reach up to this part of the last wanted eigenvalue, at least: the upper quartile
of lambda_3 / lambda_1 along those trainings (median 0.64, nine tenths 0.82). Three products see too little of the third
to go by what they saw. Cold starts and mixtures need it, too."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is known from an earlier measurement.

    Attributes:
        warm: The start vectors are earlier Ritz vectors: they are trusted as far as the first residual allows.
    """

    warm: bool = False


class Goal:
    r"""What is wanted, and whether it has been reached.

    **Estimated error.** With the Ritz values Theta (diagonal) and A Y = Y Theta + U C, the eigenvalues lambda of A
    outside the spectrum of A's part B on the rest of the space satisfy

        lambda = eigenvalue of Theta + C'(lambda - B)^(-1) C,

    so if B <= beta < lambda, an eigenvalue at the top is at most that of its rank of Theta + C'C / (theta - beta).
    For a single pair that is the bound r^2 / gap of Kato and Temple (Parlett 1998, section 10.5), with two advantages:
    the gap is the one to what has *not* been found, and pairs that lie close together are judged together. The error
    is the smaller of this and the residual r. It is an **estimate**: beta, the largest eigenvalue of the rest, is taken
    from the first Ritz value beyond the wanted ones and a runner-up, now or in measurements before. What no start
    vector has seen is not in it; the residual bound alone is certain (and only that *an* eigenvalue lies within).

    Args:
        k: How many eigenvalues of each end.
        which: `largest`, `smallest` or `both`.
        tol: Relative residual to reach.
        accuracy: Estimated relative error to reach instead.
        trust: What is known from before.
    """

    def __init__(self, k: int, which: str, tol: float, accuracy: float | None, trust: Trust) -> None:
        self.k = k
        self.reached = False
        self.turned = math.inf
        self._signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (1.0, -1.0)}[which]
        self._tol = tol
        self._accuracy = accuracy
        self._trust = trust
        self._started = 0  # start vectors that are multiplied before anything else
        self._open: np.ndarray | None = None  # weight of each waiting vector in residuals that are still too large

    @property
    def trusted(self) -> bool:
        """Tell whether the start holds."""
        return self._trust.warm and self.turned <= HOLDS

    @property
    def hopeless(self) -> bool:
        """Tell whether the start is worth nothing."""
        return self._trust.warm and self.turned > HOPELESS

    def start_over(self) -> None:
        """Forget what was known: the next vectors are random."""
        self._trust, self._open = Trust(), None

    def choice(self, basis: Basis) -> int:
        """Return the waiting vector to multiply next."""
        done = len(basis.multiplied)
        if done == 0:
            self._started = len(basis.waiting)
        if done < self._started or self._open is None or not self._open.any():
            return basis.waiting[0]
        return basis.waiting[int(np.argmax(self._open))]

    def see(self, ritz: Ritz, basis: Basis, products: int) -> None:
        """Take in the Ritz pairs after a product."""
        if products == 1:
            first = self._signs[0] * float(ritz.values[0])
            self.turned = float(ritz.residuals[0]) / first if first > 0 else math.inf
            if self._trust.warm and not self.trusted:
                self._started = min(self._started, self.k)
        wanted = self.wanted(ritz)
        values, residuals = ritz.values[wanted], ritz.residuals[wanted]
        floor = 2 * basis.rounding  # a residual holds the rounding once already: what is below counts as zero
        if self._accuracy is None:
            small = residuals <= np.maximum(self._tol * np.abs(values), floor)
        else:
            goal = self._accuracy / self._caution()
            small = (self.errors(ritz) <= goal * np.abs(values)) | (residuals <= floor)
        enough = products >= max(self._started, self.k * len(self._signs))
        self.reached = bool(enough and np.all(small))
        self._open = np.square(ritz.outside[:, wanted][:, ~small]).sum(axis=1)

    def passed(self, ritz: Ritz) -> bool:
        """Tell whether the accuracy is there by the plain estimate: products may run out before caution is met."""
        if self._accuracy is None:
            return False
        return bool(np.all(self.errors(ritz) <= self._accuracy * np.abs(ritz.values[self.wanted(ritz)])))

    def _caution(self) -> float:
        if not self._trust.warm:
            return COLD
        return min(max((self.turned / FIRM) ** 2, MARGIN), COLD)

    def outermost(self, ritz: Ritz, count: int) -> list[int]:
        """Return the places of the outermost pairs: `count` of each wanted end, outermost first."""
        m = len(ritz.values)
        if len(self._signs) == 2 and 2 * count > m:
            return [*range((m + 1) // 2), *range(m - 1, (m + 1) // 2 - 1, -1)]
        ends = [range(min(count, m)) if sign > 0 else range(m - 1, max(m - 1 - count, -1), -1) for sign in self._signs]
        return [place for end in ends for place in end]

    def wanted(self, ritz: Ritz) -> list[int]:
        """Return the places of the wanted pairs."""
        return self.outermost(ritz, self.k)

    def scout(self, ritz: Ritz) -> np.ndarray | None:
        """Return the next Ritz vector y after one power step, as weights of the basis; of both ends, the sum.

        The multiplied vectors come first, then the waiting ones. A y is in the basis already: nothing is multiplied for
        it. A is shifted so that what bends the other way most, as far as it has been seen, is not raised with it. None
        if there is no next one.
        """
        if len(ritz.values) <= self.k * len(self._signs):
            return None
        weights: np.ndarray = np.sum([self._next(ritz, sign) for sign in self._signs], axis=0)
        return weights

    def _next(self, ritz: Ritz, sign: float) -> np.ndarray:
        place = self.k if sign > 0 else len(ritz.values) - 1 - self.k
        shift = max(0.0, float((-sign * ritz.values).max()))
        inner = (sign * ritz.values[place] + shift) * ritz.combinations[place]
        return np.concatenate([inner, sign * ritz.outside[:, place]])

    def second(self, ritz: Ritz) -> float:
        """Return the first Ritz value beyond the wanted ones of the first end, relative to the last of those."""
        values = ritz.values if self._signs[0] > 0 else -ritz.values[::-1]
        return float(values[self.k] / values[self.k - 1]) if len(values) > self.k and values[self.k - 1] > 0 else 0.0

    def errors(self, ritz: Ritz) -> np.ndarray:
        """Return the estimated error of each wanted eigenvalue [k] or [2 k]."""
        if len(ritz.values) < self.k * len(self._signs):
            return ritz.residuals[self.wanted(ritz)].copy()
        return np.concatenate([self._errors_at(ritz, sign) for sign in self._signs])

    def _errors_at(self, ritz: Ritz, sign: float) -> np.ndarray:
        order = np.arange(len(ritz.values)) if sign > 0 else np.arange(len(ritz.values))[::-1]
        theta, residuals, outside = sign * ritz.values[order], ritz.residuals[order], ritz.outside[:, order]
        k = min(self.k, len(theta))
        beyond = self.k + 1  # the next one may be the challenger, or lie close: it is judged together with the wanted
        errors = residuals[:k].copy()
        if theta[k - 1] <= 0:
            return errors
        beta = max([CROWDED * theta[k - 1], *theta[beyond : beyond + 1]])
        coupling = outside.T @ outside
        for i in range(k):
            if theta[i] > beta:
                raised = np.linalg.eigvalsh(np.diag(theta) + coupling / (theta[i] - beta))[::-1]
                errors[i] = min(errors[i], float(raised[i] - theta[i]))
        return errors
