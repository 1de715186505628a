"""What a dry run has shown, as one JSON document: costs, cadences, methods, reasons, and whether it did harm."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from learnmech.probes.budget import Governor

VERSION = 1
"""Version of the document."""

SETTLING = 2
"""Updates at the beginning that are not timed: kernels are chosen and the optimizer's state is made then."""

REMEDY = "Pass loss="
"""How the sentence begins in which a refused replay says what to do."""


def document(
    target: str,
    result: Mapping[str, Any],
    alone: Mapping[str, Any] | None,
    again: Mapping[str, Any] | None,
    context: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    budget: float | None,
) -> dict[str, Any]:
    """Put a dry run together.

    Args:
        target: What was tried.
        result: The training with probes.
        alone: The same without; None if there was none.
        again: A second one without, made if they differ.
        context: What the run said of itself.
        events: Events of the run.
        budget: Share of the time; None for the script's own, or 0.01.
    """
    facts = result["facts"]
    share = budget if budget is not None else facts.get("budget") or 0.01
    # from the same minute as the costs of the probes: other work on the machine slows both down
    idle = [step for step in result["steps"][SETTLING:] if not step["busy"]]
    bookkeeping = statistics.median(step["bookkeeping"] for step in idle) if idle else math.nan
    pace = statistics.median(step["seconds"] - step["bookkeeping"] for step in idle) if idle else math.nan
    probes = [_probe(trial, result["steps"], events, pace, result["complete"]) for trial in result["trials"]]
    _plan(probes, share, pace, bookkeeping)
    return {
        "version": VERSION,
        "target": target,
        "budget": share,
        "training": {
            "trainer": facts.get("trainer"),
            **{key: context.get(key) for key in ("model", "parameters", "device", "device_name", "dtype", "precision")},
            **{key: context.get(key) for key in ("strategy", "gradient_clip", "optimizer", "torch")},
            "accumulation": facts.get("accumulation"),
            "updates": len(result["steps"]),
            "step_ms": _milliseconds(pace),
            "bookkeeping_ms": _milliseconds(bookkeeping),
            "changes": result["changes"],
            "side_effects": facts.get("side_effects", []),
        },
        "replay": _replay(events),
        "harmless": _harmless(result, alone, again),
        "complete": result["complete"],
        "probes": probes,
        "advice": _advice(probes, result, pace, bookkeeping, share),
    }


def _probe(
    trial: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    pace: float,
    complete: bool,
) -> dict[str, Any]:
    """Return what is to be said of one probe."""
    uses = trial["uses"]
    measured = [use for use in uses if any(m["value"] is not None for m in _numbers(use))]
    # facts are told when they change: a use may have no numbers and be right
    costs = [_cost(use, steps, pace) for use in uses if use in measured or not (use["problem"] or _numbers(use))]
    last = _numbers(measured[-1] if measured else uses[-1]) if uses else []
    refused = [m for m in last if m["observable"] in trial["observables"] and m.get("status") == "unsupported"]
    told = [
        event["message"].partition(": ")[2] for event in events if event.get("data", {}).get("probe") == trial["name"]
    ]
    works, reason = ("yes", "")
    if not uses and not told:
        works = "not tried"
        reason = "it never came to a measurement" if complete else "the training ended before its turn"
    elif not measured:
        problems = [use["problem"] for use in uses if use["problem"]]
        reasons = [m["reason"] for m in last if m.get("reason")]
        works, reason = "no", (problems or reasons or told or ["it returned no numbers"])[0]
    elif refused:
        works, reason = "partly", refused[0]["reason"]
    warm = statistics.fmean(costs[1:]) if len(costs) > 1 else math.nan
    main = next((m for m in last if m["value"] is not None and m["observable"] in trial["observables"]), None)
    return {
        "probe": trial["label"],
        "name": trial["name"],
        "wanted": trial["wanted"],
        "works": works,
        "reason": _because(reason)[0],
        "remedy": _because(reason)[1],
        "notices": [message for message in told if message != reason and works != "no"],
        "methods": list(dict.fromkeys(m["method"] for m in last if m.get("method") and m["value"] is not None)),
        "first_ms": _milliseconds(costs[0] if costs else math.nan),
        "warm_ms": _milliseconds(warm),
        "warm_steps": _number(warm / pace) if pace > 0 else None,
        "appetite": trial["appetite"],
        "measured": [
            {
                key: _number(m.get(key)) if key in ("value", "stderr") else m.get(key, "")
                for key in ("observable", "scope", "value", "stderr", "status", "method")
            }
            | {"status": m.get("status", "ok")}
            for m in last
            if m["value"] is not None
        ],
        "relative_error": None if main is None else _relative(main),
        "status": "" if main is None else main.get("status", "ok"),
    }


def _numbers(use: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [m for m in use["measurements"] if m["observable"] != "probe_cost"]


def _cost(use: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], pace: float) -> float:
    """Return the seconds of a use; a probe that watches the backward pass takes its time in there."""
    timed = float(use["seconds"])
    longer = float(steps[use["update"]]["seconds"]) - pace if use["watches"] and pace > 0 else 0.0
    return max(timed, longer)


