"""The picture of the comparison: products, errors and time along each run."""

from benchmarks.plotting import FAINT, Box, Line, Picture, bars, lines
from benchmarks.results import Network, Results
from benchmarks.tracking import COLD, EIGSH, GOAL, OURS, PYHESSIAN, Track, time_ratio

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {OURS: "#0072b2", COLD: "#56b4e9", PYHESSIAN: "#d55e00", EIGSH: "#009e73"}
TUNED = "#cc79a7"
SHORT = {COLD: "learnmech, cold", EIGSH: "curvlinops + eigsh"}

WIDTH, LEFT, TOP, GAP = 1000, 130, 122, 26
COLUMN = (WIDTH - LEFT - 24 - 2 * GAP) / 3
CHART, BARS = 150, 112
FLOOR, CEILING = 1e-5, 1.0  # errors below are rounding
FEW, MANY = 1.0, 100.0  # products


def colour(tool: str) -> str:
    """Return the colour of a tool."""
    return COLOURS.get(tool, TUNED)


def short(tool: str) -> str:
    """Return a tool's name for a legend."""
    return SHORT.get(tool, "eigsh, tuned by hand" if "tuned" in tool else tool)


def draw(results: Results) -> str:
    """Return the picture as SVG."""
    picture = Picture(WIDTH, TOP + 2 * CHART + BARS + 118)
    picture.text(24, 32, "The largest Hessian eigenvalue along a training run", size=17, weight=600)
    picture.text(
        24,
        51,
        f"one measurement every {results.every} steps; the question is 1 % at each of them",
        colour=FAINT,
        size=12,
    )
    names = [track.tool for track in results.networks[0].tracks if not track.trouble]
    x = float(LEFT)
    for name in names:
        picture.bar(x, 68, 12, 12, colour(name))
        picture.text(x + 17, 78, short(name), size=11.5)
        x += 42 + 6.4 * len(short(name))
    for index, network in enumerate(results.networks):
        _column(picture, network, LEFT + index * (COLUMN + GAP), first=index == 0)
    return picture.svg("Products, errors and CPU time of four ways to the largest Hessian eigenvalue, along three runs")


def _column(picture: Picture, network: Network, x: float, *, first: bool) -> None:
    tracks = sorted((t for t in network.tracks if not t.trouble), key=lambda t: t.tool == OURS)  # ours on top
    size = f"{network.parameters / 1e3:.0f} k, {network.recipe}"
    picture.text(x, TOP - 12, network.name, size=13, weight=600)
    picture.text(x + COLUMN, TOP - 12, size, size=10.5, anchor="end", colour=FAINT)
    last = network.steps[-1]
    labels = 1 if first else 0  # one scale for all columns
    steps = [0, last // 2, last]
    box = Box(x, TOP, COLUMN, CHART)
    curves = [
        Line(t.tool, colour(t.tool), _against(network, [float(n) for n in t.products]), _width(t)) for t in tracks
    ]
    lines(
        picture,
        box,
        curves,
        low=FEW,
        high=MANY,
        ticks=[(n, str(n) * labels) for n in (1, 3, 10, 30, 100)],
        steps=steps,
    )
    box = Box(x, TOP + CHART + 44, COLUMN, CHART)
    curves = [Line(t.tool, colour(t.tool), _against(network, t.errors(network.truths)), _width(t)) for t in tracks]
    shares = [(1e-5, "0.001 %"), (1e-4, "0.01 %"), (1e-3, "0.1 %"), (1e-2, "1 %"), (1e-1, "10 %"), (1.0, "100 %")]
    ticks = [(share, label * labels) for share, label in shares]
    lines(picture, box, curves, low=FLOOR, high=CEILING, ticks=ticks, mark=GOAL, steps=steps)
    picture.text(x + COLUMN / 2, box.y + CHART + 29, "step", size=10, anchor="middle", colour=FAINT)
    box = Box(x, TOP + 2 * CHART + 104, COLUMN - 46, BARS)
    ours = next((t for t in tracks if t.tool == OURS), None)
    if ours is None:
        return
    entries = [(t, time_ratio(t, ours)) for t in network.tracks if not t.trouble]
    high = max(ratio for _, ratio in entries)
    bars(
        picture, box, [("" if not first else short(t.tool), r, colour(t.tool)) for t, r in entries], high=high, unit="×"
    )
    if first:
        for y, words in (
            (TOP + CHART / 2, ["products"]),
            (TOP + CHART + 44 + CHART / 2, ["relative", "error"]),
        ):
            for row, word in enumerate(words):
                picture.text(24, y + 13 * row, word, size=11.5, weight=600)
        picture.text(
            24, TOP + 2 * CHART + 96, "CPU time of a measurement over learnmech's, median", size=11.5, weight=600
        )


def _against(network: Network, values: list[float]) -> list[tuple[float, float]]:
    return list(zip(map(float, network.steps), values, strict=True))


def _width(track: Track) -> float:
    return 2.4 if track.tool == OURS else 1.4
