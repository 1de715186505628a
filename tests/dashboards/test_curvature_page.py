"""Curvature on the live page, in a real browser: the fan of a spectrum, its axis, its gaps, and runs that have none."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from learnmech.dashboards import panels
from learnmech.dashboards.panels import Section

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

FAN = "#panel-spectral_density"
CANVAS = f"{FAN} canvas"
BLUE, SKY, VERMILLION, RED = (0, 114, 178), (86, 180, 233), (213, 94, 0), (185, 58, 18)
TITLES = [panel.title for panel in panels.of(Section.CURVATURE)]
STRENGTHS = [interval.strength for interval in panels.get("spectral_density").intervals]
SHADES = [round(255 * (1 - math.prod(1 - s for s in STRENGTHS[: n + 1]))) for n in range(len(STRENGTHS))]
"""Opacity of each shade on a transparent canvas: the rule of painting one colour over itself."""
ENDS = [("0.001", "0.999"), ("0.01", "0.99"), ("0.05", "0.95"), ("0.25", "0.75")]

COLUMN = """([selector, share]) => {
  const canvas = document.querySelector(selector);
  const over = canvas.parentElement.querySelector(".u-over");
  const ratio = devicePixelRatio;
  const x = Math.round((over.offsetLeft + share * over.offsetWidth) * ratio);
  const [top, height] = [over.offsetTop * ratio, over.offsetHeight * ratio];
  const { data } = canvas.getContext("2d").getImageData(x, top, 1, height);
  return Array.from({ length: height }, (_, i) => Array.from(data.slice(4 * i, 4 * i + 4)));
}"""
"""One column of pixels of a plot, from its top, at a share of its width."""


@pytest.fixture
def fan(curvature) -> Any:
    """The page with the run whose spectrum was measured, drawn."""
    return _drawn(curvature.go("cnn-sgd"))


def _drawn(seen: Any) -> Any:
    """Wait until the outer shade, the outliers and the median are there: the last to come is drawn with them."""
    expect(seen.page.locator(f"{FAN} .also")).to_have_count(3)
    expect(seen.page.locator(f"{FAN} .legend .band")).to_have_count(5)
    seen.drawn(f"{FAN} .also")
    return seen


def _column(page: Page, share: float) -> list[list[int]]:
    return page.evaluate(COLUMN, [CANVAS, share])


def test_section_is_shown_where_curvature_was_measured_and_nowhere_else(curvature) -> None:
    page = curvature.go("cnn-sgd").page
    expect(page.locator("#curvature h3:visible")).to_have_text(TITLES)
    link = page.locator(".sections").get_by_text("Curvature")
    expect(link).to_be_visible()
    curvature.go("digits-gd-2")
    expect(page.locator("#panel-loss .plot canvas")).to_be_visible()
    expect(page.locator("#curvature")).to_be_hidden()
    expect(link).to_be_hidden()


def test_fan_is_four_nested_shades_where_the_quantiles_are(fan, curvature) -> None:
    """The ends of the shades, read from the pixels, lie on one signed logarithmic axis with the stored quantiles."""
    pixels = _column(fan.page, 0.6)
    found: dict[str, int] = {}
    for number, (lower, upper) in enumerate(ENDS):
        within = _shaded(pixels, SHADES[number:])
        found[upper], found[lower] = min(within), max(within) + 1
    stored = {}
    for scope in found:
        columns = curvature.store.observations(curvature.id("cnn-sgd"), "hessian_quantile", scope)
        row = columns["step"].index(1800)  # 0.6 of 3 000 steps
        stored[scope] = columns["value"][row]
    misfits = {power: _misfit(found, stored, 10.0**power) for power in range(-6, 3)}
    best = min(misfits, key=lambda power: misfits[power])
    assert misfits[best] < 1.5, "in pixels, everywhere"
    assert all(misfit > 3 for power, misfit in misfits.items() if power != best), "no other axis would do"


def _shaded(pixels: list[list[int]], shades: list[int]) -> list[int]:
    """The places with one of these opacities in blue, beside an equal one: a shade, and not the soft edge of a line."""
    alike = [pixels[max(0, y - 1) : y] + pixels[y + 1 : y + 2] for y in range(len(pixels))]
    return [
        y
        for y, (red, _, blue, alpha) in enumerate(pixels)
        if blue > red and any(abs(alpha - shade) <= 2 for shade in shades) and pixels[y] in alike[y]
    ]


def _misfit(pixels: dict[str, int], values: dict[str, float], linear: float) -> float:
    """Largest distance of the ends from the best straight line of pixels against asinh(value / linear)."""
    xs = [math.asinh(values[scope] / linear) for scope in pixels]
    ys = list(pixels.values())
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)
    return max(abs(y - my - slope * (x - mx)) for x, y in zip(xs, ys, strict=True))


def test_outliers_are_lines_above_and_below_the_fan(fan) -> None:
    pixels = _column(fan.page, 0.8)
    solid = [y for y, (r, _, b, alpha) in enumerate(pixels) if alpha > 150 and b > 120 and r < 60]
    shaded = _shaded(pixels, SHADES)
    assert min(solid) < min(shaded) - 10, "the largest eigenvalue"
    assert [y for y in solid if min(shaded) + 5 < y < max(shaded) - 5], "the median"
    assert fan.pixels(CANVAS, BLUE)["count"] > 1500
    legend = fan.page.locator(f"{FAN} .legend")
    for word in ("median", "largest, smallest", "99.8 % of the eigenvalues", "98 %", "90 %", "half"):
        expect(legend).to_contain_text(word)
    expect(legend.locator(".band")).to_have_count(5)  # four shades and the median's error


def test_a_spectrum_that_was_not_measured_is_a_gap_with_a_mark(fan) -> None:
    """Between steps 1150 and 1300 there is no quantile, although eigenvalues were measured in between."""
    for share in (0.395, 0.41, 0.425):
        assert _shaded(_column(fan.page, share), SHADES) == []
        assert [pixel for pixel in _column(fan.page, share) if pixel[3] > 150], "the eigenvalues go on"
    for share in (0.37, 0.445):
        assert len(_shaded(_column(fan.page, share), SHADES)) > 50
    assert fan.pixels(CANVAS, RED)["count"] > 10


def test_values_say_what_the_shades_enclose_now_and_under_the_cursor(fan, curvature) -> None:
    values = fan.page.locator(f"{FAN} .also")
    run, store = curvature.id("cnn-sgd"), curvature.store
    low, high = (store.observations(run, "hessian_quantile", end)["value"][-1] for end in ENDS[0])
    expect(values.first).to_have_text(
        f"99.8 % of the eigenvalues from −{float(f'{-low:.3g}'):g} to {float(f'{high:.3g}'):g}"
    )
    latest = values.first.inner_text()
    fan.page.locator(f"{FAN} .u-over").hover(position={"x": 100, "y": 100})
    expect(values.first).not_to_have_text(latest)
    fan.page.locator("h1").hover()
    expect(values.first).to_have_text(latest)


def test_axis_can_be_linear_and_is_kept_in_the_address(fan) -> None:
    before = fan.image(CANVAS)
    button = fan.page.locator(f"{FAN} .toggle")
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    _drawn(fan)
    assert fan.image(CANVAS) != before
    assert "flip=spectral_density" in fan.page.url
    button.click()


def test_two_fans_lie_on_each_other_in_the_colours_of_their_runs(curvature) -> None:
    seen = curvature.go("cnn-sgd", "half-rate")
    expect(seen.page.locator(f"{FAN} .value")).to_have_count(2)
    expect(seen.page.locator(f"{FAN} .legend .band")).to_have_count(5)
    seen.drawn(f"{FAN} .value")
    assert seen.pixels(CANVAS, BLUE)["count"] > 1000
    assert seen.pixels(CANVAS, VERMILLION)["count"] > 600


def test_dark_is_drawn_in_the_dark_theme_s_colour(curvature, visit) -> None:
    seen = _drawn(visit(f"{curvature.url}/#run={curvature.id('cnn-sgd')}", color_scheme="dark"))
    assert seen.pixels(CANVAS, SKY)["count"] > 1500
    shade = SHADES[-1]
    assert seen.pixels(CANVAS, SKY, (shade - 3, shade + 3), 20)["count"] > 500


def test_what_a_step_does_is_shown_against_its_limits(fan) -> None:
    page = fan.page
    sharp = page.locator("#panel-batch_sharpness")
    expect(sharp.locator(".values")).to_contain_text("against 40")
    for word in ("2 / learning rate", "sharpness", "along the update", "one standard error"):
        expect(sharp.locator(".legend")).to_contain_text(word)
    change = page.locator("#panel-loss_change")
    for word in ("actual", "quadratic model", "gradient alone"):
        expect(change.locator(".legend")).to_contain_text(word)
    expect(change.locator(".also")).to_have_text([re.compile("quadratic model −"), re.compile("gradient alone −")])
    expect(page.locator("#panel-gradient_alignment .legend")).to_contain_text("top_5")
    expect(page.locator("#panel-hessian_eigenvalue .legend")).to_contain_text("± residual bound")
    expect(page.locator("#panel-hessian_eigenvalue select")).to_have_count(0)
    ink = (43, 52, 65)
    for panel in ("critical_step", "curvature_share"):
        assert fan.pixels(f"#panel-{panel} canvas", ink)["count"] > 100, "the limit at 1"


def test_what_is_undetermined_is_a_gap_and_said_to_be_although_it_has_a_number(fan) -> None:
    """Before step 200 of 3 000 the critical step is 32 or more: a bound, no reading."""
    canvas = "#panel-critical_step canvas"
    columns = fan.pixels(canvas, BLUE)["columns"]
    marks = fan.pixels(canvas, RED)["columns"]
    assert min(marks) < min(columns) - 15
    plot = fan.page.locator("#panel-critical_step .u-over")
    plot.hover(position={"x": 2, "y": 60})
    expect(fan.page.locator("#panel-critical_step .values")).to_contain_text("undetermined(32)")
    fan.page.locator("h1").hover()
    expect(fan.page.locator("#panel-critical_step .missing")).to_have_count(0)


@pytest.mark.parametrize(
    ("low", "high", "linear"),
    [(-3.0, 35.0, 0.1), (-1e-3, 4e4, 1.0), (-2e-7, 3e-7, 1e-7), (-80.0, -1e-3, 1e-3), (0.0, 1e9, 1e5)],
)
def test_ticks_are_round_apart_and_on_both_sides(fan, low: float, high: float, linear: float) -> None:
    height = 240
    ticks = fan.page.evaluate(
        "async (given) => (await import('./page/js/symlog.js')).symTicks(...given)",
        [low, high, height, linear],
    )
    place = [math.asinh(tick / linear) for tick in (low, high)]
    per = height / (place[1] - place[0])
    assert len(ticks) >= 3
    assert ticks == sorted(ticks)
    assert all(low <= tick <= high for tick in ticks)
    assert (0 in ticks) == (low <= 0 <= high)
    for before, after in pairwise(ticks):
        assert (math.asinh(after / linear) - math.asinh(before / linear)) * per >= 20
    for tick in ticks:
        assert tick == 0 or f"{abs(tick):.0e}"[0] in "1235"


def test_the_axis_turns_linear_below_what_the_values_need(fan) -> None:
    found = fan.page.evaluate(
        """async () => {
          const { threshold } = await import("./page/js/symlog.js");
          const given = [[], [[null, undefined, 0]], [[-0.02, 0.03, null], [0.5, 20, undefined]],
            [[1e-9, -1e-9, 1e-9, 1e-9, 50]], [[-1000, 1000]]];
          return given.map(threshold);
        }"""
    )
    assert found == [1, 1, 0.1, pytest.approx(1e-3), 1000]
