import pytest

from learnmech.lab.findings import edge, findings, headlines, one_by_one, problems
from learnmech.lab.readback import judged
from learnmech.lab.report import Report, show
from learnmech.lab.settings import FULL, QUICK, Descent

SETTINGS = Descent(digits=10, halved_at=30, steps=90, every=10)


def law(name, scope="", verdict="holds", step=90):
    return {
        "law": name,
        "scope": scope,
        "verdict": verdict,
        "reason": "Because [so].",
        "step": step,
        "measured": 1.0,
        "predicted": 2.0,
        "ratio": 0.5,
        "changes": [[0, "undetermined"], [step, verdict]],
    }


def run(laws=(), series=(), status="finished"):
    return {"name": "r", "status": status, "laws": list(laws), "series": list(series)}


def counted(observable, count, scope="", last_step=90):
    return {"observable": observable, "scope": scope, "count": count, "last_step": last_step}


def test_the_headline_of_a_law_is_the_scope_that_speaks_for_the_run():
    rows = findings(
        run(
            [
                law("rotational_equilibrium", "layer.weight", "deviates"),
                law("rotational_equilibrium", "other.weight"),
                law("rotational_equilibrium", "third.weight"),
                law("rotational_equilibrium", "scale_invariant"),
                law("rotational_equilibrium", ""),
                law("edge_of_stability", ""),
            ]
        )
    )
    top = headlines(rows)
    assert [(row.law, row.scope) for row in top] == [
        ("edge_of_stability", ""),
        ("rotational_equilibrium", "scale_invariant"),
    ]
    assert one_by_one(rows, top[1]) == "2 holds, 1 deviates"
    assert one_by_one(rows, top[0]) == ""


def test_the_edge_is_measured_on_the_last_third_and_on_both_sides_of_the_halving():
    steps = list(range(0, 91, 10))
    verdicts = ["sub_edge", "undetermined", "holds", "sub_edge", "sub_edge", "holds"] + ["holds"] * 4
    found = edge(
        {
            "step": steps,
            "ratio": [None, 0.7, 1.0, 0.5, 0.8, 0.9, 1.04, 1.02, 1.03, 1.5],
            "predicted": [None, 5.0, 5.0] + [10.0] * 7,
            "verdict": verdicts,
        },
        SETTINGS,
    )
    assert found["median_ratio"] == pytest.approx(1.035)  # of 1.04, 1.02, 1.03, 1.5
    assert (found["predicted_before"], found["predicted_after"]) == (5.0, 10.0)
    assert (found["rode_before"], found["rode_after"], found["verdict"]) == (20, 50, "holds")


def test_a_run_without_residuals_has_no_edge():
    found = edge({"step": [], "ratio": [], "predicted": [], "verdict": []}, SETTINGS)
    assert set(found.values()) == {None}


def test_a_complete_run_has_no_problems_and_each_loss_is_one():
    expected = {"sharpness": 10}
    complete = run(series=[counted("sharpness", 9)])
    assert problems(complete, [], steps=90, expected=expected) == []
    assert problems(run(series=[counted("sharpness", 4)]), [], steps=90, expected=expected) == [
        "r: 4 of 8 measurements of sharpness are stored"
    ]
    assert (
        "not finished"
        in problems(run(series=[counted("sharpness", 9)], status="running"), [], steps=90, expected={})[0]
    )
    gap = {"kind": "gap", "message": "10 frames lost"}
    assert problems(complete, [gap, {"kind": "run_finished", "message": ""}], steps=90, expected=expected) == [
        "r: gap: 10 frames lost"
    ]
    assert "0 of 8" in problems(run(series=[counted("sharpness", 9, "a.weight")]), [], steps=90, expected=expected)[0]


def test_a_run_is_judged_once_each_law_has_seen_its_newest_measurement():
    series = [counted("sharpness", 9, last_step=90), counted("loss", 91, last_step=95)]
    assert judged(run([law("edge_of_stability", step=90)], series))
    assert not judged(run([law("edge_of_stability", step=80)], series))
    assert not judged(run([], series))
    assert judged(run([], []))


def test_a_law_that_is_silent_on_a_scope_is_not_waited_for():
    series = [counted("angular_update", 9, scope, last_step=90) for scope in ("layer.weight", "type:Linear")]
    assert judged(run([law("rotational_equilibrium", "layer.weight", step=90)], series))
    assert not judged(run([law("rotational_equilibrium", "layer.weight", step=80)], series))


def test_the_report_says_what_went_wrong_and_markup_in_a_reason_is_text(capsys):
    from rich.console import Console

    report = Report("http://x", "sqlite:///a.db", 3.0, findings=findings(run([law("edge_of_stability")])))
    show(report, Console(width=200))
    assert "Because [so]." in (plain := capsys.readouterr().out)
    assert "All of it is stored" in plain
    report.problems.append("the dog [ate] it")
    show(report, Console(width=200))
    assert "the dog [ate] it" in (plain := capsys.readouterr().out)
    assert "--ingest .learnmech/spool" in plain


@pytest.mark.parametrize("settings", [FULL, QUICK], ids=["full", "quick"])
def test_the_settings_leave_time_for_what_they_must_show(settings):
    """Three relaxation times and twenty measurements after them; the halving in the first half, on the grid."""
    language, descent = settings.language, settings.descent
    assert (language.steps - 3 * language.relaxation) / language.every_weights >= 20
    assert descent.halved_at % descent.every == 0
    assert descent.halved_at < descent.steps / 2
