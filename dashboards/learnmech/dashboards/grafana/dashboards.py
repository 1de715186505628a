"""The dashboards: one question each, made of declared panels and a first row of numbers."""

from typing import Any

from learnmech import laws
from learnmech.dashboards import panels
from learnmech.dashboards.grafana import fields, queries, variables, widgets
from learnmech.dashboards.grafana.layout import WIDTH, Rows, place
from learnmech.dashboards.grafana.names import SCHEMA_VERSION, TAG
from learnmech.dashboards.panels import Panel, Section

_RELATED = {
    "edge_of_stability": ("loss", "overhead"),
    "gradient_noise_scale": ("noise_scale", "loss"),
    "rotational_equilibrium": ("weight_norm", "loss"),
}
"""Observables that explain a law's panel, drawn below it; any other law gets the loss and the overhead."""

_FOLDED = {
    "edge_of_stability": (Section.CURVATURE,),
    "gradient_noise_scale": (Section.NOISE,),
    "rotational_equilibrium": (Section.WEIGHTS, Section.SYMMETRIES),
}
"""Sections that explain a law further, folded below its panels."""


def uid(law_name: str) -> str:
    """Return the stable uid of a law's dashboard; Grafana allows 40 characters."""
    return f"learnmech-{law_name.replace('_', '-')}"[:40]


def everything() -> dict[str, dict[str, Any]]:
    """Return every dashboard by its file name."""
    made = [overview(), *(law(item) for item in laws.catalogue()), operations()]
    return {f"{dashboard['uid'].removeprefix('learnmech-')}.json": dashboard for dashboard in made}


def overview() -> dict[str, Any]:
    """How do the runs stand, and what does every law say of each?"""
    gauges = [(item.name, name) for item in laws.catalogue() for name in item.measures]
    count = (
        "How many runs have this status now. A run that has not ended and was not heard of for 60 s has stalled."
        "\n\n**Source.** View `runs`."
    )
    states = [
        (4, widgets.stat(title, count, queries.count_status(status)))
        for title, status in (
            ("Running", "running"),
            ("Stalled", "stalled"),
            ("Failed", "failed"),
            ("Finished", "finished"),
        )
    ]
    numbers = [
        (4, widgets.stat("Laws that deviate", _VERDICT_COUNT, queries.count_verdict(gauges, "deviates"))),
        (4, widgets.stat("Laws that hold", _VERDICT_COUNT, queries.count_verdict(gauges, "holds"))),
    ]
    runs = widgets.table(
        "Runs",
        "The newest 100 runs, newest first.\n\n**Source.** View `runs`.",
        queries.RUN_TABLE,
        mapped={"status": fields.statuses()},
    )
    verdicts = widgets.table(
        "Verdicts of the chosen runs",
        "What every law says now of each chosen run, in every scope that is measured, with its numbers in a sentence. "
        "Measured / predicted has no unit.\n\n**Source.** View `residuals`, newest row of each law and scope.",
        queries.verdict_table(gauges),
        mapped={"verdict": fields.verdicts()},
        wide="reason",
    )
    rows = [(4, [*states, *numbers]), (10, [(24, runs)]), (12, [(24, verdicts)])]
    return _dashboard(
        "learnmech-overview",
        "learnmech: overview",
        "How do the runs stand, and what does every law of learning mechanics say of them?",
        rows,
        [variables.datasource(), variables.run(), variables.points(), *variables.slots()],
        _folded(Section.COST),
    )


_VERDICT_COUNT = (
    "Of the chosen runs: in how many scopes a law's newest verdict is this one.\n\n"
    "**Does not apply when** no run is chosen.\n\n**Source.** View `residuals`."
)


def law(item: laws.Law) -> dict[str, Any]:
    """Does this run obey the law, since when, and what explains it?"""
    panel = panels.get(item.name)
    if panel.companion is None:
        raise ValueError(
            f"the panel of law {item.name} has no companion; declare one in learnmech.dashboards.panels.laws"
        )
    source = f"\n\n**Source.** {item.reference}"
    stats = [
        widgets.stat(
            "Verdict", f"The newest verdict of each run.{source}", queries.standing(item.name, "verdict"), mappings=True
        ),
        widgets.stat(
            "Measured / predicted", f"1 is the law; no unit.{source}", queries.standing(item.name, "ratio"), decimals=3
        ),
        widgets.stat(
            "Measured", f"{' or '.join(item.measures)}, newest.{source}", queries.standing(item.name, "measured")
        ),
        widgets.stat(
            "Predicted",
            f"What the law says of the newest measurement.{source}",
            queries.standing(item.name, "predicted"),
        ),
        widgets.stat("Step", f"The step of the newest verdict.{source}", queries.standing(item.name, "step")),
        widgets.stat(
            "Measurements without a value",
            "How many of the law's measurements failed, were not finite or were undetermined: gaps in the plot."
            "\n\n**Source.** View `observations`.",
            queries.missing(item.measures),
        ),
    ]
    history = widgets.timeline(
        "Verdict over wall time",
        "Every change of verdict. `undetermined`: the error bar is wider than the tolerance. `not applicable`: a "
        f"precondition is false; the table says which.{source}",
        queries.verdict_history(item.name),
    )
    reasons = widgets.table(
        "Why",
        f"The newest verdict of each run with its reason. {item.advice[laws.Verdict.DEVIATES]}{source}",
        queries.reasons(item.name),
        mapped={"verdict": fields.verdicts()},
        wide="reason",
    )
    first, second = (panels.get(name) for name in _RELATED.get(item.name, ("loss", "overhead")))
    rows = [
        (4, [(4, stat) for stat in stats]),
        (11, [(14, widgets.trend(panel)), (10, widgets.ratio(panel.companion, item.band.lower, item.band.upper))]),
        (6, [(24, history)]),
        (8, [(12, widgets.trend(first)), (12, widgets.trend(second))]),
        (6, [(24, reasons)]),
    ]
    chosen = [
        variables.datasource(),
        variables.run(),
        variables.scope(item.measures),
        variables.points(),
        *variables.slots(),
    ]
    title = f"learnmech: {item.title[0].lower()}{item.title[1:]}"
    folded = _folded(*_FOLDED.get(item.name, ()), without=(first, second))
    return _dashboard(uid(item.name), title, panel.question, rows, chosen, folded)


