"""A cheap reading between two measurements of the sharpness: the curvature along its eigenvector, one product."""

import math
from typing import ClassVar

from learnmech.observables import Status
from learnmech.probes.curvature import Unmeasurable
from learnmech.probes.curvature.objective import NonFinite
from learnmech.probes.curvature.trust import trusted, uncertainty
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import PureLoss, Skip
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.sharpness import Sharpness
from learnmech.wire import Measurement


class SharpnessReading(CurvatureProbe):
    """Measures `sharpness_rayleigh` between two measurements of a `Sharpness` probe: v'Hv along its last eigenvector v.

    A **lower bound** of the sharpness now, and no more: v'Hv <= lambda_max for every unit vector v. `stderr` is the
    residual |Hv - (v'Hv) v|, within which there is an eigenvalue of H, not necessarily the largest. How much is missing
    grows with the angle by which the eigenvector has turned since, and where another one has overtaken it, no reading
    along v can tell; only the next full measurement does. One product and its graph, no search, no check.

    It leaves the eigenvector of the `Sharpness` probe alone: what that measures does not depend on how often it is
    read. (Passing on H v / |H v|, half-way between measurements, would have saved it 0.15 of 4.0 products a measurement
    on a CNN, 0.7 of 4.45 on an MLP.)

    Args:
        schedule: When to read, such as `every(5)`; None leaves it to the budget.
        of: The probe whose eigenvector is followed; it must be among the run's probes.
        name: Name, if there are two probes of this class.
    """

    default_name: ClassVar[str] = "sharpness_reading"
    observables: ClassVar[tuple[str, ...]] = ("sharpness_rayleigh",)

    def __init__(self, schedule: Schedule | None = None, *, of: Sharpness, name: str | None = None) -> None:
        if not isinstance(of, Sharpness):
            raise TypeError(
                f"SharpnessReading(of={of!r}): expected the Sharpness probe whose eigenvector is followed, such as "
                "sharpness = Sharpness(every(100)); SharpnessReading(every(10), of=sharpness)"
            )
        super().__init__(schedule, batch=of.batch, method=of.method, name=name)
        self.of = of

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`.

        Raises:
            Skip: There is no eigenvector yet.
        """
        try:
            operator = self.operator(loss, self.batch_of(view))
        except Unmeasurable as error:
            return [Measurement("sharpness_rayleigh", None, status=Status.UNSUPPORTED, reason=str(error))]
        try:
            space = operator.space
            vector = self.of.direction(space.size)
            if vector is None:
                raise Skip(f"{self.of.name} has no eigenvector yet")
            product = operator.matvec(vector)
            quotient = space.dot(vector, product)
            residual = space.norm(product - quotient.to(product) * vector)
            value, distance = float(quotient), float(residual) + uncertainty(operator)
        except NonFinite as error:
            return [Measurement("sharpness_rayleigh", math.nan, status=Status.NON_FINITE, reason=str(error))]
        except Unmeasurable as error:
            return [Measurement("sharpness_rayleigh", None, status=Status.UNSUPPORTED, reason=str(error))]
        finally:
            operator.release()
        status, reason = Status.OK, ""
        if not math.isfinite(value):
            status, reason = Status.NON_FINITE, "the Hessian-vector product is NaN or infinite"
        elif not trusted(operator):
            status = Status.UNDETERMINED
            reason = f"products by {operator.method} are off by about {operator.error:.0%} of the matrix"
        return [
            Measurement(
                "sharpness_rayleigh",
                value,
                stderr=distance if math.isfinite(distance) else None,
                status=status,
                reason=reason,
                method=f"rayleigh_quotient_by_{self.method_of(operator)}",
            )
        ]
