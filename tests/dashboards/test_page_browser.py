"""The live page in a real browser against a real collector: what is drawn, and what a reader can do with it."""

import itertools
import re

import pytest
from playwright.sync_api import Route, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

BLUE, VERMILLION, INK, RED = (0, 114, 178), (213, 94, 0), (43, 52, 65), (185, 58, 18)
BAND = (40, 75)
EDGE = "#law-edge_of_stability .plot canvas"
RATIO = "#law-edge_of_stability .plot-title + .plot canvas"


def test_run_list_names_every_run_with_its_status(tour) -> None:
    page = tour.go("digits-gd").page
    expect(page.locator(".run")).to_have_count(4)
    for run in tour.store.runs():
        row = page.locator(f'.run[data-id="{run.id}"]')
        expect(row.locator(".run-name")).to_have_text(run.name)
        expect(row.locator(".status")).to_have_text(run.status)
        expect(row.locator(".run-button")).to_contain_text(f"step {run.last_step:,}")
    expect(page.locator(".connection")).to_have_text("live")
    chips = page.locator(f'.run[data-id="{tour.id("digits-gd")}"] .chips .badge')
    expect(chips).to_have_count(1)
    assert "Edge of stability" in (chips.first.get_attribute("aria-label") or "")


LATE = """(() => {
  const add = window.addEventListener.bind(window);
  window.addEventListener = (name, act, ...more) =>
    add(name, name === "hashchange" ? (event) => setTimeout(act, 300, event) : act, ...more);
})()"""


def test_an_address_typed_while_the_page_loads_is_followed(tour, visit) -> None:
    """The page picks a run for a reader who named none; a busy machine tells of a typed address only afterwards."""
    page = visit("about:blank").page
    page.add_init_script(LATE)
    held: list[Route] = []
    page.route("**/v1/runs*", lambda route: held.append(route))  # noqa: PLW0108 (a method of a list takes no attributes)
    page.goto(tour.url)
    page.wait_for_function("() => document.querySelector('.run-list')")
    page.evaluate("id => { location.hash = `run=${id}` }", tour.id("digits-gd"))
    assert len(held) == 1
    held[0].continue_()
    expect(page.locator("h1 span[title]")).to_have_attribute("title", tour.id("digits-gd"))
    page.wait_for_timeout(400)
    expect(page.locator("h1 span[title]")).to_have_attribute("title", tour.id("digits-gd"))


def test_a_hostile_name_stays_a_name(tour) -> None:
    page = tour.go("<img").page
    expect(page.locator("h1 span[title]")).to_have_text(next(r.name for r in tour.store.runs() if "<img" in r.name))
    page = tour.go("<img", "digits-gd").page
    expect(page.locator(".verdicts tbody")).to_contain_text("<img src=x")
    assert page.locator("img").count() == 0
    assert page.title() == "learnmech"


def test_law_panel_draws_measured_band_prediction_gap_and_verdict(tour) -> None:
    seen = tour.go("digits-gd")
    card = seen.page.locator("#law-edge_of_stability")
    seen.drawn()
    current = next(law for law in tour.store.laws(tour.id("digits-gd")) if law.law == "edge_of_stability")
    expect(card.locator(".readings .badge")).to_have_class(re.compile(f"v-{current.verdict}"))
    expect(card.locator(".reason")).to_have_text(current.reason)
    expect(card.locator(".readings .ratio")).to_have_text(f"{current.ratio:.3f}")
    expect(card.locator(".numbers")).to_contain_text("20")

    measured = seen.pixels(EDGE, BLUE)
    assert measured["count"] > 400
    band = seen.pixels(EDGE, BLUE, BAND, 30)
    assert band["count"] > 200, "the error band is drawn around the line"
    predicted = seen.pixels(EDGE, INK)["columns"]
    assert len(predicted) > 150, "the prediction crosses the plot"
    holes = [b - a for a, b in itertools.pairwise(predicted)]
    assert sum(hole > 2 for hole in holes) > 10, "and it is dashed"

    # NaN from step 1200 to 1290 of 2000: no line there, and a mark that says so
    left, right = measured["columns"][0], measured["columns"][-1]
    inside = [c for c in measured["columns"] if 0.607 < (c - left) / (right - left) < 0.642]
    assert inside == [], "a gap stays a gap"
    assert seen.pixels(EDGE, RED)["count"] > 10

    words = card.locator(".strip .segment").evaluate_all("all => all.map(e => e.title.split(',')[0])")
    assert words[0] == "below the edge"
    assert "holds" in words
    assert words[-1] != "holds", "the halved learning rate moved the edge away"


