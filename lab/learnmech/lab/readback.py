"""What the store says of a run, asked over HTTP as any page or script would ask."""

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from learnmech import laws

Json = Mapping[str, Any]

_PATIENCE: Final = 20.0
"""Seconds to wait until the judge has seen everything: it follows within one on an idle machine."""


class ReadbackError(RuntimeError):
    """The collector did not answer, or not with what was asked for."""


class Readback:
    """Reads from a collector.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON answer to a GET request.

        Raises:
            ReadbackError: There was none.
        """
        # http.client knows no proxies, and a proxy of the environment must not see what stays on this machine
        connection = http.client.HTTPConnection(self._host, self._port, timeout=10)
        try:
            connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ReadbackError(f"the collector did not answer {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ReadbackError(f"the collector answered {path} with {response.status}: {body[:300]!r}")
        return json.loads(body)

    def run(self, run_id: str) -> Json:
        """Return a run with its `laws` and `series`."""
        answer: Json = self.get(f"/v1/runs/{run_id}")
        return answer

    def events(self, run_id: str) -> list[Json]:
        """Return the first thousand events of a run."""
        answer: list[Json] = self.get(f"/v1/runs/{run_id}/events")["events"]
        return answer

    def residuals(self, run_id: str, law: str, scope: str = "") -> Json:
        """Return measured against predicted as columns, one entry per measurement."""
        answer: Json = self.get(f"/v1/runs/{run_id}/residuals", law=law, scope=scope, points=20_000)
        return answer

    def settled(self, run_id: str) -> Json:
        """Wait until a run has ended and all of it is judged, and return it.

        Gives up after a while and returns it as it is then: what is missing shows in what it says.

        Raises:
            ReadbackError: The collector did not answer.
        """  # noqa: DOC502 (raised by get)
        until = time.monotonic() + _PATIENCE
        while True:
            run = self.run(run_id)
            if (run["status"] != "running" and judged(run)) or time.monotonic() >= until:
                return run
            time.sleep(0.2)


def judged(run: Json) -> bool:
    """Tell whether every law has been judged at the newest measurement of what it predicts, in every scope.

    A law may have nothing to say of a scope (rotational equilibrium of a block of tensors): it has been there once it
    has judged another one as late.
    """
    newest: dict[tuple[str, str], int] = {}
    for series in run["series"]:
        for law in laws.catalogue():
            if series["observable"] in law.measures:
                key = law.name, series["scope"]
                newest[key] = max(newest.get(key, -1), series["last_step"])
    seen = {(row["law"], row["scope"]): row["step"] for row in run["laws"]}
    latest: dict[str, int] = {}
    for (law_name, _), step in seen.items():
        latest[law_name] = max(latest.get(law_name, -1), step)
    return all(seen.get(key, latest.get(key[0], -1)) >= step for key, step in newest.items())
