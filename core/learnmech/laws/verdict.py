"""What the judge may say of a law, and what each word means."""

import enum
from typing import Self


class Verdict(enum.StrEnum):
    """The state of one law in one scope of one run. Each member's `sentence` says what it means."""

    sentence: str

    HOLDS = "holds", "The whole confidence interval of measured/predicted lies inside the law's band."
    DEVIATES = "deviates", "The whole confidence interval lies outside the band, at three looks in a row."
    UNDETERMINED = "undetermined", "The error bar is wider than the tolerance, or there are too few measurements."
    NOT_APPLICABLE = "not_applicable", "A precondition of the law is false or unknown; the reason names it."
    SUB_EDGE = "sub_edge", "Below the edge of a one-sided law: informs, never alarms."

    def __new__(cls, value: str, sentence: str) -> Self:
        """Make a string member that carries its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member