def test_laws_without_a_verdict_say_what_they_need_and_inapplicable_ones_why(tour) -> None:
    page = tour.go("digits-gd").page
    expect(page.locator("#law-gradient_noise_scale .empty-note").last).to_contain_text("noise_trace_between")
    page = tour.go("char-adamw").page
    card = page.locator("#law-edge_of_stability")
    expect(card.locator(".reason")).to_contain_text("Batches are sampled")
    expect(card.locator(".plots")).to_be_hidden()
    card.get_by_text("Show the measurements").click()
    expect(card.locator(".plots")).to_be_visible()


def test_scopes_of_a_law_can_be_picked_and_are_kept_in_the_address(tour) -> None:
    page = tour.go("char-adamw").page
    card = page.locator("#law-rotational_equilibrium")
    expect(card.locator("select")).to_have_value("scale_invariant")
    expect(card.locator(".readings .badge")).to_contain_text("holds")
    card.locator("select").select_option("head.weight")
    expect(card.locator(".reason")).to_contain_text("not scale invariant")
    page.reload()
    expect(card.locator("select")).to_have_value("head.weight")
    expect(page.locator("h1 span[title]")).to_have_text("char-adamw")


def test_noise_scale_stands_against_the_batch_size(tour) -> None:
    page = tour.go("char-adamw").page
    card = page.locator("#panel-noise_scale")
    expect(card.locator(".values")).to_contain_text("against 32")
    expect(card.locator(".legend")).to_contain_text("batch size")
    expect(card.locator(".legend")).to_contain_text("one standard error")


def test_two_runs_overlaid_in_two_colours(tour) -> None:
    seen = tour.go("digits-gd")
    first, second = tour.id("digits-gd"), tour.id("digits-gd-2")
    seen.page.locator(f'.run[data-id="{second}"] input').check()
    expect(seen.page.locator(".verdicts tbody tr")).to_have_count(2)
    expect(seen.page.locator("#law-edge_of_stability .reading")).to_have_count(2)
    expect(seen.page.locator("#law-edge_of_stability .bar")).to_have_count(2)
    seen.drawn()
    assert seen.pixels(EDGE, BLUE)["count"] > 300
    assert seen.pixels(EDGE, VERMILLION)["count"] > 300
    assert f"{first}%2C{second}" in seen.page.url
    seen.page.locator(f'.run[data-id="{second}"] .run-button').click()
    expect(seen.page.locator("h1 span[title]")).to_have_attribute("title", second)
    seen.drawn()
    assert seen.pixels(EDGE, VERMILLION)["count"] > 300, "a run keeps its colour while it is shown"


def test_x_axis_can_be_samples_or_wall_time_and_says_when_nothing_was_counted(tour) -> None:
    seen = tour.go("digits-gd")
    seen.drawn()
    before = seen.image(RATIO)
    for name, query in (("Samples", "x=samples"), ("Wall time", "x=time")):
        with seen.page.expect_response(lambda answer, query=query: "residuals" in answer.url and query in answer.url):
            seen.page.get_by_role("button", name=name, exact=True).click()
        seen.page.wait_for_function("([s, old]) => document.querySelector(s).toDataURL() !== old", arg=[RATIO, before])
        seen.drawn()
        before = seen.image(RATIO)
        assert query in seen.page.url
    seen.page.get_by_role("button", name="Tokens", exact=True).click()
    expect(seen.page.locator("#law-edge_of_stability .empty-note")).to_contain_text("do not count tokens")


