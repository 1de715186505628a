"""Noise, weights and symmetries on the live page, in a real browser: maps of many parts, and few requests for them."""

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from learnmech.dashboards import panels
from learnmech.dashboards.panels import Section

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

MAP = "#panel-signal_to_noise_map"
BROWN, TEAL = (140, 81, 10), (1, 102, 94)
PIXEL = """([selector, row, x]) => {
  const canvas = document.querySelector(`${selector} canvas`);
  const label = document.querySelectorAll(`${selector} .map-labels > div`)[row].getBoundingClientRect();
  const top = label.top + label.height / 2 - canvas.getBoundingClientRect().top;
  const [left, down] = [x * canvas.clientWidth, top].map((at) => Math.round(at * devicePixelRatio));
  return [...canvas.getContext("2d").getImageData(left, down, 1, 1).data];
}"""
"""The colour of a map in a row at a share of its width."""


@pytest.fixture
def deep(noisy) -> Any:
    """The page with the run of sixty blocks, its maps drawn."""
    seen = noisy.go("sixty-blocks")
    return _drawn(seen)


def _drawn(seen: Any, rows: int = 16) -> Any:
    seen.page.locator(MAP).scroll_into_view_if_needed()
    expect(seen.page.locator(f"{MAP} .map-values > div")).to_have_count(rows)
    expect(seen.page.locator(f"{MAP} .map-values > div").last).to_have_text(re.compile(r"\d"))
    seen.drawn(f"{MAP} canvas")
    return seen


def _near(colour: list[int], other: tuple[int, int, int], spread: int = 25) -> bool:
    return colour[3] == 255 and max(abs(a - b) for a, b in zip(colour, other, strict=False)) <= spread


def test_sections_are_shown_where_something_was_measured_and_nowhere_else(deep, noisy) -> None:
    page = deep.page
    links = page.locator(".sections a:visible")
    for section in (Section.NOISE, Section.WEIGHTS, Section.SYMMETRIES, Section.COST):
        drawn = page.locator(f"#{section} h3:visible").all_inner_texts()
        assert drawn == [panel.title for panel in panels.of(section) if panel.title in drawn]
        assert drawn
    noise = [panel.title for panel in panels.of(Section.NOISE) if panel.id != "noise_scale_map"]
    expect(page.locator("#noise h3:visible")).to_have_text(noise)
    assert "Curvature" not in links.all_inner_texts()
    noisy.go("digits-gd-2")
    for section in (Section.NOISE, Section.SYMMETRIES):
        expect(page.locator(f"#{section} h2")).to_be_hidden()
    expect(links).to_have_text(["Laws", "Training", "Weights", "What it costs", "Observables", "Events"])


def test_runs_that_are_not_shown_any_more_do_not_stretch_the_axis(noisy) -> None:
    noisy.go("digits-gd-2")
    noisy.visit.drawn("#panel-loss canvas")
    seen = _drawn(noisy.go("twenty-blocks"))
    seen.page.wait_for_function(
        "async () => JSON.stringify((await import('./page/js/extent.js')).shownRange()) === '[0,600]'"
    )


def test_many_parts_take_few_requests(noisy, visit) -> None:
    seen = visit(f"{noisy.url}#run={noisy.id('sixty-blocks')}&scope=signal_to_noise_map:blocks|all")
    _drawn(seen, rows=60)
    asked = [address for address in seen.addresses if "/v1/runs/" in address]
    curves = [address for address in asked if "/curves" in address]
    assert sum(address.count("observable=") for address in curves) > 80
    assert len(curves) <= 12
    assert not [address for address in asked if "/observations" in address]
    assert max(map(len, asked)) < 8000, "what proxies take"


