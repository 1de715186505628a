"""The spectrum of a Hessian as a whole: trace, Frobenius norm and density from one set of products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.curvature.statistics.density import Quantile, quantiles
from learnmech.probes.curvature.statistics.reading import Reading


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum:
    r"""Trace, Frobenius norm and eigenvalue density of a symmetric operator.

    Attributes:
        trace: Unbiased estimate of tr H, the sum of the eigenvalues. NaN if the measurement came to nothing.
        trace_error: Its standard error; zero if the products filled the whole space.
        frobenius: Root of an unbiased estimate F2 of |H|_F^2; its own bias is -Var(F2) / (8 F^3), that is
            -frobenius_error^2 / (2 frobenius): half a per cent where the error is 10 %.
        frobenius_error: Its standard error, that of F2 over 2 F (delta method).
        products: Products that were spent.
        status: `ok`; `undetermined` (the products are too inexact for such statistics); `non_finite`; `unsupported`.
        reason: Why it is not `ok`, as a sentence.
        noise: Frobenius norm of the error of the products, by the operator's account or as it was seen.
        loss: The loss whose Hessian it is.
        unused: Parameters that do not enter the loss.
        readings: What each random vector contributed to the density.
    """

    trace: float
    trace_error: float
    frobenius: float
    frobenius_error: float
    products: int
    status: Status = Status.OK
    reason: str = ""
    noise: float = 0.0
    loss: float = math.nan
    unused: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Number of eigenvalues."""
        return self.readings[0].size if self.readings else 0

    @property
    def nodes(self) -> Tensor:
        """Where the density has its mass in quadrature, ascending; float64, on the CPU."""
        return torch.from_numpy(self._measure()[0])

    @property
    def weights(self) -> Tensor:
        """How much mass each node has; the sum is one. Its mean estimates trace / size, less sharply."""
        return torch.from_numpy(self._measure()[1])

    def quantile(self, p: float) -> Quantile:
        """Return the eigenvalue below which the share p of all eigenvalues lies, with a band that holds it at 95 %.

        Raises:
            ValueError: p is not between 0 and 1.
        """  # noqa: DOC502 (raised by quantiles)
        return self.quantiles([p])[0]

    def quantiles(self, probabilities: Sequence[float]) -> list[Quantile]:
        """Return several quantiles with their bands, in one go; NaN if the measurement came to nothing.

        Raises:
            ValueError: A probability is not between 0 and 1.
        """
        if outside := [p for p in probabilities if not 0.0 < p < 1.0]:
            raise ValueError(f"a quantile of probability {outside[0]} was asked for; expected one between 0 and 1")
        if not self.readings:
            return [Quantile(math.nan, math.nan, math.nan)] * len(probabilities)
        # an eigenvalue is no larger than the Frobenius norm, nor than what its error leaves possible
        radius = self.frobenius + 2 * self.frobenius_error
        # a matrix of independent errors has the norm 2 / sqrt(n) of its Frobenius norm (semicircle law)
        noise = 2 * self.noise / math.sqrt(self.size)
        return quantiles(self.readings, probabilities, radius=radius, noise=noise)

    def density(self, grid: Tensor, width: float) -> Tensor:
        r"""Return the density of eigenvalues seen through a Gaussian window, sum_k w_k N(x; theta_k, width^2).

        Args:
            grid: Where to evaluate it. [k]
            width: Standard deviation of the window; below the distance of neighbouring nodes the density is a comb.

        Returns:
            Density, in eigenvalues per unit of the eigenvalue, of total mass one. [k]

        Raises:
            ValueError: width is not positive.
        """
        if not width > 0:
            raise ValueError(f"density(width={width!r}): expected a positive standard deviation")
        z = (grid.double().cpu()[:, None] - self.nodes) / width
        return torch.exp(-0.5 * z.square()) @ self.weights / (width * math.sqrt(2 * math.pi))

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = [np.zeros(0)], [np.zeros(0)]
        for reading in self.readings:
            per = 1.0 / (reading.size * len(self.readings))
            nodes.append(reading.known)
            weights.append(np.full(len(reading.known), per))
            if reading.dimension:
                own, shares = reading.rule.gauss()
                nodes.append(own)
                weights.append(reading.dimension * per * shares)
        every, mass = np.concatenate(nodes), np.concatenate(weights)
        order = np.argsort(every, kind="stable")
        return every[order], mass[order]


def nothing(status: Status, reason: str, *, products: int = 0, loss: float = math.nan) -> Spectrum:
    """Return the result of a measurement that came to nothing, and why."""
    return Spectrum(
        trace=math.nan,
        trace_error=math.nan,
        frobenius=math.nan,
        frobenius_error=math.nan,
        products=products,
        status=status,
        reason=reason,
        loss=loss,
    )
