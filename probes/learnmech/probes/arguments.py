"""Arguments of probes: what came, what was expected, what to type instead."""

from typing import Any


def whole(owner: object, name: str, value: Any, least: int, example: int) -> int:
    """Return a whole number of at least `least`.

    >>> whole("Sharpness", "max_products", 30, 1, 30)
    30

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is too small.
    """
    said = f"{_name(owner)}({name}={value!r}): expected a whole number of {least} or more, such as {example}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(said)
    if value < least:
        raise ValueError(said)
    return value


def share(owner: object, name: str, value: Any, what: str, example: float) -> float:
    """Return a number between 0 and 1.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not between 0 and 1.
    """
    said = f"{_name(owner)}({name}={value!r}): expected a {what} between 0 and 1, such as {example:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(said)
    if not 0 < value < 1:
        raise ValueError(said)
    return float(value)


def function(owner: object, name: str, value: Any, what: str) -> None:
    """Check that an optional argument can be called.

    Raises:
        TypeError: It cannot.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{_name(owner)}({name}={value!r}): expected {what}, or None")


def loss_function(name: str, value: Any) -> None:
    """Check that an argument can be called as `loss(model, batch)`.

    Raises:
        TypeError: It cannot.
    """
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; expected a function {name}(model, batch) -> scalar tensor")


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
