"""What the page reads: whole, thinned where asked, on any axis, and nothing that JSON cannot say."""

import json
import math

import pytest

from learnmech import laws, observables, wire


@pytest.fixture(scope="module")
def long_run(shared):
    """A run of 500 steps with samples and tokens, one value in five not finite."""
    info = wire.RunInfo(
        id="0" * 31 + "a", name="long", created=1.0, tags={"team": "physics"}, context={"optimizer": "SGD"}
    )
    frames = [
        wire.Frame(
            n, n, 1000.0 + n, samples=n * 32, tokens=n * 1024,
            measurements=[wire.Measurement("loss", math.nan if n % 5 == 4 else float(n), stderr=0.1)],
        )
        for n in range(500)
    ]  # fmt: skip
    shared.post(wire.Batch(run=info, writer="b" * 32, sent=1.0, frames=frames)).raise_for_status()
    return info.id


def columns(running, run: str, **query: object) -> dict[str, list[object]]:
    answer = running.http.get(f"/v1/runs/{run}/observations", params={"observable": "loss", **query})
    return answer.raise_for_status().json()


def test_a_run_is_described(shared, long_run):
    detail = shared.http.get(f"/v1/runs/{long_run}").json()
    assert detail.keys() == {
        "id", "name", "project", "status", "since", "created", "last_seen", "last_step", "points", "attempts", "tags",
        "context", "revision", "laws", "series",
    }  # fmt: skip
    assert (detail["last_step"], detail["points"], detail["tags"]) == (499, 500, {"team": "physics"})
    (series,) = detail["series"]
    assert (series["observable"], series["scope"], series["count"]) == ("loss", "", 500)
    (listed,) = [run for run in shared.http.get("/v1/runs").json()["runs"] if run["id"] == long_run]
    assert listed == {name: detail[name] for name in listed}


def test_every_point_comes_where_there_are_few(shared, long_run):
    found = columns(shared, long_run)
    assert found["step"] == list(range(500))
    assert found["value"] == [None if n % 5 == 4 else float(n) for n in range(500)]
    assert {len(column) for column in found.values()} == {500}


def test_a_long_curve_is_thinned_to_what_was_asked_for(shared, long_run):
    found = columns(shared, long_run, points=50)
    assert 20 <= len(found["step"]) <= 50
    assert found["step"][-1] == 499
    assert min(value for value in found["lower"] if value is not None) == 0.0
    assert max(value for value in found["upper"] if value is not None) == 498.0


@pytest.mark.parametrize(
    ("axis", "scale", "offset"), [("step", 1, 0), ("samples", 32, 0), ("tokens", 1024, 0), ("time", 1, 1000)]
)
def test_the_axis_can_be_chosen(shared, long_run, axis, scale, offset):
    assert columns(shared, long_run, x=axis)["x"] == [n * scale + offset for n in range(500)]


def test_a_page_fetches_only_what_is_new(shared, long_run):
    assert columns(shared, long_run, after_step=497)["step"] == [498, 499]
    assert columns(shared, long_run, after_step=499)["step"] == []


def test_a_curve_that_was_never_measured_is_empty(shared, long_run):
    assert columns(shared, long_run, observable="sharpness")["step"] == []


def test_nothing_is_said_that_json_cannot_say(shared, long_run):
    """Python would read NaN, a browser would not."""
    text = shared.http.get(f"/v1/runs/{long_run}/observations", params={"observable": "loss"}).text

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def many_scopes(shared):
    """A run with one observable in sixty scopes, names that mean something in an address among them."""
    info = wire.RunInfo(id="0" * 31 + "b", name="many", created=1.0, tags={}, context={})
    scopes = ["", "a&b=c", "type:Linear", "50%", "x+y", "blocks.0/é", *(f"blocks.{n}" for n in range(54))]
    frames = [
        wire.Frame(n, n, 1000.0 + n, samples=None, tokens=None, measurements=[
            wire.Measurement("weight_norm", n + 0.01 * place, scope=scope) for place, scope in enumerate(scopes)
        ])
        for n in range(30)
    ]  # fmt: skip
    shared.post(wire.Batch(run=info, writer="c" * 32, sent=1.0, frames=frames)).raise_for_status()
    return info.id, scopes


def test_many_curves_come_in_one_answer_each_as_it_comes_alone(shared, many_scopes):
    run, scopes = many_scopes
    query = {"observable": ["weight_norm"] * 60, "scope": scopes, "points": 10, "x": "time"}
    found = shared.http.get(f"/v1/runs/{run}/curves", params=query).raise_for_status().json()["curves"]
    assert [curve["scope"] for curve in found] == scopes
    for curve in found:
        alone = columns(shared, run, observable="weight_norm", scope=curve["scope"], points=10, x="time")
        assert curve == {"observable": "weight_norm", "scope": curve["scope"], **alone}
        assert 5 <= len(alone["step"]) <= 10


def test_each_curve_goes_on_from_its_own_step(shared, many_scopes, long_run):
    query = {"observable": ["weight_norm"] * 2, "scope": ["", "50%"], "after_step": [27, -1]}
    found = shared.http.get(f"/v1/runs/{many_scopes[0]}/curves", params=query).json()["curves"]
    assert [curve["step"] for curve in found] == [[28, 29], list(range(30))]


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ({"observable": ["loss", "loss"], "scope": [""]}, 422, "as many of each"),
        ({"observable": ["loss"], "scope": [""], "after_step": [1, 2]}, 422, "as many of each"),
        ({"observable": ["loss"], "scope": [""], "after_step": [-2]}, 422, "from -1 on"),
        ({"observable": ["loss"], "scope": [""], "after_step": [2**63]}, 422, "from -1 on"),
        ({"observable": ["loss"] * 101, "scope": [""] * 101}, 422, "100"),
        ({"observable": ["loss"] * 60, "scope": [""] * 60, "points": 1000}, 422, "20000 points"),
        ({"observable": ["loss", "los"], "scope": ["", ""]}, 404, "did you mean loss"),
        ({"scope": [""]}, 422, "observable"),
        ({"observable": ["loss"]}, 422, "scope"),
    ],
)
def test_curves_that_cannot_be_told_apart_are_refused(shared, long_run, query, status, word):
    answer = shared.http.get(f"/v1/runs/{long_run}/curves", params=query)
    assert answer.status_code == status
    assert word in answer.text


def test_the_laws_are_listed(shared):
    listed = shared.http.get("/v1/laws").json()
    assert [law["name"] for law in listed] == [law.name for law in laws.catalogue()]
    for law in listed:
        assert law["tolerance"].keys() == {"lower", "upper", "origin"}
        assert set(law["advice"]) <= {verdict.value for verdict in laws.Verdict}
        assert law["statement"]
        assert law["reference"]


def test_the_vocabulary_is_listed(shared):
    listed = shared.http.get("/v1/observables").json()
    assert [word["name"] for word in listed] == [word.name for word in observables.catalogue()]
    assert {"name", "symbol", "unit", "description", "kind", "scale", "error"} == set(listed[0])
