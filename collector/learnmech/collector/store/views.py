"""The public SQL: views that people and dashboards read, the same in SQLite and PostgreSQL.

`run` is a run's name and `run_id` its 32 hexadecimal digits. Times are seconds since the epoch. After a resume from an
earlier checkpoint the views show what led to the newest weights (`lineage`); `measurements` alone also shows what was
superseded. A number that is NaN or infinite is NULL here, so that aggregates stay clean, and `nonfinite` says which it
was.

A change of a view needs a revision in `migrations/`, even one that changes no table: the views of a database are made
anew when it is upgraded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import sqlalchemy as sa

from learnmech.collector.store.codes import ATTEMPT, NON_FINITE, SEVERITY, STATUS, VERDICT
from learnmech.laws import Verdict
from learnmech.observables import Status

STALLED_AFTER = 60
"""Seconds without a batch or a heartbeat (every 15 s) after which a run that has not ended counts as stalled."""


@dataclass(frozen=True, slots=True)
class View:
    """A public view.

    Attributes:
        description: What one row is.
        names: Its columns in order, with blanks between; a promise.
        select: Its text, in the SQL that both engines read.
    """

    description: str
    names: str
    select: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns in order."""
        return tuple(self.names.split())

    def query(self, now: str) -> str:
        """Return the text with `now`, an SQL expression for the present time, filled in."""
        return self.select.replace("{now}", now)


def _words(column: str, codes: Mapping[Status, int] | Mapping[Verdict, int] | Mapping[str, int]) -> str:
    arms = " ".join(f"WHEN {code} THEN '{word}'" for word, code in codes.items())
    return f"CASE {column} {arms} END"


def _filled(text: str) -> str:
    """Write out the words of the codes and the parts that several views share."""
    for column, owner in product(("time", "received", "samples", "tokens"), "pl"):
        found = _TICK.replace("{column}", column).replace("{owner}", owner)
        text = text.replace("{" + f"{column} of {owner}" + "}", found)
    last = {name: _LAST.replace("{column}", name) for name in ("step", "value", "stderr", "status", "nonfinite")}
    last |= {"status": _words(last["status"], STATUS), "nonfinite": _words(last["nonfinite"], NON_FINITE)}
    for name, part in last.items():
        text = text.replace("{last " + name + "}", part)
    for name, part in (
        ("{attempt_status}", _words("a.status", ATTEMPT)),
        ("{status}", _words("p.status", STATUS)),
        ("{nonfinite}", _words("p.nonfinite", NON_FINITE)),
        ("{verdict}", _words("l.verdict", VERDICT)),
        ("{severity}", _words("e.severity", SEVERITY)),
        ("{running}", str(ATTEMPT["running"])),
        ("{stalled_after}", str(STALLED_AFTER)),
    ):
        text = text.replace(name, part)
    return text


# All of these are written so that no guess of a planner can make them slow: from a run to its series to their points,
# each a range of a key. `+ 0` keeps points from being looked up by their run alone. Ticks and last points are looked up
# one by one, not joined: of a run that has just begun PostgreSQL takes a hundred thousand points for one row, and
# compares each of them with every tick.
_TICK = (
    "(SELECT t.{column} FROM tick AS t"
    " WHERE t.run_id = {owner}.run_id AND t.attempt = s.attempt AND t.step = {owner}.step)"
)

_RUNS = """
SELECT r.name AS run, r.uuid AS run_id, j.name AS project,
       CASE WHEN a.status = {running} AND {now} - r.last_seen > {stalled_after} THEN 'stalled'
            ELSE {attempt_status} END AS status,
       CASE WHEN a.status = {running} AND {now} - r.last_seen > {stalled_after} THEN r.last_seen + {stalled_after}
            ELSE COALESCE(a.status_time, a.started) END AS since,
       r.created, r.last_seen,
       (SELECT MAX(CASE WHEN b.last_step < b.keep_to THEN b.last_step ELSE b.keep_to END)
          FROM attempt AS b
         WHERE b.run_id = r.run_id AND b.last_step IS NOT NULL AND b.start_step <= b.keep_to) AS last_step,
       r.points,
       (SELECT COUNT(*) FROM attempt AS b WHERE b.run_id = r.run_id) AS attempts,
       a.tags, a.context, r.revision
  FROM run AS r
  JOIN project AS j ON j.project_id = r.project_id
  JOIN attempt AS a ON a.run_id = r.run_id AND a.attempt = r.attempt
"""

_OBSERVATIONS = """
SELECT r.name AS run, r.uuid AS run_id, p.step, {time of p} AS time, s.observable, s.scope,
       p.value, p.stderr, {status} AS status, {nonfinite} AS nonfinite
  FROM run AS r
  JOIN series AS s ON s.run_id = r.run_id
  JOIN attempt AS a ON a.run_id = s.run_id AND a.attempt = s.attempt
  JOIN point AS p ON p.run_id = s.run_id + 0 AND p.series_id = s.series_id AND p.step <= a.keep_to
"""

# Each number of the last point by a look-up at the end of its key, and only of the newest attempt that has a point.
# Of attempts that have points that count, the newer one has the greater `keep_to`.
_LAST = (
    "(SELECT p.{column} FROM point AS p WHERE p.run_id = s.run_id AND p.series_id = s.series_id"
    " AND p.step <= a.keep_to ORDER BY p.step DESC LIMIT 1)"
)

