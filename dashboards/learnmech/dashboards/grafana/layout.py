"""Places on Grafana's grid of 24 columns: rows of panels, from the top down, with stable ids."""

from collections.abc import Sequence
from typing import Any

WIDTH = 24


def place(rows: Sequence[tuple[int, Sequence[tuple[int, dict[str, Any]]]]]) -> list[dict[str, Any]]:
    """Give panels their places and ids.

    Args:
        rows: For each row its height, and its panels with their widths; the widths of a row add up to `WIDTH`.

    Raises:
        ValueError: A row that does not fill the width.
    """
    placed: list[dict[str, Any]] = []
    top = 0
    for height, panels in rows:
        if sum(width for width, _ in panels) != WIDTH:
            titles = ", ".join(repr(panel["title"]) for _, panel in panels)
            raise ValueError(f"a row with {titles} is not {WIDTH} columns wide")
        left = 0
        for width, panel in panels:
            placed.append({**panel, "id": len(placed) + 1, "gridPos": {"h": height, "w": width, "x": left, "y": top}})
            left += width
        top += height
    return placed
