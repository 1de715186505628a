"""Dashboard variables: the data source, the runs, the scope, how many points, and the hidden slot names."""

from typing import Any

from learnmech.dashboards.grafana.names import (
    POSTGRES_TYPE,
    POSTGRES_UID,
    PROMETHEUS_TYPE,
    PROMETHEUS_UID,
    SLOTS,
    WHOLE_MODEL,
)
from learnmech.dashboards.grafana.queries import CHOSEN, RUNS

_NEVER, _ON_LOAD, _ON_TIME_RANGE = 0, 1, 2
_SHOWN, _HIDDEN = 0, 2

DATASOURCE = {"type": POSTGRES_TYPE, "uid": "${datasource}"}
METRICS = {"type": PROMETHEUS_TYPE, "uid": "${metrics}"}

RUN_QUERY = (
    "SELECT run || ' (' || left(run_id, 6) || ')' AS __text, run_id AS __value "
    "FROM runs ORDER BY created DESC LIMIT 1000"
)


def datasource(name: str = "datasource") -> dict[str, Any]:
    """Choose the PostgreSQL (or, called `metrics`, the Prometheus) that is read."""
    kind, uid, label = {
        "datasource": (POSTGRES_TYPE, POSTGRES_UID, "Store"),
        "metrics": (PROMETHEUS_TYPE, PROMETHEUS_UID, "Metrics"),
    }[name]
    return {
        "name": name,
        "label": label,
        "type": "datasource",
        "query": kind,
        "current": {"selected": False, "text": uid, "value": uid},
        "hide": _SHOWN,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": _ON_LOAD,
        "regex": "",
        "skipUrlSync": False,
    }


def run() -> dict[str, Any]:
    """Choose one or several runs; the value is the id, for names need not be unique."""
    return _query(
        "run",
        "Run",
        RUN_QUERY,
        multi=True,
        refresh=_ON_TIME_RANGE,
        description=f"Up to {SLOTS} runs are drawn at once.",
    )


def scope(measures: tuple[str, ...]) -> dict[str, Any]:
    """Choose the scope of a law among those in which its gauge is measured."""
    names = ", ".join(f"'{name}'" for name in measures)
    sql = (
        f"SELECT DISTINCT CASE scope WHEN '' THEN '{WHOLE_MODEL}' ELSE scope END AS __value FROM latest "
        f"WHERE observable IN ({names}) AND run_id = {RUNS} ORDER BY 1"
    )
    return _query(
        "scope", "Scope", sql, refresh=_ON_TIME_RANGE, description="The part of the model that the law is applied to."
    )


def points() -> dict[str, Any]:
    """Choose how many points a curve has at most."""
    choices = ("300", "1000", "3000")
    return {
        "name": "points",
        "label": "Points",
        "description": "Most points per curve; more steps are put into buckets.",
        "type": "custom",
        "query": ",".join(choices),
        "current": {"selected": True, "text": "1000", "value": "1000"},
        "hide": _SHOWN,
        "includeAll": False,
        "multi": False,
        "options": [{"selected": value == "1000", "text": value, "value": value} for value in choices],
        "skipUrlSync": False,
    }


def slots() -> list[dict[str, Any]]:
    """Name the chosen runs by slot, for the legends; hidden, and chained to `run`."""
    return [
        _query(
            f"slot_{slot}",
            f"Slot {slot}",
            f"WITH {CHOSEN} SELECT run AS __value FROM chosen WHERE slot = {slot}",
            refresh=_ON_TIME_RANGE,
            hide=_HIDDEN,
        )
        for slot in range(1, SLOTS + 1)
    ]


def _query(
    name: str, label: str, sql: str, *, refresh: int, multi: bool = False, hide: int = _SHOWN, description: str = ""
) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "description": description,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": sql,
        "query": sql,
        "current": {},
        "hide": hide,
        "includeAll": False,
        "multi": multi,
        "options": [],
        "refresh": refresh,
        "regex": "",
        "skipUrlSync": hide == _HIDDEN,
        "sort": 0,
    }
