"""Small integers in the tables for words in the views: one table of both, so that they cannot drift apart.

A code is for ever: new words are appended, none is renumbered, because stored rows keep the number.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from learnmech.laws import Verdict
from learnmech.observables import Status

STATUS: Mapping[Status, int] = MappingProxyType(
    {
        Status.OK: 0,
        Status.NOT_CONVERGED: 1,
        Status.UNDETERMINED: 2,
        Status.UNSUPPORTED: 3,
        Status.NON_FINITE: 4,
        Status.FAILED: 5,
    }
)
VERDICT: Mapping[Verdict, int] = MappingProxyType(
    {
        Verdict.HOLDS: 0,
        Verdict.DEVIATES: 1,
        Verdict.UNDETERMINED: 2,
        Verdict.NOT_APPLICABLE: 3,
        Verdict.SUB_EDGE: 4,
    }
)
NON_FINITE: Mapping[str, int] = MappingProxyType({"nan": 0, "inf": 1, "-inf": 2})
SEVERITY: Mapping[str, int] = MappingProxyType({"info": 0, "warning": 1, "error": 2})
# Of two words spoken at the same time by one attempt the higher code counts.
ATTEMPT: Mapping[str, int] = MappingProxyType({"running": 0, "finished": 1, "failed": 2})

STATUS_OF: Mapping[int, Status] = MappingProxyType({code: word for word, code in STATUS.items()})
VERDICT_OF: Mapping[int, Verdict] = MappingProxyType({code: word for word, code in VERDICT.items()})
NON_FINITE_OF: Mapping[int, float] = MappingProxyType({0: math.nan, 1: math.inf, 2: -math.inf})

RUN_EVENTS: Mapping[str, str] = MappingProxyType(
    {"run_started": "running", "run_finished": "finished", "run_failed": "failed"}
)
"""Kinds of events that say how an attempt stands."""


def non_finite_code(value: float) -> int | None:
    """Return the code of NaN, inf or -inf; None for a finite number."""
    if math.isfinite(value):
        return None
    return 0 if math.isnan(value) else 1 if value > 0 else 2


def number(value: float | None, non_finite: int | None) -> float | None:
    """Put a number back together from its two columns."""
    return value if non_finite is None else NON_FINITE_OF[non_finite]