def test_the_first_of_many_rows_are_shown_until_all_are_asked_for(deep) -> None:
    page = deep.page
    labels = page.locator(f"{MAP} .map-labels > div")
    expect(labels).to_have_text([f"blocks.{block}" for block in range(44, 60)])
    expect(page.locator(f"{MAP} .also")).to_have_text("the 16 lowest of 60 blocks")
    page.locator(f"{MAP} .toggle", has_text="all 60").click()
    expect(labels).to_have_text([f"blocks.{block}" for block in range(60)])
    assert "signal_to_noise_map%253Ablocks%257Call" in page.url
    page.locator(f"{MAP} select").select_option("types")
    expect(labels).to_have_text(["LayerNorm", "Linear"])
    expect(page.locator(f"{MAP} .toggle", has_text="all")).to_have_count(0)
    page.locator("#panel-relative_update select").select_option("tensors")
    expect(page.locator("#panel-relative_update .map-labels > div").first).to_have_text("blocks.0.mlp.weight")


def test_colours_say_which_parts_are_noise_and_hatches_where_there_is_no_number(noisy) -> None:
    seen = _drawn(noisy.go("sixty-blocks", scope="signal_to_noise_map:blocks|all"), rows=60)
    page = seen.page

    def colour(row: int, share: float) -> list[int]:
        return page.evaluate(PIXEL, [MAP, row, share])

    assert _near(colour(0, 0.5), TEAL)
    assert _near(colour(59, 0.5), BROWN)
    middle = colour(29, 0.5)
    assert min(middle[:3]) > 200, "signal as large as noise is pale"
    for row, share in ((0, 0.1), (59, 0.1), (3, 0.55)):
        spots = {tuple(colour(row, share + shift / 400)) for shift in range(8)}
        assert any(alpha == 0 for *_, alpha in spots), "a gap shows the paper"
        assert not any(_near(list(spot), end) for spot in spots for end in (TEAL, BROWN))
    expect(page.locator(f"{MAP} .map-scale")).to_contain_text("turning at 1")
    expect(page.locator(f"{MAP} .map-scale")).to_contain_text("no number")


def test_broken_symmetry_is_brown_and_one_that_holds_is_not(deep) -> None:
    deep.page.locator("#panel-symmetry_residual").scroll_into_view_if_needed()
    expect(deep.page.locator("#panel-symmetry_residual .map-values > div")).to_have_text(["1×10⁻⁶", "0.01"])
    deep.drawn("#panel-symmetry_residual canvas")
    holds, broken = (deep.page.evaluate(PIXEL, ["#panel-symmetry_residual", row, 0.5]) for row in (0, 1))
    assert _near(holds, TEAL)
    assert _near(broken, BROWN)


def test_cursor_reads_every_row_and_every_plot(deep) -> None:
    page = deep.page
    value = page.locator(f"{MAP} .map-values > div").last
    latest = page.locator("#panel-loss .value").inner_text()
    expect(value).to_have_text("0.1")
    canvas = page.locator(f"{MAP} canvas")
    canvas.hover(position={"x": 8, "y": 30})
    expect(value).to_have_text("–")
    expect(value).to_have_attribute("title", "undetermined")
    expect(page.locator("#panel-loss .value")).not_to_have_text(latest)
    page.locator("h1").hover()
    expect(value).to_have_text("0.1")
    expect(page.locator("#panel-loss .value")).to_have_text(latest)


def test_further_lines_follow_the_scope_that_is_shown(deep) -> None:
    page = deep.page
    card = page.locator("#panel-noise_trace")
    expect(card.locator(".also")).to_have_text("between batches 10")
    card.locator("select").select_option("type:Linear")
    expect(card.locator(".value")).to_have_text("4")
    expect(card.locator(".also")).to_have_text("between batches 8")
    expect(card.locator(".legend")).to_contain_text("within a batch")


def test_both_noise_scales_stand_against_the_batch_size(deep) -> None:
    card = deep.page.locator("#panel-noise_scale_hessian")
    for word in ("B_noise", "B_simple", "batch size"):
        expect(card.locator(".legend")).to_contain_text(word)
    expect(card.locator(".values")).to_contain_text("420 ± 42 examples against 32", use_inner_text=True)
    expect(card.locator(".also")).to_have_text("B_simple 140")


