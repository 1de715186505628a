"""What a measurement costs, in units of one training step, and what the recorder costs on steps that measure nothing.

    make bench ARGS="--only probes"

Steps with and without the recorder alternate in blocks within one process, so that a drift of the machine's speed hits
both alike; the median over blocks is reported. The first use of each probe (graph warm-up, cold Lanczos) is apart.
A budget of 0 keeps unscheduled probes out.
"""

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.models import TASKS, Batch, loss_fn, random_batch
from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, WeightDynamics, every
from learnmech.probes.batch_sharpness import BatchSharpness
from learnmech.probes.critical_sharpness import CriticalSharpness
from learnmech.probes.hessian_eigenvalues import HessianEigenvalues
from learnmech.probes.hessian_noise_scale import HessianNoiseScale
from learnmech.probes.hessian_spectrum import HessianSpectrum
from learnmech.probes.loss_change import LossChange
from learnmech.probes.noise.choice import CUT_EVERY
from learnmech.probes.probe import Probe
from learnmech.probes.sharpness_reading import SharpnessReading
from learnmech.probes.symmetries import Symmetries

ACCUMULATED = "GradientNoiseScale, of 4 micro-batches"
EXAMPLES, NORMS = "GradientNoiseScale, of single examples", "GradientNoiseScale, of norm layers"
ONLY = {EXAMPLES: {"mlp", "transformer"}, NORMS: {"transformer"}}  # batch normalization couples examples
MICRO_BATCHES = 4
BLOCKS, FEW_BLOCKS = 7, 3
PATIENCE = 8.0  # seconds for the blocks of one probe on one network, once two are done
CHEAP, DEAR, DEAREST = 20, 2, 1  # steps in a block, for what costs less than a step, more, and more than FIFTY of them
FIFTY = 50


def reading(n: int) -> list[Probe]:
    """Return the cheap reading, with the probe whose eigenvector it reads, which measures once."""
    followed = Sharpness(every(10**9, start=1), preconditioned=False)
    return [followed, SharpnessReading(every(n), of=followed)]


PROBES: dict[str, Callable[[int], Probe | list[Probe]]] = {
    "Sharpness": lambda n: Sharpness(every(n), preconditioned=False),
    "Sharpness, preconditioned too": lambda n: Sharpness(every(n)),
    "SharpnessReading": reading,
    "BatchSharpness": lambda n: BatchSharpness(every(n)),
    "CriticalSharpness": lambda n: CriticalSharpness(every(n)),
    "LossChange": lambda n: LossChange(every(n)),
    "HessianEigenvalues": lambda n: HessianEigenvalues(every(n)),
    "HessianSpectrum": lambda n: HessianSpectrum(every(n)),
    "GradientNoiseScale": lambda n: GradientNoiseScale(every(n)),
    "GradientNoiseScale, of a batch cut up": lambda n: GradientNoiseScale(every(n), source="split"),
    EXAMPLES: lambda n: GradientNoiseScale(every(n), source="examples"),
    NORMS: lambda n: GradientNoiseScale(every(n), source="norm_layers"),
    ACCUMULATED: lambda n: GradientNoiseScale(every(n), source="pieces"),
    "HessianNoiseScale": lambda n: HessianNoiseScale(every(n)),
    "WeightDynamics": lambda n: WeightDynamics(every(n)),
    "Symmetries": lambda n: Symmetries(every(n)),
}


def train(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer, recorder: Recorder | None) -> None:
    """Do one step on the mean over micro-batches."""
    optimizer.zero_grad()
    for batch in batches:
        loss = loss_fn(model, batch) / len(batches)
        loss.backward()
        if recorder is not None and len(batches) > 1:
            recorder.after_backward(batch)
    optimizer.step()
    if recorder is not None:
        recorder.after_step(batches[-1], loss)


