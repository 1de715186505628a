"""What every law owes its reader, checked for each one in the catalogue."""

import pytest

from learnmech import laws
from learnmech.laws import State, Value, Verdict

ALL = {law.name: law for law in laws.catalogue()}


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
def test_a_law_is_complete(law):
    assert law.title
    assert "\\" in law.statement
    assert "arXiv" in law.reference
    assert law.measures
    assert law.band.lower < 1 < law.band.upper
    assert law.band.origin
    assert law.minimum <= law.window
    expected = set(Verdict) - (set() if law.one_sided else {Verdict.SUB_EDGE})
    assert set(law.advice) == expected
    assert type(law).__doc__


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
def test_a_law_without_any_record_does_not_apply_and_never_raises(law):
    for observable in law.measures:
        prediction = law.predict(State(observable, 0))
        assert prediction is None or prediction.not_applicable


@pytest.mark.parametrize("law", ALL.values(), ids=ALL)
@pytest.mark.parametrize("number", [None, 0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Muon", 7])
def test_a_law_never_raises_for_any_recorded_number(law, number, optimizer):
    values = {name: Value(number) for name in (*law.needs, *law.uses)}
    for observable in law.measures:
        law.predict(State(observable, 10**9, values=values, context={"optimizer": optimizer}))


def test_get_knows_the_names_and_says_the_nearest():
    assert laws.get("edge_of_stability").name == "edge_of_stability"
    with pytest.raises(laws.UnknownLaw, match="did you mean edge_of_stability"):
        laws.get("edge_of_stabilty")