def test_rows_of_two_runs_stand_below_their_names(noisy) -> None:
    seen = noisy.go("sixty-blocks", "twenty-blocks")
    page = seen.page
    page.locator(MAP).scroll_into_view_if_needed()
    expect(page.locator(f"{MAP} .map-head")).to_have_text(["sixty-blocks", "twenty-blocks"])
    tops = page.locator(f"{MAP} .map-labels > div").evaluate_all(
        "rows => rows.map(row => row.getBoundingClientRect().top)"
    )
    values = page.locator(f"{MAP} .map-values > div").evaluate_all(
        "rows => rows.map(row => row.getBoundingClientRect().top)"
    )
    assert tops == values


def test_a_phone_shows_maps_without_scrolling_sideways(noisy, browser) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(f"{noisy.url}#run={noisy.id('sixty-blocks')}")
    page.locator(MAP).scroll_into_view_if_needed()
    expect(page.locator(f"{MAP} .map-values > div").last).to_have_text("0.1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    width = page.evaluate("selector => document.querySelector(selector + ' canvas').clientWidth", MAP)
    page.close()
    assert width > 150


@pytest.mark.parametrize(
    ("scopes", "plain", "found"),
    [
        (
            [
                "",
                "scale_invariant",
                "type:Linear",
                "group:0",
                "blocks.10",
                "blocks.9",
                "blocks.9.w",
                "head",
                "head.b",
            ],
            "blocks",
            {
                "blocks": ["blocks.9", "blocks.10", "head"],
                "types": ["type:Linear"],
                "parameter groups": ["group:0"],
                "tensors": ["blocks.9.w", "head.b"],
            },
        ),
        (["0", "0.weight", "2"], "blocks", {"blocks": ["0", "2"], "tensors": ["0.weight"]}),
        (["0.weight"], "blocks", {"blocks": ["0.weight"]}),
        (
            ["", "symmetry:scale", "symmetry:scale/blocks.0"],
            "kinds",
            {"kinds": ["symmetry:scale"], "kinds by block": ["symmetry:scale/blocks.0"]},
        ),
        (["vitals", "my.probe"], "probes", {"probes": ["my.probe", "vitals"]}),
        (["", "scale_invariant"], "blocks", {}),
    ],
)
def test_scopes_are_told_apart(noisy, scopes: list[str], plain: str, found: dict[str, list[str]]) -> None:
    read = noisy.page.evaluate(
        "async (given) => Object.fromEntries((await import('./page/js/scopes.js')).byKind(...given))", [scopes, plain]
    )
    assert read == found


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["step", False, 0, 700, 400], ["0", "200", "400", "600"]),
        (["tokens", False, 0, 2.4e6, 300], ["0", "1M", "2M"]),
        (["time", True, 0, 130, 400], ["0:00", "0:30", "1:00", "1:30", "2:00"]),
    ],
)
def test_ticks_of_a_map_are_round_and_fit(noisy, given: list[Any], texts: list[str]) -> None:
    found = noisy.page.evaluate("async (given) => (await import('./page/js/ticks.js')).xTicks(...given)", given)
    assert [tick["text"] for tick in found] == texts
    assert all(given[2] <= tick["x"] <= given[3] for tick in found)


def test_colours_between_two_are_between_them(noisy) -> None:
    read = noisy.page.evaluate(
        "async () => { const { between } = await import('./page/js/palette.js');"
        " return [-1, 0, 0.25, 1, 9].map((place) => between(['#000000', '#ff0000', '#ffff00'], place)); }"
    )
    assert read == ["rgb(0,0,0)", "rgb(0,0,0)", "rgb(128,0,0)", "rgb(255,255,0)", "rgb(255,255,0)"]
