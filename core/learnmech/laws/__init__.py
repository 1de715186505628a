"""Laws of learning mechanics: pure functions from recorded numbers to predictions, and the protocol that judges them.

>>> [law.name for law in catalogue()]
['edge_of_stability', 'gradient_noise_scale', 'rotational_equilibrium']
"""

from learnmech.laws.catalogue import GROUP, UnknownLaw, catalogue, get
from learnmech.laws.judgement import LOOKS, Judgement, Point, judge
from learnmech.laws.law import Band, Law, Prediction, State, Value
from learnmech.laws.verdict import Verdict

__all__ = [
    "GROUP",
    "LOOKS",
    "Band",
    "Judgement",
    "Law",
    "Point",
    "Prediction",
    "State",
    "UnknownLaw",
    "Value",
    "Verdict",
    "catalogue",
    "get",
    "judge",
]
