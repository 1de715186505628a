"""Failures that processes share: one of them failed, and all of them raise the same."""

import enum

import torch


class PeerFailed(RuntimeError):
    """A process failed in a measurement that all of its group make together; the message says which one and how."""


class Kind(enum.IntEnum):
    """What kind of failure it was, the one that decides first: if several processes fail, all raise the first kind."""

    OTHER = 1
    VALUE = 2
    OUT_OF_MEMORY = 3
    REFUSAL = 4
    SKIP = 5
    NON_FINITE = 6
    NOT_TWICE_DIFFERENTIABLE = 7
    UNMEASURABLE = 8


def _classes() -> dict[Kind, type[Exception]]:
    # imported late: curvature and isolation stand on the messages between processes, and these know their errors
    from learnmech.probes.curvature.objective import NonFinite, Unmeasurable
    from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable
    from learnmech.probes.isolation.refusal import Refusal, Skip

    return {
        Kind.OUT_OF_MEMORY: torch.OutOfMemoryError,
        Kind.REFUSAL: Refusal,
        Kind.SKIP: Skip,
        Kind.NON_FINITE: NonFinite,
        Kind.NOT_TWICE_DIFFERENTIABLE: NotTwiceDifferentiable,  # before its own base class
        Kind.UNMEASURABLE: Unmeasurable,
        Kind.VALUE: ValueError,
    }


def kind_of(error: BaseException) -> Kind:
    """Return the kind of an error: what a caller tells apart."""
    return next((kind for kind, cls in _classes().items() if isinstance(error, cls)), Kind.OTHER)


def error_of(kind: Kind, message: str) -> Exception:
    """Return an error of a kind, the same in every process."""
    return _classes().get(kind, PeerFailed)(message)