def seconds(work: Callable[[], object]) -> float:
    """Time a block."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compare(name: str, probes: list[Probe], device: str, blocks: int, pieces: int = 1) -> dict[str, float]:
    """Alternate blocks of plain and recorded steps, of so many micro-batches; return medians in seconds a step."""
    torch.manual_seed(0)
    model = TASKS[name].make().to(device)
    inputs, targets = random_batch(name)
    inputs, targets = inputs.to(device), targets.to(device)
    batch = list(zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plain, recorded, first = [], [], 0.0
    cheap = not probes or pieces > 1 or isinstance(probes[-1], WeightDynamics | Symmetries)
    block = CHEAP if cheap else DEAR
    if probes and isinstance(probes[-1], GradientNoiseScale) and probes[-1].source in ("auto", "norm_layers"):
        block = CUT_EVERY  # one of these is cut up, two are exact where the others are of norm layers
    rounds = blocks if probes else 3 * blocks
    with tempfile.TemporaryDirectory() as folder:
        probes = probes or [WeightDynamics(every(10**9, start=10**9))]
        sink = f"spool:{folder}"
        with Recorder(  # the one batch stands for many: of a whole data set there is no noise to measure
            model, optimizer, loss_fn, probes, sink=sink, budget=0, accumulation=pieces, full_batch=False
        ) as recorder:
            for _ in range(5):
                train(model, batch, optimizer, None)
            first = seconds(lambda: [train(model, batch, optimizer, recorder) for _ in range(3)])
            if first > 3 * FIFTY * step_of(model, batch, optimizer):
                block = DEAREST
            begin = time.perf_counter()
            watching = [probe for probe in probes if isinstance(probe, GradientNoiseScale)]
            for done in range(rounds):
                if done >= 2 and time.perf_counter() - begin > PATIENCE:
                    break
                for probe in watching:
                    probe.disarm()  # it was told to watch the next step
                plain.append(seconds(lambda: [train(model, batch, optimizer, None) for _ in range(block)]))
                if watching:
                    train(model, batch, optimizer, recorder)
                recorded.append(seconds(lambda: [train(model, batch, optimizer, recorder) for _ in range(block)]))
    step = statistics.median(plain) / block
    return {
        "step": step,
        "cost": statistics.median(r - p for r, p in zip(recorded, plain, strict=True)) / block,
        "first": max(first - 3 * step, 0.0),
    }


def step_of(model: nn.Module, batch: list[Batch], optimizer: torch.optim.Optimizer) -> float:
    """Time a plain step, roughly."""
    return seconds(lambda: [train(model, batch, optimizer, None) for _ in range(3)]) / 3


def measured(device: str, threads: int, *, quick: bool = False) -> str:
    """Measure every probe on every network; return the whole file."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread(s)"
    lines = [
        "# What a measurement costs",
        "",
        "`make bench` writes this file.",
        "",
        f"Measured on: {name}, torch {torch.__version__}. Unit: one training step (forward, backward, AdamW).",
        "",
        "| probe | model | one measurement | 1 % of the run is one every | first use adds |",
        "| --- | --- | --- | --- | --- |",
    ]
    networks = list(TASKS)[:1] if quick else list(TASKS)
    cases = [(probe, n) for probe in (None, *PROBES) for n in networks if n in ONLY.get(probe or "", {n})]
    for probe, network in track(cases, description="probe x model", console=Console(stderr=True)):
        made = [] if probe is None else PROBES[probe](1)
        chosen = made if isinstance(made, list) else [made]
        pieces = MICRO_BATCHES if probe == ACCUMULATED else 1
        found = compare(network, chosen, device, FEW_BLOCKS if quick else BLOCKS, pieces)
        lines.append(_line(probe, network, found))
    return "\n".join(lines) + "\n"


def _line(probe: str | None, network: str, found: dict[str, float]) -> str:
    units = found["cost"] / found["step"]
    if probe is None:
        microseconds = 1e6 * found["cost"]
        return f"| recorder on an ordinary step | {network} | {units:.4f} ({microseconds:.0f} µs) | - | - |"
    first = found["first"] / found["step"]
    return f"| {probe} | {network} | {units:.2f} | {100 * units:.0f} steps | {first:.0f} |"
