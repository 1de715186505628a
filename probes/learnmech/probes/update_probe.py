"""What probes of an update have in common: they hold the weights before it, and evaluate the loss there after it."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.stability.quadratic import QuadraticModel, quadratic_model
from learnmech.probes.curvature.stability.update import AppliedUpdate, applied_update
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import PureLoss
from learnmech.probes.pieces import count
from learnmech.probes.probe import Moment, TrainingView
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping


class UpdateProbe(CurvatureProbe):
    """Measures the loss of the batch of an update at the weights w_t from before it. A subclass defines `measured`.

    After the update the model holds w_(t+1), which have moved along the gradient of this very batch: seen from there it
    has too small a gradient, and too little curvature along it. At w_t, which are held from before the update
    until the measurement (one copy of the weights), the batch is new.
    """

    moment: ClassVar[Moment] = Moment.UPDATE
    collective: ClassVar[bool] = False
    """One process measures it, on its own batch."""

    def reset(self) -> None:
        """Forget an earlier run."""
        super().reset()
        self._held: Mapping[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave held weights out of copies and pickles."""
        return self.__dict__ | {"_held": {}}

    def prepare(self, view: TrainingView) -> None:
        """Copy the weights before the update."""
        self._held = {name: p.detach().clone() for name, p in view.parameters.items()}

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure after the update, and let go of the weights before it."""
        try:
            return super().measure(view)
        finally:
            self._held = {}

    def operator_of(self, objective: Objective) -> Operator:
        """Return the Hessian of an objective, by the method that works."""
        return self._choice.operator(objective, retain=self._parts == 1)

    def quadratic(self, objective: Objective, vector: Tensor | None = None) -> tuple[QuadraticModel, str]:
        """Return slope and curvature along a vector (None: the gradient), and the method; see `quadratic_model`.

        Raises:
            NonFinite: The loss is NaN or infinite.
            Unmeasurable: No method works.
        """  # noqa: DOC502 (the first raised by the operator)
        while True:
            operator = self.operator_of(objective)
            try:
                return quadratic_model(operator, vector), self.method_of(operator)
            except Unmeasurable as error:
                if not self._choice.doubt(str(error)):
                    raise
            finally:
                operator.release()

    def applied(self, loss: PureLoss, view: TrainingView) -> AppliedUpdate:
        """Return the update with the loss before and after it; inside `measured` only."""
        return applied_update(loss, self._held, self.parts(self.batch_of(view)))

    def where(self, view: TrainingView) -> str:
        """Return a suffix for `method` if the batch is not all that the update was made from; '' if it is.

        With accumulated gradients only the last micro-batch is at hand, with several processes only that of the first.
        """
        if self.batch is not None:
            return "_on_a_given_batch"
        seen, whole = count(view.batch), view.examples
        if seen and whole and seen < whole:
            return f"_on_{seen}_of_{whole}_examples"
        return f"_on_the_last_of_{view.micro_batches}_micro_batches" if view.micro_batches > 1 else ""
