"""SQL behind the panels of parts of a model: some of an observable's scopes as lines, those that matter most.

Scopes are those of `learnmech.probes.groups` and `learnmech.probes.symmetry`: `''` for the whole model, `type:Linear`,
`group:0`, `symmetry:scale`, and paths of modules. A path below another one that was measured is a tensor, not a block.
"""

from learnmech.dashboards.grafana.queries import CHOSEN, POINTS, TRUSTED
from learnmech.dashboards.panels import Panel

FIRST = 8
"""Lines at most: as many as colours can be told apart."""

_KINDS = {
    "blocks": """m.scope NOT IN ('', 'scale_invariant') AND m.scope !~ '^(type|group|symmetry):'
     AND NOT EXISTS (SELECT 1 FROM measured AS o
                      WHERE o.slot = m.slot AND o.scope <> ''
                        AND left(m.scope, length(o.scope) + 1) = o.scope || '.')""",
    "kinds": "m.scope LIKE 'symmetry:%' AND m.scope NOT LIKE '%/%'",
    "probes": "m.scope <> ''",
}
"""Which scopes are rows, by what a panel calls them."""


def curves(panel: Panel, *, positive: bool = False) -> str:
    """Return the query of a map's panel: rows (step, series, value), series being a scope.

    Args:
        panel: The declaration.
        positive: Drop what a logarithmic axis cannot show.
    """
    shown = "CASE WHEN value > 0 THEN value END" if positive else "value"
    direction = "ASC" if panel.lowest else "DESC"
    return f"""WITH {CHOSEN}, measured AS MATERIALIZED (
  SELECT c.slot, c.run_id, r.scope, {TRUSTED} AS value
    FROM chosen AS c JOIN latest AS r ON r.run_id = c.run_id WHERE r.observable = '{panel.name}'
), parts AS (
  SELECT m.slot, m.run_id, m.scope,
         row_number() OVER (PARTITION BY m.slot ORDER BY m.value {direction} NULLS LAST, m.scope) AS place
    FROM measured AS m
   WHERE {_KINDS[panel.rows]}
), raw AS (
  SELECT p.slot, p.scope, r.step, {TRUSTED} AS value
    FROM parts AS p
    JOIN observations AS r ON r.run_id = p.run_id AND r.observable = '{panel.name}' AND r.scope = p.scope
   WHERE p.place <= {FIRST}
), width AS (
  SELECT CASE WHEN max(n) <= {POINTS} THEN 1 ELSE ceil((max(high) - min(low) + 1) / {POINTS}) END::bigint AS w
    FROM (SELECT count(*) AS n, min(step) AS low, max(step) AS high FROM raw GROUP BY slot, scope) AS sizes
), cells AS (
  SELECT DISTINCT ON (slot, scope, step / w) slot, scope, step / w * w AS step, value
    FROM raw CROSS JOIN width ORDER BY slot, scope, step / w, raw.step DESC
)
SELECT step, CASE WHEN (SELECT count(*) FROM chosen) > 1 THEN slot || ': ' ELSE '' END || scope AS series,
       ({shown})::double precision AS value
  FROM cells ORDER BY step, series"""
