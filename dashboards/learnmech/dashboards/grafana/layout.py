"""Places on Grafana's grid of 24 columns: rows of panels, from the top down, with stable ids."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 24


Rows = Sequence[tuple[int, Sequence[tuple[int, dict[str, Any]]]]]
"""For each row its height, and its panels with their widths; the widths of a row add up to `WIDTH`."""


def place(rows: Rows, folded: Mapping[str, Rows] | None = None) -> list[dict[str, Any]]:
    """Give panels their places and ids.

    Args:
        rows: What is shown.
        folded: By title, rows below it that are folded away, and asked for only when a reader opens them.
    """
    placed, top = _place(rows, top=0, number=1)
    number = len(placed) + 1
    for title, hidden in (folded or {}).items():
        inside, bottom = _place(hidden, top=top + 1, number=number + 1)
        head = {"type": "row", "title": title, "collapsed": True, "panels": inside}
        placed.append({**head, "id": number, "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top}})
        number += 1 + len(inside)
        top = bottom
    return placed


def _place(rows: Rows, *, top: int, number: int) -> tuple[list[dict[str, Any]], int]:
    """Place rows from `top` down and number their panels from `number` on; return them and where they end.

    Raises:
        ValueError: A row that does not fill the width.
    """
    placed: list[dict[str, Any]] = []
    for height, panels in rows:
        if sum(width for width, _ in panels) != WIDTH:
            titles = ", ".join(repr(panel["title"]) for _, panel in panels)
            raise ValueError(f"a row with {titles} is not {WIDTH} columns wide")
        left = 0
        for width, panel in panels:
            placed.append(
                {**panel, "id": number + len(placed), "gridPos": {"h": height, "w": width, "x": left, "y": top}}
            )
            left += width
        top += height
    return placed, top
