"""How a measurement ended: failure is data, never an exception in training."""

from learnmech.observables.sentence import SentenceEnum


class Status(SentenceEnum):
    """The outcome of one measurement. Each member's `sentence` says what it means."""

    OK = "ok", "Measured; the error bar or residual is in `stderr`."
    NOT_CONVERGED = "not_converged", "The solver used up its products; `stderr` bounds the remaining residual."
    UNDETERMINED = "undetermined", "Measured, but the error bar is too wide for the number to mean anything yet."
    UNSUPPORTED = "unsupported", "This model, optimizer or trainer does not allow the measurement; `reason` says why."
    NON_FINITE = "non_finite", "The value is NaN or infinite; it is kept as data."
    FAILED = "failed", "The probe raised an exception; training went on; `reason` holds the message."