def _because(reason: str) -> tuple[str, str]:
    """Split a reason from the remedy that it ends with."""
    before, found, after = reason.partition(REMEDY)
    return (before.strip(), f"{found}{after}".strip()) if found else (reason, "")


def _plan(probes: Sequence[dict[str, Any]], budget: float, pace: float, bookkeeping: float) -> None:
    """Tell how often each probe comes within the budget: alone, and beside the probes that the script has."""
    earned = max(budget * pace - bookkeeping, budget * pace / 2)  # seconds for all probes in each step
    company = [probe for probe in probes if probe["wanted"] and probe["works"] in ("yes", "partly")]
    for probe in probes:
        warm = probe["warm_ms"]
        for key, others in (("every_alone", []), ("every_together", [p for p in company if p is not probe])):
            governor = Governor(budget)
            for one in (*others, probe):
                governor.open(one["name"], True, one["appetite"])
            income = governor.accounts[probe["name"]].share * earned
            probe[key] = max(1, math.ceil(warm / 1000 / income)) if warm is not None and income > 0 else None


def _replay(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the self-test of the replay ended."""
    found = [event for event in events if event["kind"] == "self_test"]
    if not found:
        return {"verdict": "not needed", "relative_error": None, "reason": ""}
    passed = found[-1].get("severity", "info") == "info"
    error = _number(found[-1].get("data", {}).get("error"))
    return {
        "verdict": "passed" if passed else "refused",
        "relative_error": error,
        "reason": "" if passed else found[-1]["message"],
    }


def _harmless(
    result: Mapping[str, Any], alone: Mapping[str, Any] | None, again: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Compare the trainings with and without probes, update by update."""
    if alone is None:
        return {"identical": None, "detail": "not compared"}
    pairs = list(zip(result["fingerprints"], alone["fingerprints"], strict=False))
    differ = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if differ is None:
        return {
            "identical": True,
            "detail": f"bit for bit the same with and without probes over {len(pairs) - 1} updates",
        }
    if differ == 0:
        return {"identical": None, "detail": "not compared: the script starts from other weights or seeds each time"}
    if again is not None and again["fingerprints"][differ] != alone["fingerprints"][differ]:
        detail = f"not compared: the training does not repeat itself without probes either (update {differ})"
        return {"identical": None, "detail": detail}
    # a probe at rest changes weights that are there, or state from which the next update is computed
    near = result["steps"][max(differ - 2, 0) : differ]
    busy = ", ".join(dict.fromkeys(name for step in near for name in step["busy"])) or "nothing"
    detail = f"with probes the training is another one from update {differ} on; what measured then: {busy}"
    return {"identical": False, "detail": detail}


def _advice(
    probes: Sequence[Mapping[str, Any]], result: Mapping[str, Any], pace: float, bookkeeping: float, budget: float
) -> list[str]:
    """Say what to do."""
    missing = result["facts"].get("unmeasured")
    found = [f"This training measures nothing yet: {missing} measures what is in bold."] if missing else []
    broken = [probe for probe in probes if probe["works"] in ("no", "partly") and probe["remedy"]]
    for remedy in dict.fromkeys(probe["remedy"] for probe in broken):
        names = ", ".join(probe["probe"] for probe in broken if probe["remedy"] == remedy)
        found.append(f"{remedy} Then {names} can measure.")
    if not result["complete"]:
        found.append(
            f"The training ended after {len(result['steps'])} updates, before all probes had their turn: give it more."
        )
    wanted = [probe for probe in probes if probe["wanted"] and probe["every_together"]]
    if wanted:
        rare = max(wanted, key=lambda probe: int(probe["every_together"]))
        few = f"{float(format(rare['every_together'], '.2g')):,.0f}"
        first = sum(probe["first_ms"] or 0.0 for probe in wanted) / 1000 / pace
        found.append(
            f"A run of fewer than {few} updates measures {rare['probe']} once within the budget; for more, raise "
            f"budget=, or set a schedule such as every(100). First uses take {first:.0f} steps, once and uncharged."
        )
    if bookkeeping > budget * pace / 2:
        found.append(
            f"Steps are short ({pace * 1000:.2g} ms): the bookkeeping of {bookkeeping * 1e6:.0f} µs a step takes half "
            "of the budget or more."
        )
    return found


def _relative(measurement: Mapping[str, Any]) -> float | None:
    stderr, value = measurement.get("stderr"), measurement["value"]
    return _number(abs(stderr / value)) if stderr is not None and value else None


def _milliseconds(seconds: float) -> float | None:
    return _number(seconds * 1000)


def _number(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def succeeded(report: Mapping[str, Any]) -> bool:
    """Tell whether every wanted probe works, and none changed the training."""
    works = all(probe["works"] == "yes" for probe in report["probes"] if probe["wanted"])
    return works and report["harmless"]["identical"] is not False
