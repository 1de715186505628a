"""The two ways in which a step cannot be replayed: never (a refusal, with its remedy) and not this time (a skip)."""


class Refusal(Exception):
    """This model, trainer or optimizer does not allow the measurement, now or later.

    Attributes:
        reason: What stands in the way, as a sentence.
        remedy: What to pass or change to get the measurement.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason} {remedy}".strip())
        self.reason = reason
        self.remedy = remedy


class Skip(Exception):
    """There is nothing to measure at this step (a training step that returned None): try at the next one."""
