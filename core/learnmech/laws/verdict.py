"""What the judge may say of a law, and what each word means."""

from learnmech.observables import SentenceEnum


class Verdict(SentenceEnum):
    """The state of one law in one scope of one run. Each member's `sentence` says what it means."""

    HOLDS = "holds", "The whole confidence interval of measured/predicted lies inside the law's band."
    DEVIATES = "deviates", "The whole confidence interval lies outside the band, at three looks in a row."
    UNDETERMINED = "undetermined", "The error bar is wider than the tolerance, or there are too few measurements."
    NOT_APPLICABLE = "not_applicable", "A precondition of the law is false or unknown; the reason names it."
    SUB_EDGE = "sub_edge", "Below the edge of a one-sided law: informs, never alarms."