_LATEST = """
SELECT r.name AS run, r.uuid AS run_id, {last step} AS step,
       (SELECT t.time FROM tick AS t
         WHERE t.run_id = s.run_id AND t.attempt = s.attempt AND t.step = {last step}) AS time,
       s.observable, s.scope, {last value} AS value, {last stderr} AS stderr,
       {last status} AS status, {last nonfinite} AS nonfinite
  FROM run AS r
  JOIN series AS s ON s.run_id = r.run_id
  JOIN attempt AS a ON a.run_id = s.run_id AND a.attempt = s.attempt
 WHERE s.first_step <= a.keep_to
   AND NOT EXISTS (SELECT 1 FROM series AS n
                     JOIN attempt AS b ON b.run_id = n.run_id AND b.attempt = n.attempt
                    WHERE n.run_id = s.run_id AND n.observable = s.observable AND n.scope = s.scope
                      AND b.keep_to > a.keep_to AND n.first_step <= b.keep_to)
"""

_RESIDUALS = """
SELECT r.name AS run, r.uuid AS run_id, l.step, {time of l} AS time, s.law, s.scope, l.measured, l.measured_stderr,
       l.predicted, l.lower, l.upper, l.ratio, {verdict} AS verdict, l.reason
  FROM run AS r
  JOIN law_series AS s ON s.run_id = r.run_id
  JOIN attempt AS a ON a.run_id = s.run_id AND a.attempt = s.attempt
  JOIN law_point AS l ON l.run_id = s.run_id + 0 AND l.law_series_id = s.law_series_id AND l.step <= a.keep_to
"""

_EVENTS = """
SELECT r.name AS run, r.uuid AS run_id, e.event_id, e.attempt, e.step, e.time, e.received,
       e.kind, {severity} AS severity, e.message, e.data
  FROM run AS r
  JOIN event AS e ON e.run_id = r.run_id
"""

_TICKS = """
SELECT r.name AS run, r.uuid AS run_id, t.step, t.time, t.samples, t.tokens
  FROM run AS r
  JOIN attempt AS a ON a.run_id = r.run_id
  JOIN tick AS t ON t.run_id = a.run_id + 0 AND t.attempt = a.attempt AND t.step <= a.keep_to
"""

_MEASUREMENTS = """
SELECT r.name AS run, r.uuid AS run_id, s.attempt, p.step, {time of p} AS time, {received of p} AS received,
       {samples of p} AS samples, {tokens of p} AS tokens, s.observable, s.scope, p.value, p.stderr,
       {status} AS status, p.reason, m.name AS method, p.cost, {nonfinite} AS nonfinite,
       CASE WHEN p.step <= a.keep_to THEN 0 ELSE 1 END AS superseded
  FROM run AS r
  JOIN series AS s ON s.run_id = r.run_id
  JOIN attempt AS a ON a.run_id = s.run_id AND a.attempt = s.attempt
  JOIN point AS p ON p.run_id = s.run_id + 0 AND p.series_id = s.series_id
  LEFT JOIN method AS m ON m.run_id = p.run_id AND m.method_id = p.method_id
"""

_OBSERVATION_COLUMNS = "run run_id step time observable scope value stderr status nonfinite"

VIEWS: Mapping[str, View] = {
    "runs": View(
        "One row per run: how it stands, since when, how far it got, and what it said of itself.",
        "run run_id project status since created last_seen last_step points attempts tags context revision",
        _filled(_RUNS),
    ),
    "observations": View(
        "One row per measurement that counts.",
        _OBSERVATION_COLUMNS,
        _filled(_OBSERVATIONS),
    ),
    "latest": View(
        "The newest row of `observations` for each run, observable and scope.",
        _OBSERVATION_COLUMNS,
        _filled(_LATEST),
    ),
    "residuals": View(
        "One row per law, scope and step: measured beside predicted, the band in the measured unit, and the verdict.",
        "run run_id step time law scope measured measured_stderr predicted lower upper ratio verdict reason",
        _filled(_RESIDUALS),
    ),
    "events": View(
        "One row per event: starts, ends, failed probes, gaps.",
        "run run_id event_id attempt step time received kind severity message data",
        _filled(_EVENTS),
    ),
    "ticks": View(
        "One row per recorded step: its time and the examples and tokens seen, to change the x axis.",
        "run run_id step time samples tokens",
        _filled(_TICKS),
    ),
    "measurements": View(
        "Everything that was ever measured: what `observations` shows and what later attempts superseded, in full.",
        "run run_id attempt step time received samples tokens observable scope value stderr status reason "
        "method cost nonfinite superseded",
        _filled(_MEASUREMENTS),
    ),
}

_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "(EXTRACT(EPOCH FROM clock_timestamp())::double precision)",
}


def drop(connection: sa.Connection) -> None:
    """Drop the public views, because tables under views cannot be altered."""
    for name in VIEWS:
        connection.exec_driver_sql("DROP VIEW IF EXISTS " + name)


def create(connection: sa.Connection) -> None:
    """Create the public views."""
    for name, view in VIEWS.items():
        text = view.query(_NOW[connection.dialect.name])
        connection.exec_driver_sql("CREATE VIEW " + name + " AS" + text)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("COMMENT ON VIEW " + name + " IS '" + view.description.replace("'", "''") + "'")
