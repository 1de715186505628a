"""The spectrum of the loss Hessian as a whole: trace, Frobenius norm, quantiles of the eigenvalue density."""

import math
import zlib
from typing import Any, ClassVar

from learnmech.observables import Status
from learnmech.probes.arguments import whole
from learnmech.probes.curvature.statistics import Quantile, Spectrum, hessian_spectrum_of
from learnmech.probes.curvature.statistics.measure import SAMPLES, STEPS, VECTORS
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

PROBABILITIES = ("0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999")
"""Shares of the eigenvalues below the recorded quantiles."""

RECHECK = 10
"""Measurements between two looks at what rarely changes: does the curvature agree with finite differences."""


class HessianSpectrum(CurvatureProbe):
    """Measures `hessian_trace`, `hessian_frobenius`, and `hessian_quantile` at nine probabilities.

    Products are with the Hessian of the loss on the current batch, in training mode and at the training's own
    randomness: Krylov spaces of a few random vectors, for the density and for what stands out of it, and single
    products with others for trace and norm of the rest. `stderr` is such that the value plus or minus
    1.96 of it covers 95 %; for quantiles, it covers everything that the quadrature leaves possible, which is
    several times more than its typical error.

    Costs `vectors` times `steps` products and vectors of memory, and `samples` products more. Where products are too
    inexact for such statistics (differences of gradients on ReLU networks or in half precision), the status is
    `undetermined`.

    Args:
        schedule: When to measure, such as `every(500)`; None leaves it to the budget.
        vectors: Random vectors of the Krylov spaces.
        steps: Products for each: more of them sharpen the density.
        samples: Random vectors with one product each: more of them sharpen trace and norm.
        batch: A fixed batch to measure on, instead of the current one.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        Meyer et al. 2021, arXiv 2010.09649; Chen & Hallman 2023, arXiv 2205.01736; Ghorbani, Krishnan & Xiao 2019,
        arXiv 1901.10159.
    """

    default_name: ClassVar[str] = "hessian_spectrum"
    observables: ClassVar[tuple[str, ...]] = ("hessian_trace", "hessian_frobenius", "hessian_quantile")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        vectors: int = VECTORS,
        steps: int = STEPS,
        samples: int = SAMPLES,
        batch: Any = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, batch=batch, method=method, name=name)
        self.vectors = whole(self, "vectors", vectors, 1, VECTORS)
        self.steps = whole(self, "steps", steps, 2, STEPS)
        self.samples = whole(self, "samples", samples, 0, SAMPLES)
        if self.samples == 1:
            raise ValueError(f"HessianSpectrum(samples={samples!r}): expected 0, or 2 or more, such as {SAMPLES}")

    def places(self) -> list[tuple[str, str]]:
        """List the observables and scopes that numbers of this probe go to."""
        return [("hessian_trace", ""), ("hessian_frobenius", ""), *(("hessian_quantile", p) for p in PROBABILITIES)]

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`."""
        operator = self.operator(loss, self.batch_of(view))
        # other vectors at each step and for each probe, the same on every process
        seed = zlib.crc32(f"{self.name} {view.step}".encode())
        found = hessian_spectrum_of(
            operator,
            vectors=self.vectors,
            steps=self.steps,
            samples=self.samples,
            seed=seed,
            check=self.uses % RECHECK == 0,
        )
        operator.release()
        return self._measurements(found, self.method_of(operator))

    def _measurements(self, found: Spectrum, method: str) -> list[Measurement]:
        plan = f"{self.vectors}x{self.steps}"
        whole = f"{method}_hutch++_{plan}+{self.samples}"
        result = [
            _measurement("hessian_trace", found.trace, found.trace_error, found, whole),
            _measurement("hessian_frobenius", found.frobenius, found.frobenius_error, found, whole),
        ]
        if not found.readings:
            return [*result, *self.nothing(found.status, found.reason)[len(result) :]]
        bands = found.quantiles([float(p) for p in PROBABILITIES])
        quadrature = f"{method}_lanczos_{plan}"
        return result + [_quantile(p, band, found, quadrature) for p, band in zip(PROBABILITIES, bands, strict=True)]


def _measurement(observable: str, value: float, error: float, found: Spectrum, method: str) -> Measurement:
    known = math.isfinite(value) or found.status is Status.NON_FINITE
    return Measurement(
        observable,
        value if known else None,
        stderr=error if math.isfinite(error) else None,
        status=found.status,
        reason=found.reason,
        method=method,
    )


def _quantile(probability: str, band: Quantile, found: Spectrum, method: str) -> Measurement:
    status, reason = found.status, found.reason
    if status is Status.OK and band.upper - band.lower > found.frobenius:
        status = Status.UNDETERMINED
        reason = f"{found.products} products leave it anywhere between {band.lower:.3g} and {band.upper:.3g}"
    return Measurement(
        "hessian_quantile",
        band.value,
        scope=probability,
        stderr=band.stderr,
        status=status,
        reason=reason,
        method=method,
    )
