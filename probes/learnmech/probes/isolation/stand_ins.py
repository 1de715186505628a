"""What a model holds, for the time of an evaluation, in the place of a tracker, an open file, a queue or an iterator.

Operators are looked up on the type, past `__getattr__`: every one of them is defined here, or `in` would try the items
0, 1, 2, ... of a tracker for ever, and a thread of the user's would not find `len` of its own queue.
"""

import copy
import math
import operator
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from learnmech.probes.isolation.flag import is_probing
from learnmech.probes.isolation.outward import stop

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})

_READS: dict[str, Callable[..., Any]] = {
    "__len__": len, "__iter__": iter, "__next__": next, "__reversed__": reversed, "__contains__": operator.contains,
    "__float__": float, "__int__": int, "__complex__": complex, "__index__": operator.index, "__round__": round,
    "__trunc__": math.trunc, "__floor__": math.floor, "__ceil__": math.ceil, "__fspath__": os.fspath,
    "__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge,
    "__reduce_ex__": lambda original, protocol: original.__reduce_ex__(protocol),
}  # fmt: skip
"""Operators that make a plain value of an object."""

_WRITES: dict[str, Callable[..., Any]] = {
    "__setitem__": operator.setitem, "__delitem__": operator.delitem, "__setattr__": setattr, "__delattr__": delattr,
    "__exit__": lambda original, *failure: original.__exit__(*failure),
}  # fmt: skip
"""Operators that return nothing."""

_TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")


def _reflected(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda original, other: operation(other, original)


_GIVES: dict[str, Callable[..., Any]] = {
    "__getitem__": operator.getitem, "__neg__": operator.neg, "__pos__": operator.pos, "__abs__": abs,
    "__invert__": operator.invert, "__divmod__": divmod, "__rdivmod__": _reflected(divmod),
    "__call__": lambda original, *arguments, **keywords: original(*arguments, **keywords),
    **{f"__{name}__": getattr(operator, f"__{name}__") for name in _TWO},
    **{f"__r{name}__": _reflected(getattr(operator, f"__{name}__")) for name in _TWO},
}  # fmt: skip
"""Operators that make another object."""

_KEEPS: dict[str, Callable[..., Any]] = {
    "__enter__": lambda original: original.__enter__(), "__copy__": copy.copy,
    "__deepcopy__": copy.deepcopy,
    **{f"__i{name}__": getattr(operator, f"__i{name}__") for name in _TWO},
}  # fmt: skip
"""Operators that return the object itself, of things like trackers."""


class StandIn:
    """Stands in for an object in the thread that made it, while it measures; everybody else meets the object itself.

    Args:
        original: What it stands for.
        name: Where that is, such as "Model.queue".
    """

    def __init__(self, original: Any, name: str) -> None:
        state = {"_original": original, "_name": name, "_thread": threading.get_ident()}
        object.__getattribute__(self, "__dict__").update(state)

    def _answer(self, operation: str, *arguments: Any) -> Any:
        """Answer the evaluation."""
        raise NotImplementedError

    def __getattribute__(self, attribute: str) -> Any:
        """Answer, or pass on: nothing of the object's own is hidden by a name of ours."""
        if attribute == "__class__":  # `isinstance` says the same of both
            return type(_of(self, "_original"))
        if _is_met(self):
            return _of(self, "_answer")("__getattr__", attribute)
        return getattr(_of(self, "_original"), attribute)

    def __hash__(self) -> int:
        """Hash what it stands for."""
        return hash(_of(self, "_original"))

    def __eq__(self, other: object) -> bool:
        """Compare what it stands for; in the evaluation, which holds no other one, identity is enough."""
        return self is other if _is_met(self) else bool(_of(self, "_original") == other)

    def __bool__(self) -> bool:
        """Ask what it stands for."""
        return bool(_of(self, "_original"))

    def __repr__(self) -> str:
        """Show what it stands for."""
        return repr(_of(self, "_original"))

    def __str__(self) -> str:
        """Show what it stands for."""
        return str(_of(self, "_original"))

    def __format__(self, how: str) -> str:
        """Show what it stands for."""
        return format(_of(self, "_original"), how)


def _of(stand_in: Any, name: str) -> Any:
    return object.__getattribute__(stand_in, name)


def _is_met(stand_in: StandIn) -> bool:
    """Tell whether it is the evaluation that uses it: what escapes from one must not fail in the training."""
    return bool(_of(stand_in, "_thread") == threading.get_ident()) and is_probing()


def _named(stand_in: StandIn) -> str:
    return f"{_of(stand_in, '_name')} (a {type(_of(stand_in, '_original')).__name__})"


def _refuse_to_answer(stand_in: StandIn) -> NoReturn:
    stop(f"reads from {_named(stand_in)}", "which is silent while measuring")


def _operator(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StandIn, *arguments: Any, **keywords: Any) -> Any:
        if _is_met(self):
            return _of(self, "_answer")(name, *arguments)
        return operation(_of(self, "_original"), *arguments, **keywords)

    return method


for _name, _operation in (_READS | _WRITES | _GIVES | _KEEPS).items():
    setattr(StandIn, _name, _operator(_name, _operation))


class Withheld(StandIn):
    """Refuses the evaluation when it is used: a line written, or an item drawn, cannot be taken back."""

    def _answer(self, operation: str, *arguments: Any) -> Any:  # noqa: ARG002
        stop(f"uses {_named(self)}")


class Silent(StandIn):
    """Takes whatever it is told and does nothing; what it returns takes it too.

    Plain attributes are read as they are. A value that the tracker would have to be asked for is refused where it
    would become a number, a truth or a list, because the loss may depend on it.
    """

    def _answer(self, operation: str, *arguments: Any) -> Any:
        if operation in _READS:
            _refuse_to_answer(self)
        if operation in _WRITES:
            return None
        if operation in _KEEPS:
            return self
        if operation == "__getattr__":
            (attribute,) = arguments
            value = getattr(_of(self, "_original"), "__dict__", {}).get(attribute, self)
            if type(value) in _ATOMS:
                return value
            if attribute.startswith("__"):  # protocols that libraries ask for
                raise AttributeError(attribute)
        return _Answer(_of(self, "_original"), _of(self, "_name"))


class _Answer(Silent):
    """What a tracker would have returned: nobody knows what it is."""

    __hash__ = object.__hash__

    def __getattribute__(self, attribute: str) -> Any:
        """Return this again."""
        if attribute == "__class__":
            return _Answer
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self

    def _answer(self, operation: str, *arguments: Any) -> Any:
        return self if operation in _GIVES else super()._answer(operation, *arguments)

    def __eq__(self, other: object) -> bool:
        """Refuse: the answer may decide about the loss."""
        if _is_met(self) and self is not other:
            _refuse_to_answer(self)
        return self is other

    def __bool__(self) -> bool:
        """Refuse: `while tracker.is_busy():` would never end."""
        if _is_met(self):
            _refuse_to_answer(self)
        return True

    def __repr__(self) -> str:
        """Show where it came from."""
        return f"<from {_of(self, '_name')}>"

    def __str__(self) -> str:
        """Show where it came from."""
        return f"<from {_of(self, '_name')}>"

    def __format__(self, how: str) -> str:
        """Show where it came from, however a number would be shown."""
        return f"<from {_of(self, '_name')}>"
