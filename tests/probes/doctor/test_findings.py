"""What is made of a dry run: numbers by hand, from a result that is written down here."""

import io
import json

import pytest
from rich.console import Console

from learnmech.probes.doctor import findings
from learnmech.probes.doctor.report import show


def use(update, seconds, value=2.0, **more):
    measurement = {"observable": "sharpness", "value": value, "stderr": 0.02, "method": "double_backward"} | more
    return {"update": update, "seconds": seconds, "watches": False, "problem": "", "measurements": [measurement]}


def trial(label, uses, wanted=True, appetite=1.0):
    return {
        "label": label,
        "name": label.lower(),
        "wanted": wanted,
        "observables": ["sharpness"],
        "appetite": appetite,
        "uses": uses,
    }


def result(trials, fingerprints="abcdefghij", complete=True):
    """Nine updates of 10 ms, the bookkeeping of 20 µs included."""
    steps = [{"seconds": 0.01002, "busy": [], "bookkeeping": 2e-5} for _ in range(9)]
    steps[4] = {"seconds": 0.07, "busy": ["Sharpness"], "bookkeeping": 0.0}
    facts = {"trainer": "a loop with Recorder", "side_effects": ["random numbers of 1 dropout layers"]}
    return {
        "facts": facts,
        "changes": [],
        "steps": steps,
        "fingerprints": list(fingerprints),
        "trials": trials,
        "complete": complete,
    }


CONTEXT = {"model": "Net", "parameters": 1234, "dtype": "float32", "device": "cpu", "device_name": "x86_64"}


def document(trials, alone="abcdefghij", again=None, events=(), budget=0.01, **more):
    others = [None if prints is None else result([], prints) for prints in (alone, again)]
    return findings.document("train.py", result(trials, **more), *others, CONTEXT, list(events), budget)


def test_costs_are_those_of_warm_uses_and_cadences_follow():
    """20 ms in steps of 10 ms at 1 %: alone 20 / (0.1 - 0.02) updates; two equal shares: twice that."""
    report = document([trial("Sharpness", [use(4, 0.2), use(6, 0.02)]), trial("Noise", [use(5, 0.1), use(7, 0.04)])])
    sharpness, noise = report["probes"]
    assert report["training"]["step_ms"] == 10.0
    assert (sharpness["first_ms"], sharpness["warm_ms"], sharpness["warm_steps"]) == (200.0, 20.0, 2.0)
    assert sharpness["every_alone"] == pytest.approx(20 / 0.08, abs=1)
    assert sharpness["every_together"] == pytest.approx(2 * 20 / 0.08, abs=1)
    assert noise["every_together"] == pytest.approx(2 * 40 / 0.08, abs=1)
    assert sharpness["relative_error"] == 0.01


def test_a_modest_probe_leaves_the_rest_to_the_others():
    report = document(
        [trial("Sharpness", [use(4, 0.2), use(6, 0.02)]), trial("Modest", [use(5, 0.1), use(7, 0.04)], appetite=0.1)]
    )
    sharpness, modest = report["probes"]
    assert sharpness["every_together"] == pytest.approx(20 / 0.08 / 0.9, abs=1)
    assert modest["every_alone"] == pytest.approx(40 / 0.08 / 0.1, abs=1)


def test_bookkeeping_takes_half_of_the_budget_at_most():
    report = document([trial("Sharpness", [use(4, 0.2), use(6, 0.02)])], budget=0.0025)
    assert report["probes"][0]["every_alone"] == pytest.approx(20 / 0.0125, abs=1)
    assert any("takes half of the budget" in sentence for sentence in report["advice"])


def test_what_watches_the_backward_pass_takes_its_time_in_there():
    watching = use(4, 0.001) | {"watches": True}
    report = document([trial("Noise", [use(3, 0.001), watching])])
    assert report["probes"][0]["warm_ms"] == pytest.approx(60.0)


def test_reasons_remedies_and_exit():
    reason = (
        "The module optimizes by hand, so training_step is not one loss. Pass loss=, a function loss(model, batch)."
    )
    events = [
        {"kind": "self_test", "severity": "warning", "message": reason, "data": {}},
        {
            "kind": "probe_disabled",
            "severity": "warning",
            "message": f"sharpness: {reason}",
            "data": {"probe": "sharpness"},
        },
    ]
    report = document([trial("Sharpness", []), trial("Noise", [use(5, 0.1), use(7, 0.04)])], events=events)
    sharpness = report["probes"][0]
    assert sharpness["works"] == "no"
    assert sharpness["reason"] == "The module optimizes by hand, so training_step is not one loss."
    assert sharpness["remedy"] == "Pass loss=, a function loss(model, batch)."
    assert report["replay"]["verdict"] == "refused"
    assert "Then Sharpness can measure." in report["advice"][0]
    assert not findings.succeeded(report)
    assert findings.succeeded(document([trial("Sharpness", [], wanted=False)], events=events))


def test_a_number_that_is_missing_beside_others_is_said():
    numbers = use(4, 0.1)
    numbers["measurements"] += [
        {"observable": "sharpness", "value": None, "status": "unsupported", "reason": "No second derivative."}
    ]
    numbers["measurements"][0]["observable"] = "sharpness_gauss_newton"
    (probe,) = document([trial("Sharpness", [numbers])])["probes"]
    assert (probe["works"], probe["reason"]) == ("partly", "No second derivative.")


def test_a_use_that_fails_is_no_use():
    failed = use(5, 9.0) | {"problem": "ValueError: no", "measurements": []}
    (probe,) = document([trial("Sharpness", [failed, failed])])["probes"]
    assert (probe["works"], probe["reason"], probe["warm_ms"]) == ("no", "ValueError: no", None)


@pytest.mark.parametrize(
    ("alone", "again", "identical", "said"),
    [
        ("abcdefghij", None, True, "bit for bit the same with and without probes over 9 updates"),
        ("abcdeXXXXX", "abcdeXXXXX", False, "from update 5 on; what measured then: Sharpness"),
        ("abcdeXXXXX", "abcdeYYYYY", None, "does not repeat itself without probes either (update 5)"),
        ("XXXXXXXXXX", "YYYYYYYYYY", None, "starts from other weights"),
        (None, None, None, "not compared"),
    ],
)
def test_harm(alone, again, identical, said):
    report = document([trial("Sharpness", [use(4, 0.2), use(6, 0.02)])], alone=alone, again=again)
    assert report["harmless"]["identical"] is identical
    assert said in report["harmless"]["detail"]
    assert findings.succeeded(report) == (identical is not False)


def test_a_training_that_ended_early():
    report = document([trial("Sharpness", [])], complete=False)
    assert (report["probes"][0]["works"], report["probes"][0]["reason"]) == (
        "not tried",
        "the training ended before its turn",
    )
    assert any("ended after 9 updates" in sentence for sentence in report["advice"])


def test_the_document_is_json_and_fits_a_terminal():
    """NaN is data in a run, and no JSON."""
    report = document(
        [
            trial("Sharpness", [use(4, 0.2, float("nan")), use(6, 0.02, float("nan"), stderr=float("inf"))]),
            trial("Noise", []),
        ],
        events=[{"kind": "self_test", "message": "", "data": {"error": float("nan")}}],
    )
    json.dumps(report, allow_nan=False)
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        show(report, console)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert any(line.startswith("Sharpness") and "yes" in line for line in lines)