def _folded(*sections: Section, without: tuple[Panel, ...] = ()) -> dict[str, Rows]:
    """Return the rows of sections by their titles, leaving out the panels that are shown already."""
    return {
        panels.TITLES[section]: _in_pairs([panel for panel in panels.of(section) if panel not in without])
        for section in sections
    }


def _in_pairs(section: list[Panel]) -> Rows:
    """Put two panels beside each other in each row; a distribution, parts of a model, and what is left over has one."""
    rows: list[list[Panel]] = []
    for panel in section:
        if rows and len(rows[-1]) == 1 and not _is_wide(panel) and not _is_wide(rows[-1][0]):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return [(9, [(WIDTH // len(row), _drawn(panel)) for panel in row]) for row in rows]


def _is_wide(panel: Panel) -> bool:
    return bool(panel.intervals or panel.rows)


def _drawn(panel: Panel) -> dict[str, Any]:
    return widgets.by_part(panel) if panel.rows else widgets.trend(panel)


def operations() -> dict[str, Any]:
    """Does the collector take everything, in time?"""
    source = "\n\n**Source.** The collector's `/metrics`, scraped by Prometheus."
    up = widgets.series(
        "Ready",
        f"1 when the database answers and its schema is current.{source}",
        ("learnmech_ready", "ready"),
        unit="none",
    )
    rate = widgets.series(
        "Measurements",
        "Measurements per second by outcome. `rejected` means an unknown name or an impossible value: the trainer "
        f"keeps them.{source}",
        ("sum by (outcome) (rate(learnmech_ingest_measurements_total[5m]))", "{{outcome}}"),
        unit="cps",
    )
    batches = widgets.series(
        "Batches",
        f"Batches per second by outcome. `deferred` batches are sent again, `refused` ones never will be.{source}",
        ("sum by (outcome) (rate(learnmech_ingest_batches_total[5m]))", "{{outcome}}"),
        unit="cps",
    )
    latency = widgets.series(
        "Time to store a batch",
        f"Median and 99th percentile of decoding and storing one batch.{source}",
        ("histogram_quantile(0.5, sum by (le) (rate(learnmech_ingest_seconds_bucket[5m])))", "median"),
        ("histogram_quantile(0.99, sum by (le) (rate(learnmech_ingest_seconds_bucket[5m])))", "99 %"),
        unit="s",
    )
    pending = widgets.series(
        "Runs waiting for the judge",
        f"Runs with measurements that no law has looked at yet. Growing without end: the judge is too slow.{source}",
        ("learnmech_judge_pending_runs", "runs"),
        unit="none",
    )
    runs = widgets.series(
        "Runs by status", f"How many runs have each status.{source}", ("learnmech_runs", "{{status}}"), unit="none"
    )
    rows = [(8, [(8, up), (8, runs), (8, pending)]), (9, [(8, rate), (8, batches), (8, latency)])]
    return _dashboard(
        "learnmech-operations",
        "learnmech: operations",
        "Does the collector take everything that is sent, in time?",
        rows,
        [variables.datasource("metrics")],
    )


def _dashboard(
    name: str,
    title: str,
    question: str,
    rows: Rows,
    chosen: list[dict[str, Any]],
    folded: dict[str, Rows] | None = None,
) -> dict[str, Any]:
    return {
        "uid": name,
        "title": title,
        "description": question,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-24h", "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "links": [_LINKS],
        "templating": {"list": chosen},
        "panels": place(rows, folded),
        "preload": False,
    }


_LINKS = {
    "type": "dashboards",
    "title": "learnmech",
    "tags": [TAG],
    "asDropdown": False,
    "icon": "external link",
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "tooltip": "",
    "url": "",
}
"""Links to the other dashboards that keep the chosen runs and the time."""