def test_one_cursor_for_every_plot(tour) -> None:
    page = tour.go("digits-gd").page
    tour.visit.drawn()
    latest = page.locator("#panel-loss .value").inner_text()
    page.locator("#law-edge_of_stability .u-over").first.hover(position={"x": 60, "y": 60})
    expect(page.locator("#law-edge_of_stability .since")).to_contain_text("at step")
    expect(page.locator("#panel-loss .value")).not_to_have_text(latest)
    page.locator("h1").hover()
    expect(page.locator("#panel-loss .value")).to_have_text(latest)


def test_zoom_by_dragging_moves_every_plot_and_can_be_undone(tour) -> None:
    seen = tour.go("digits-gd")
    seen.drawn()
    plot = seen.page.locator("#law-edge_of_stability .u-over").first
    plot.scroll_into_view_if_needed()
    whole = seen.image("#panel-loss canvas")
    box = plot.bounding_box()
    assert box is not None
    seen.page.mouse.move(box["x"] + 200, box["y"] + 50)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 330, box["y"] + 60, steps=4)
    seen.page.mouse.up()
    reset = seen.page.get_by_role("button", name="Reset zoom")
    expect(reset).to_be_visible()
    seen.drawn()
    assert seen.image("#panel-loss canvas") != whole
    reset.click()
    expect(reset).to_be_hidden()


def test_log_axis_is_a_click_away(tour) -> None:
    seen = tour.go("digits-gd")
    seen.drawn()
    before = seen.image("#panel-loss canvas")
    button = seen.page.locator("#panel-loss .toggle")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    seen.drawn()
    assert seen.image("#panel-loss canvas") != before
    assert "flip=loss" in seen.page.url


def test_explorer_lists_filters_and_plots_every_series(tour) -> None:
    page = tour.go("char-adamw").page
    rows = page.locator("#observables .series-row")
    expect(rows).to_have_count(len(tour.store.series(tour.id("char-adamw"))))
    for text in page.locator(".symbol, .formula").all_inner_texts():
        assert "\\" not in text, "symbols are drawn, not written in LaTeX"
        assert "undefined" not in text
    search = page.get_by_role("searchbox", name="Filter observables")
    search.fill("mlp.up")
    expect(rows).to_have_count(3)
    page.locator("#observables .series-row", has_text="blocks.0.mlp.up.weight").first.click()
    card = page.locator("#observables .card.observable")
    expect(card.locator("h3")).to_have_text("angular_update · blocks.0.mlp.up.weight")
    expect(card.locator(".value")).to_contain_text("rad")
    assert "pin=angular_update" in page.url
    page.reload()
    expect(card.locator("h3")).to_have_text("angular_update · blocks.0.mlp.up.weight")
    card.get_by_role("button", name="Remove").click()
    expect(card).to_have_count(0)


def test_events_are_listed(tour) -> None:
    page = tour.go("<img").page
    expect(page.locator("#events .event")).to_have_count(2)
    expect(page.locator("#events .e-error")).to_contain_text("ValueError: the loss is not finite")


def test_nothing_is_asked_of_anybody_else_and_dark_is_dark(tour, visit) -> None:
    seen = visit(f"{tour.url}/#run={tour.id('digits-gd')}", color_scheme="dark")
    seen.drawn()
    assert all(address.startswith(f"{tour.url}/") for address in seen.addresses)
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 18, 24)"
    assert seen.pixels(EDGE, (86, 180, 233))["count"] > 300
    seen.page.get_by_role("button", name="Colours: system").click()
    assert seen.page.evaluate("document.documentElement.dataset.theme") == "light"
    seen.drawn()
    assert seen.pixels(EDGE, BLUE)["count"] > 300


def test_a_run_that_is_not_here_is_said_to_be(tour, visit) -> None:
    page = visit(f"{tour.url}/#run={'0' * 32}").page
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".run.chosen")).to_have_count(1)
