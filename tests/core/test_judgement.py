"""The verdict protocol on synthetic series: lawful ones never alarm, broken ones always do, and gates come first."""

import math
import random
from typing import ClassVar

import pytest

from learnmech.laws import Band, Law, Point, Prediction, Verdict, judge
from learnmech.observables import Status


class TwoSided(Law):
    """A law with a band of 10 % for these tests."""

    name = title = statement = reference = "two_sided"
    measures = ("loss",)
    needs = ()
    band = Band(1 / 1.1, 1.1, "these tests")
    window = 40
    minimum = 5
    advice: ClassVar = {}

    def predict(self, state):
        return Prediction(1.0)


class OneSided(TwoSided):
    """The same with lawful values below the band."""

    one_sided = True
    window = 10


def run(law, values, predicted=1.0, **keywords):
    """Judge a whole series as it arrives; return every judgement."""
    points = [Point(step, value, predicted=predicted, **keywords) for step, value in enumerate(values)]
    return [judge(law, point, points[:i]) for i, point in enumerate(points)]


def ar1(rng, n, mean, rho=0.9, sd=0.05):
    x, out = rng.gauss(0, sd), []
    for _ in range(n):
        x = rho * x + rng.gauss(0, sd * math.sqrt(1 - rho**2))
        out.append(mean + x)
    return out


def test_a_lawful_run_hardly_ever_alarms_although_looked_at_all_along():
    """200 runs of 400 points, every point a look, autocorrelation 0.9: a point-null test alarms in every single run."""
    rng = random.Random(5)
    alarms = sum(
        any(j.verdict is Verdict.DEVIATES for j in run(TwoSided(), ar1(rng, 400, 1.0, sd=0.03))) for _ in range(200)
    )
    assert alarms <= 2


def test_a_broken_run_is_always_found_and_a_lawful_one_mostly_confirmed():
    rng = random.Random(6)
    ends = [run(TwoSided(), ar1(rng, 120, 1.3, sd=0.03))[-1].verdict for _ in range(200)]
    assert all(verdict is Verdict.DEVIATES for verdict in ends)
    ends = [run(TwoSided(), ar1(rng, 120, 1.0, sd=0.02, rho=0.5))[-1].verdict for _ in range(200)]
    assert sum(verdict is Verdict.HOLDS for verdict in ends) >= 190


def test_a_deviation_takes_three_looks_in_a_row():
    values = [1.0 + 0.001 * (-1) ** i for i in range(10)] + [3.0 + 0.001 * (-1) ** i for i in range(60)]
    verdicts = [j.verdict for j in run(TwoSided(), values)]
    assert verdicts[9] is Verdict.HOLDS
    first = verdicts.index(Verdict.DEVIATES)
    assert "2 looks in a row, 3 make it a deviation" in run(TwoSided(), values)[first - 1].reason
    assert all(v is Verdict.DEVIATES for v in verdicts[first:])


def test_too_few_measurements_are_undetermined_and_say_how_many():
    (first, *_, fifth) = run(TwoSided(), [1.0, 1.001, 0.999, 1.0, 1.0])
    assert first.verdict is Verdict.UNDETERMINED
    assert "1 of the 5 measurements" in first.reason
    assert fifth.verdict is Verdict.HOLDS


def test_a_gate_comes_before_every_number():
    judgement = judge(TwoSided(), Point(3, 99.0, predicted=1.0, not_applicable="Gradients are clipped."))
    assert (judgement.verdict, judgement.reason, judgement.ratio) == (
        Verdict.NOT_APPLICABLE,
        "Gradients are clipped.",
        None,
    )


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_number_that_is_none_is_never_compared(value):
    judgement = judge(TwoSided(), Point(3, value, predicted=1.0))
    assert judgement.verdict is Verdict.UNDETERMINED
    assert "step 3" in judgement.reason


@pytest.mark.parametrize("predicted", [0.0, -1.0, math.nan, None])
def test_a_prediction_that_is_not_positive_is_never_divided_by(predicted):
    assert judge(TwoSided(), Point(0, 1.0, predicted=predicted)).verdict is Verdict.UNDETERMINED


def test_a_failed_measurement_says_its_status():
    judgement = judge(TwoSided(), Point(0, 1.0, predicted=1.0, status=Status.FAILED))
    assert judgement.verdict is Verdict.UNDETERMINED
    assert "failed" in judgement.reason


def test_below_a_one_sided_law_is_sub_edge_at_once_and_on_the_way_up():
    climb = [0.2 + 0.06 * i for i in range(12)]
    verdicts = [j.verdict for j in run(OneSided(), climb)]
    assert all(v is Verdict.SUB_EDGE for v in verdicts[:11])
    steady = run(OneSided(), climb + [1.0 + 0.005 * (-1) ** i for i in range(14)])
    assert steady[-1].verdict is Verdict.HOLDS
    assert not any(j.verdict is Verdict.DEVIATES for j in steady)


def test_a_changed_prediction_starts_afresh():
    rng = random.Random(2)
    before = [Point(i, 1 + rng.gauss(0, 0.005), predicted=1.0) for i in range(20)]
    after = Point(20, 1.0, predicted=2.0)
    assert judge(OneSided(), before[-1], before[:-1]).verdict is Verdict.HOLDS
    judgement = judge(OneSided(), after, before)
    assert judgement.verdict is Verdict.SUB_EDGE
    assert judgement.ratio == 0.5
    assert (judgement.lower, judgement.upper) == (pytest.approx(2 / 1.1), 2.2)


def test_an_inapplicable_stretch_breaks_the_pool():
    points = [Point(i, 1.0, predicted=1.0) for i in range(10)]
    points.append(Point(10, 1.0, not_applicable="gate"))
    judgement = judge(TwoSided(), Point(11, 1.0, predicted=1.0), points)
    assert "1 of the 5" in judgement.reason


def test_noisy_predictions_are_pooled_as_a_ratio_of_means():
    """The mean of ratios of these pairs is far from 1; the ratio of means is 1 (sampling N(1, .3) in both)."""
    rng = random.Random(8)
    points = [Point(i, max(rng.gauss(1, 0.3), 0.05), predicted=max(rng.gauss(1, 0.3), 0.05), predicted_stderr=0.3)
              for i in range(40)]  # fmt: skip
    judgement = judge(TwoSided(), points[-1], points[:-1])
    assert "over 40 measurements" in judgement.reason
    center = float(judgement.reason.split("is ")[1].split(" ")[0])
    assert abs(center - 1) < 0.12


def test_a_residual_widens_the_interval_for_good_and_a_standard_error_does_not():
    class Residual(TwoSided):
        measures = ("sharpness",)

    values = [1 + 0.001 * (-1) ** i for i in range(20)]
    assert run(TwoSided(), values, measured_stderr=0.2)[-1].verdict is Verdict.HOLDS
    assert run(Residual(), values, measured_stderr=0.2)[-1].verdict is Verdict.UNDETERMINED
