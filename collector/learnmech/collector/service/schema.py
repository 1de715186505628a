"""What goes in and out in OpenAPI's words, generated from the one definition of each message."""

from typing import Any

import msgspec

from learnmech import wire
from learnmech.collector.service.errors import Problem
from learnmech.collector.store import Asked, EventRow, LawRow, RunRow, SeriesRow


class Runs(msgspec.Struct, frozen=True):
    """The answer of `/v1/runs`.

    Attributes:
        runs: The newest first.
    """

    runs: list[RunRow]


class RunDetail(RunRow, frozen=True):
    """The answer of `/v1/runs/{run_id}`: the run, and what hangs on it.

    Attributes:
        laws: How each law stands in each scope.
        series: What the run has measured.
    """

    laws: list[LawRow]
    series: list[SeriesRow]


class Events(msgspec.Struct, frozen=True):
    """The answer of `/v1/runs/{run_id}/events`.

    Attributes:
        events: The oldest first.
    """

    events: list[EventRow]


_, _COMPONENTS = msgspec.json.schema_components(
    (wire.Batch, wire.Ack, Problem, Runs, RunDetail, Events, Asked), ref_template="#/components/schemas/{name}"
)


def components() -> dict[str, Any]:
    """Return the schemas of the messages by name, for `components.schemas`."""
    return dict(_COMPONENTS)


def content(message: type[msgspec.Struct], *media: str) -> dict[str, Any]:
    """Return the OpenAPI content of a body that is one `message`, in JSON unless told otherwise."""
    reference = {"schema": {"$ref": f"#/components/schemas/{message.__name__}"}}
    return dict.fromkeys(media or ("application/json",), reference)


def answers(message: type[msgspec.Struct], description: str = "The answer.") -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that answers with `message`."""
    return {200: {"description": description, "content": content(message)}}


def body(message: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the OpenAPI request body that is one `message`, in either format."""
    return {"required": True, "content": content(message, "application/msgpack", "application/json")}


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused, with what was expected.", "content": content(Problem)},
    "5XX": {"description": "Not now; come back with the same request.", "content": content(Problem)},
}
"""The OpenAPI responses of every route."""
