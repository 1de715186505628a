"""Grafana panels of each kind, without a place on the grid and without an id; `layout` gives them both."""

from typing import Any

from learnmech.dashboards.grafana import fields, parts, queries
from learnmech.dashboards.grafana.variables import DATASOURCE, METRICS
from learnmech.dashboards.panels import Panel, Role

_BAND = (Role.UPPER, Role.LOWER, Role.PREDICTED, Role.MEASURED)
_RATIO = (Role.UPPER, Role.LOWER, Role.MEASURED)


def trend(panel: Panel) -> dict[str, Any]:
    """Draw a declared panel over steps: measured with its error band, prediction or reference dashed, further lines."""
    roles = tuple(
        role
        for role in _BAND
        if any(c.role is role for c in panel.curves) or (role is Role.PREDICTED and panel.reference)
    )
    log = panel.scale == "log"
    label = panel.reference.label if panel.reference else "predicted"
    config = fields.curves(panel, roles, log=log, predicted=label)
    return _trend(panel, config, queries.curves(panel, roles, positive=log and not panel.signed))


def by_part(panel: Panel) -> dict[str, Any]:
    """Draw a map's rows as lines, one panel for each chosen run: those that are to be looked at first."""
    log = panel.scale == "log"
    drawn = _trend(panel, fields.curves(panel, (), log=log), parts.curves(panel, positive=log))
    shown = f"{'Lowest' if panel.lowest else 'Highest'} {parts.FIRST} {panel.rows}"
    return {
        **drawn,
        "title": f"{panel.title}: ${{run:text}}",
        "description": f"{shown} by their newest value; the live page shows all as a map.\n\n{drawn['description']}",
        "repeat": "run",
        "repeatDirection": "h",
        "maxPerRow": 2,
    }


def ratio(panel: Panel, lower: float, upper: float) -> dict[str, Any]:
    """Draw a companion: measured over predicted with a line at 1 and the tolerance."""
    return _trend(panel, fields.ratio(panel, _RATIO, lower, upper), queries.curves(panel, _RATIO))


def _trend(panel: Panel, config: dict[str, Any], sql: str) -> dict[str, Any]:
    return {
        "type": "trend",
        "title": panel.title,
        "description": panel.description.markdown(),
        "datasource": DATASOURCE,
        "targets": [_target(sql)],
        "transformations": [
            {
                "id": "groupingToMatrix",
                "options": {"columnField": "series", "rowField": "step", "valueField": "value", "emptyValue": "null"},
            },
            {
                "id": "organize",
                "options": {"excludeByName": {}, "indexByName": {}, "renameByName": {"step\\series": "step"}},
            },
        ],
        "options": {
            "xField": "step",
            "legend": {"calcs": ["lastNotNull"], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "fieldConfig": config,
    }


def stat(
    title: str, description: str, sql: str, *, unit: str = "none", decimals: int | None = None, mappings: bool = False
) -> dict[str, Any]:
    """Show one value per run; the query returns the columns `run` and `value`."""
    defaults: dict[str, Any] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "mappings": fields.verdicts() if mappings else [],
        "noValue": "no data",
        "thresholds": {"mode": "absolute", "steps": [{"color": "text", "value": None}]},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        "type": "stat",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(sql)],
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "/^value$/", "values": True, "limit": 8},
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


def table(
    title: str, description: str, sql: str, *, mapped: dict[str, list[dict[str, Any]]], wide: str = ""
) -> dict[str, Any]:
    """Show rows; `mapped` colours the words of columns, `wide` wraps a column of sentences."""
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [
                {"id": "mappings", "value": mapping},
                {"id": "custom.cellOptions", "value": {"type": "color-text"}},
            ],
        }
        for name, mapping in mapped.items()
    ]
    if wide:
        overrides.append(
            {
                "matcher": {"id": "byName", "options": wide},
                "properties": [
                    {"id": "custom.minWidth", "value": 420},
                    {"id": "custom.cellOptions", "value": {"type": "auto", "wrapText": True}},
                ],
            }
        )
    return {
        "type": "table",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(sql)],
        "options": {"cellHeight": "sm", "showHeader": True},
        "fieldConfig": {
            "defaults": {
                "unit": "none",
                "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
            },
            "overrides": overrides,
        },
    }


def timeline(title: str, description: str, sql: str) -> dict[str, Any]:
    """Show words over wall time as coloured bars, one row per run."""
    return {
        "type": "state-timeline",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(sql, form="time_series")],
        "options": {
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        "fieldConfig": {
            "defaults": {
                "unit": "string",
                "mappings": fields.verdicts(),
                "color": {"mode": "thresholds"},
                "custom": {"fillOpacity": 85, "lineWidth": 0, "insertNulls": False, "spanNulls": False},
            },
            "overrides": [],
        },
    }


def series(title: str, description: str, *expressions: tuple[str, str], unit: str) -> dict[str, Any]:
    """Draw Prometheus expressions over wall time; each comes with its legend."""
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": METRICS,
            "expr": expression,
            "legendFormat": legend,
            "range": True,
        }
        for place, (expression, legend) in enumerate(expressions)
    ]
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": METRICS,
        "targets": targets,
        "options": {
            "legend": {"calcs": ["lastNotNull"], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "palette-classic"},
                "custom": {"lineWidth": 2, "fillOpacity": 8},
            },
            "overrides": [],
        },
    }


def _target(sql: str, *, form: str = "table") -> dict[str, Any]:
    return {
        "refId": "A",
        "datasource": DATASOURCE,
        "editorMode": "code",
        "format": form,
        "rawQuery": True,
        "rawSql": sql,
    }
