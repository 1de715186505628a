"""The tables of the comparison, as Markdown."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.goals import goals
from benchmarks.results import Network, Results
from benchmarks.side_by_side import Row
from benchmarks.tracking import GOAL, OURS, time_ratio

HEAD = """# Curvature side by side

`make bench` writes this file and the picture; `make bench ARGS=--quick` is a shorter look, which writes nothing.

![Products, errors and CPU time along three runs](curvature.svg)

{where}

The largest eigenvalue of the Hessian of the mean cross-entropy, in training mode, on one fixed batch: every tool gets
a fresh copy of the same weights. Times are CPU seconds of the process; ratios are medians of ratios taken in the same
round, one tool after the other. {memory}

**Products** are counted where a tool multiplies. **Errors** are relative to SciPy's `eigsh` on double backward in
float64, converged, which shares no code with ours. To be fair to the peers: attention is computed by plain matrix
products for all of them, since the fused kernel has no second derivative; PyHessian is kept from switching the model to
evaluation mode, where BatchNorm is another function; for curvlinops BatchNorm's running averages are taken out, and its
own test for determinism (two products) is off. The last table shows what happens without this help."""

RUN = """## Along a run, measured every {every} steps

The question is 1 % at every measurement. `learnmech` is the probe `Sharpness` at its settings, isolation of the
training and its periodic checks included; the peers start anew each time, except for `eigsh` tuned by hand, which asks
for 1 %, keeps a basis of five and starts from the vector before."""

READINGS = """## One reading

`learnmech` is `top_eigenvalues` at its defaults (residual 1e-3) or asked for 1 %. Cold is a first measurement, with the
search for a way to products and all checks; warm is a later one, from the result {every} steps earlier. Peers are at
their defaults unless it says otherwise. Medians over repeats with different random starts; the error is that of the
worst."""

MANNERS = """## Without help

What each tool does as it comes, and what it leaves behind when it is called between `backward` and `step`."""


def markdown(results: Results) -> str:
    """Return the whole file."""
    blocks = [HEAD.format(where=results.where, memory=results.memory), RUN.format(every=results.every)]
    for network in results.networks:
        blocks += [about(network), table(_run(network))]
    blocks.append("### What was to be reached")
    rows = [["", "goal", "measured", "met"]]
    for network in results.networks:
        rows += [[network.name, goal, found, "yes" if met else "**no**"] for goal, found, met in goals(network)]
    blocks += [table(rows), READINGS.format(every=results.every)]
    for network in results.networks:
        for reading in network.readings:
            agreement = f"{reading.agreement:.0e}" if reading.agreement > 1e-12 else "1e-12"
            blocks.append(
                f"**{network.name}, step {reading.step}**: the eigenvalue is {reading.truth:.6g}; ours in float64 at a "
                f"residual of 1e-9 agrees to {agreement}."
            )
            blocks.append(table(_reading(reading.rows, reading.truth)))
    if results.manners:
        blocks += [MANNERS, table(results.manners)]
    return "\n\n".join(blocks) + "\n"


def about(network: Network) -> str:
    """Say what a network is."""
    last = network.steps[-1] if network.steps else 0
    return (
        f"**{network.name}**: {network.parameters:,} parameters, {network.recipe}, batches of {network.examples}, "
        f"{last} steps."
    )


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _run(network: Network) -> Iterator[list[str]]:
    yield ["tool", "products: median", "most", "error: median", "worst", "over 1 %", "CPU time", "times ours"]
    ours = next(track for track in network.tracks if track.tool == OURS)
    for track in network.tracks:
        if track.trouble:
            yield [track.tool, "-", "-", "-", "-", "-", "-", track.trouble]
            continue
        errors = track.errors(network.truths)
        yield [
            track.tool,
            f"{statistics.median(track.products):g}",
            str(max(track.products)),
            percent(statistics.median(errors)),
            percent(max(errors)),
            f"{sum(error > GOAL for error in errors)} of {len(errors)}",
            seconds(statistics.median(spent.cpu for spent in track.spent)),
            "-" if ours.trouble else f"{time_ratio(track, ours):.1f}",
        ]


def _reading(rows: Sequence[Row], truth: float) -> Iterator[list[str]]:
    yield ["tool", "products", "error", "CPU time", "wall", "times ours, cold", "peak memory", "it says"]
    for row in rows:
        if row.trouble:
            yield [row.tool, "-", "-", "-", "-", "-", "-", row.trouble]
            continue
        says = sorted({reading.says.split(":")[0].replace("_", " ") or "nothing" for reading in row.readings})
        yield [
            row.tool,
            f"{row.products:g}",
            percent(row.worst(truth)),
            seconds(statistics.median(spent.cpu for spent in row.spent)),
            seconds(statistics.median(spent.wall for spent in row.spent)),
            f"{statistics.median(row.ratios):.2f}",
            f"{row.peak / 2**20:.0f} MiB" if row.peak else "-",
            " or ".join(says),
        ]


def percent(error: float) -> str:
    """Return a relative error for reading: float32 does not tell what is below 1e-5."""
    return "< 0.001 %" if error < 1e-5 else f"{100 * error:.2g} %"


def seconds(value: float) -> str:
    """Return a time with two digits."""
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.1f} s"
