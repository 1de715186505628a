"""What probes of an update have in common: they hold the weights before it, and evaluate the loss there after it."""

from typing import ClassVar

from torch import Tensor

from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.curvature.stability.quadratic import QuadraticModel, quadratic_model
from learnmech.probes.curvature.stability.update import AppliedUpdate, applied_update
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import PureLoss
from learnmech.probes.isolation.counting import count
from learnmech.probes.probe import Moment, TrainingView


class UpdateProbe(CurvatureProbe):
    """Measures the loss of the batch of an update at the weights w_t from before it. A subclass defines `measured`.

    After the update the model holds w_(t+1), which have moved along the gradient of this very batch: seen from there it
    has too small a gradient, and too little curvature along it. At w_t, which are held from before the update
    until the measurement (one copy of the weights), the batch is new.

    With several processes the batch of the update is the union of theirs: all of them measure together, weighted by
    examples. (The gradient that training itself averages over processes weights them alike: with batches of different
    sizes it is not quite the gradient of the union.)
    """

    moment: ClassVar[Moment] = Moment.UPDATE

    def quadratic(self, objective: Objective, vector: Tensor | None = None) -> tuple[QuadraticModel, str]:
        """Return slope and curvature along a vector (None: the gradient), and the method; see `quadratic_model`.

        Raises:
            NonFinite: The loss is NaN or infinite.
            Unmeasurable: No method works.
        """  # noqa: DOC502 (the first raised by the operator)
        while True:
            operator = self.operator_on(objective)
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

        With accumulated gradients only the last micro-batch is at hand; where one of several processes measures alone,
        only its own batch.
        """
        if self.batch is not None:
            return "_on_a_given_batch"
        seen, whole = count(view.batch), view.update_examples
        if not view.together and seen and whole and seen < whole:
            return f"_on_{seen}_of_{whole}_examples"
        return f"_on_the_last_of_{view.micro_batches}_micro_batches" if view.micro_batches > 1 else ""
