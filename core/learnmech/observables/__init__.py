"""The vocabulary of learnmech: every macroscopic quantity with its symbol, unit and definition.

>>> get("sharpness").unit
'loss'
>>> is_declared("user.my_metric")
True
"""

from learnmech.observables.catalogue import (
    MAX_NAME_LENGTH,
    USER_PREFIX,
    UnknownObservable,
    catalogue,
    get,
    is_declared,
)
from learnmech.observables.observable import Error, Kind, Observable, Scale
from learnmech.observables.sentence import SentenceEnum
from learnmech.observables.status import Status

__all__ = [
    "MAX_NAME_LENGTH",
    "USER_PREFIX",
    "Error",
    "Kind",
    "Observable",
    "Scale",
    "SentenceEnum",
    "Status",
    "UnknownObservable",
    "catalogue",
    "get",
    "is_declared",
]
