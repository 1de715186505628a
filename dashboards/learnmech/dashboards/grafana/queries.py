"""SQL behind the panels, on the public views only.

The curves of several runs share one frame with one x column, because the Trend panel wants it. Long runs are put into
buckets of steps, the last row of each counting. Runs are measured at different steps: one that has nothing at a step of
another gets the point on the straight line between its neighbours, exactly what the line would pass through. A
measurement that has no finite value, or is undetermined, stays NULL, so its gap stays a gap.
"""

from learnmech.dashboards.grafana.names import SLOTS, WHOLE_MODEL
from learnmech.dashboards.panels import Curve, Panel, Role, View

RUNS = "ANY (ARRAY[${run:sqlstring}]::text[])"
"""The chosen runs; an empty array when none is chosen, where `IN (...)` would be a syntax error."""

SCOPES = (
    "ANY (ARRAY(SELECT CASE s WHEN '"
    + WHOLE_MODEL
    + "' THEN '' ELSE s END FROM unnest(ARRAY[${scope:sqlstring}]::text[]) AS s))"
)
"""The chosen scope, with the whole model's name turned back into the empty scope."""

POINTS = "COALESCE((ARRAY[${points:sqlstring}]::text[])[1], '1000')::double precision"

CHOSEN = f"""chosen AS (
  SELECT run_id, run, row_number() OVER (ORDER BY created, run_id) AS slot
    FROM runs WHERE run_id = {RUNS}
   ORDER BY created, run_id LIMIT {SLOTS}
)"""
"""The chosen runs with their slots: oldest first, the same order as the variables `slot_1`, `slot_2`, ..."""

TRUSTED = "CASE WHEN r.status <> 'undetermined' THEN r.value END"
"""The value of an observation; a gap where its error bar is too wide for it to mean anything."""

_HELD = frozenset({Role.PREDICTED, Role.ZONE_LOWER, Role.ZONE_UPPER})


def expression(curve: Curve, table: str) -> str:
    """Write a curve as SQL."""
    value = f"{table}.{curve.column}"
    if curve.error:
        value = f"{value} {'+' if curve.sign > 0 else '-'} {table}.{curve.error}"
    if curve.divisor:
        value = f"({value}) / NULLIF({table}.{curve.divisor}, 0)"
    return value


def curves(panel: Panel, roles: tuple[Role, ...], *, positive: bool = False) -> str:
    """Return the query of a panel: rows (step, series, value), series being `slot:role`.

    Layers and intervals come with the keys of their curves as roles.

    Args:
        panel: The declaration.
        roles: The roles to draw, of those that the panel declares.
        positive: Drop what a logarithmic axis cannot show.
    """
    drawn = [curve for curve in panel.curves if curve.role in roles]
    columns = ", ".join(
        f"{TRUSTED} AS value" if panel.view is View.OBSERVATIONS and name == "value" else f"r.{name}"
        for name in dict.fromkeys(n for c in drawn for n in (c.column, c.error, c.divisor) if n)
    )
    values = ",\n           ".join(
        f"('{curve.role}', {expression(curve, 'c')}, {_boolean(panel.stepped and curve.role in _HELD)})"
        for curve in drawn
    )
    shown = "CASE WHEN value > 0 THEN value END" if positive else "value"
    return f"""WITH {CHOSEN}, raw AS (
  SELECT c.slot, r.step, {columns}
    FROM chosen AS c JOIN {panel.view} AS r ON r.run_id = c.run_id
   WHERE {_filter(panel)}
){_reference(panel)}{_further(panel)}, width AS (
  SELECT CASE WHEN max(n) <= {POINTS} THEN 1 ELSE ceil((max(high) - min(low) + 1) / {POINTS}) END::bigint AS w
    FROM ({_sizes(panel)}) AS sizes
), cells AS (
  SELECT DISTINCT ON (slot, step / w) raw.*, step / w AS bucket
    FROM raw CROSS JOIN width ORDER BY slot, step / w, step DESC
), points AS (
  SELECT c.slot, c.bucket, v.role, v.value, v.held
    FROM cells AS c CROSS JOIN LATERAL (VALUES
           {values}) AS v (role, value, held){_reference_points(panel)}{_further_points(panel)}
), grid AS (
  SELECT s.slot, s.role, s.held, b.bucket
    FROM (SELECT DISTINCT slot, role, held FROM points) AS s
   CROSS JOIN (SELECT DISTINCT bucket FROM points) AS b
), around AS (
  SELECT g.slot, g.role, g.held, g.bucket, p.value, p.slot IS NOT NULL AS known,
         max(p.bucket) OVER (PARTITION BY g.slot, g.role ORDER BY g.bucket) AS before,
         min(p.bucket) OVER (PARTITION BY g.slot, g.role ORDER BY g.bucket DESC) AS after
    FROM grid AS g LEFT JOIN points AS p ON p.slot = g.slot AND p.role = g.role AND p.bucket = g.bucket
), filled AS (
  SELECT a.bucket * w AS step, a.slot || ':' || a.role AS series,
         CASE WHEN a.known THEN a.value WHEN a.held THEN b.value
              ELSE b.value + (n.value - b.value) * (a.bucket - a.before) / NULLIF(a.after - a.before, 0) END AS value
    FROM around AS a CROSS JOIN width
    LEFT JOIN points AS b ON b.slot = a.slot AND b.role = a.role AND b.bucket = a.before
    LEFT JOIN points AS n ON n.slot = a.slot AND n.role = a.role AND n.bucket = a.after
)
SELECT step, series, ({shown})::double precision AS value FROM filled
 WHERE step IS NOT NULL ORDER BY step, series"""


