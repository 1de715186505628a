"""The judge: sets what laws predict beside what was measured, as measurements arrive and again years later."""

from learnmech.collector.judging.judge import Judge

__all__ = ["Judge"]