def _boolean(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _filter(panel: Panel) -> str:
    if panel.view is View.RESIDUALS:
        return f"r.law = '{panel.name}' AND r.scope = {SCOPES}"
    return f"r.observable = '{panel.name}' AND r.scope = {_scope(panel)}"


def _scope(panel: Panel) -> str:
    """Write the panel's scope; where a run has others instead, as with the k of a subspace, its first one."""
    if not panel.scope or panel.fixed:
        return f"'{panel.scope}'"
    return (
        f"(SELECT l.scope FROM latest AS l WHERE l.run_id = c.run_id AND l.observable = '{panel.name}'"
        f" ORDER BY l.scope <> '{panel.scope}', l.scope LIMIT 1)"
    )


def _sizes(panel: Panel) -> str:
    """Count what each series has, the panel's own and the further ones."""
    sizes = "SELECT count(*) AS n, min(step) AS low, max(step) AS high FROM {} GROUP BY slot"
    own = sizes.format("raw")
    return f"{own}\n          UNION ALL {sizes.format('further')}, role" if panel.parts else own


def _further(panel: Panel) -> str:
    """Read the series behind layers and intervals."""
    if not panel.parts:
        return ""
    rows = ",\n           ".join(
        f"('{part.observable}', {_literal(part.scope)}, '{curve.role}', {curve.sign})"
        for part in panel.parts
        for curve in part.curves
    )
    return f""", further AS (
  SELECT c.slot, r.step, f.role, {TRUSTED} + CASE f.sign WHEN 0 THEN 0 ELSE f.sign * r.stderr END AS value
    FROM chosen AS c CROSS JOIN (VALUES
           {rows}) AS f (observable, scope, role, sign)
    JOIN observations AS r ON r.run_id = c.run_id AND r.observable = f.observable
     AND r.scope = COALESCE(f.scope, {_scope(panel)})
)"""


def _literal(scope: str | None) -> str:
    return "NULL::text" if scope is None else f"'{scope}'"


def _further_points(panel: Panel) -> str:
    if not panel.parts:
        return ""
    return """
  UNION ALL
  SELECT DISTINCT ON (slot, role, step / w) slot, step / w, role, value, FALSE
    FROM (SELECT * FROM further CROSS JOIN width ORDER BY slot, role, step / w, step DESC) AS others"""


def _reference(panel: Panel) -> str:
    if panel.reference is None:
        return ""
    over = panel.reference.over
    value = f"{over:g} / NULLIF(r.value, 0)" if over else "r.value"
    return f""", reference AS (
  SELECT c.slot, r.step, {value} AS value
    FROM chosen AS c JOIN observations AS r ON r.run_id = c.run_id
   WHERE r.observable = '{panel.reference.observable}' AND r.scope = '{panel.reference.scope}'
)"""


def _reference_points(panel: Panel) -> str:
    """Add the hyperparameter in force; recorded on change, so it holds from there on."""
    if panel.reference is None:
        return ""
    return f"""
  UNION ALL
  SELECT DISTINCT ON (slot, step / w) slot, step / w, '{Role.PREDICTED}', value, TRUE
    FROM (SELECT * FROM reference CROSS JOIN width ORDER BY slot, step / w, step DESC) AS held"""


def _standing(law_name: str, columns: str) -> str:
    """Select from the newest residual of each chosen run in the chosen scope: a look-up at the end of an index."""
    return f"""WITH {CHOSEN}
SELECT {columns}
  FROM chosen AS c CROSS JOIN LATERAL (
    SELECT * FROM residuals AS r WHERE r.run_id = c.run_id AND r.law = '{law_name}' AND r.scope = {SCOPES}
     ORDER BY r.step DESC LIMIT 1) AS l
 ORDER BY c.slot"""


def standing(law_name: str, column: str) -> str:
    """Return one number or word of the newest residual of each chosen run, by run name."""
    return _standing(law_name, f"c.run, l.{column} AS value")


def reasons(law_name: str) -> str:
    """Return the newest verdict of each chosen run with its sentence."""
    return _standing(law_name, "c.run, l.scope, l.step, l.verdict, l.ratio, l.measured, l.predicted, l.reason")


def verdict_history(law_name: str) -> str:
    """Return verdicts over wall time, one column per run, only where they changed."""
    return f"""WITH {CHOSEN}, changes AS (
  SELECT c.run, r.time, r.verdict, lag(r.verdict) OVER (PARTITION BY c.slot ORDER BY r.step) AS before
    FROM chosen AS c JOIN residuals AS r ON r.run_id = c.run_id
   WHERE r.law = '{law_name}' AND r.scope = {SCOPES} AND r.time BETWEEN $__unixEpochFrom() AND $__unixEpochTo()
)
SELECT to_timestamp(time) AS "time", run AS metric, verdict AS value
  FROM changes WHERE before IS DISTINCT FROM verdict ORDER BY 1"""


def missing(law_measures: tuple[str, ...]) -> str:
    """Count, per chosen run, the law's measurements without a usable value."""
    names = ", ".join(f"'{name}'" for name in law_measures)
    return f"""WITH {CHOSEN}
SELECT c.run, count(*) FILTER (WHERE o.status NOT IN ('ok', 'not_converged')) AS value
  FROM chosen AS c JOIN observations AS o ON o.run_id = c.run_id
 WHERE o.observable IN ({names}) AND o.scope = {SCOPES}
 GROUP BY c.run, c.slot ORDER BY c.slot"""


def count_status(status: str) -> str:
    """Count the runs with a status."""
    return f"SELECT '{status}' AS run, count(*) AS value FROM runs WHERE status = '{status}'"


RUN_TABLE = """SELECT run, project, status, to_timestamp(created) AS started, last_step AS step, points, attempts,
       left(run_id, 6) AS id
  FROM runs ORDER BY created DESC LIMIT 100"""


def _newest(gauges: list[tuple[str, str]]) -> str:
    """Select the newest residual of each law and scope of the chosen runs: look-ups, no scan of the residuals."""
    pairs = ", ".join(f"('{law}', '{observable}')" for law, observable in gauges)
    return f"""WITH {CHOSEN}, newest AS (
  SELECT c.slot, c.run, l.law, l.scope, l.step, l.verdict, l.ratio, l.measured, l.predicted, l.reason
    FROM chosen AS c
    JOIN latest AS o ON o.run_id = c.run_id
    JOIN (VALUES {pairs}) AS g (law, observable) ON g.observable = o.observable
   CROSS JOIN LATERAL (
     SELECT * FROM residuals AS r WHERE r.run_id = c.run_id AND r.law = g.law AND r.scope = o.scope
      ORDER BY r.step DESC LIMIT 1) AS l
)"""


def count_verdict(gauges: list[tuple[str, str]], verdict: str) -> str:
    """Count laws and scopes of the chosen runs by their newest verdict; `gauges` pairs laws with observables."""
    return f"{_newest(gauges)}\nSELECT '{verdict}' AS run, count(*) AS value FROM newest WHERE verdict = '{verdict}'"


def verdict_table(gauges: list[tuple[str, str]]) -> str:
    """List the newest verdict of each law and scope of the chosen runs."""
    return f"""{_newest(gauges)}
SELECT run, law, CASE scope WHEN '' THEN '{WHOLE_MODEL}' ELSE scope END AS scope, step, verdict, ratio,
       measured, predicted, reason
  FROM newest ORDER BY slot, law, scope"""
