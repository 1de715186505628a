"""What a measurement costs, in units of one training step, and what the recorder costs on steps that measure nothing.

    make bench

Steps with and without the recorder alternate in blocks within one process, so that a drift of the machine's speed hits
both alike; the median over blocks is reported. The first use of each probe (graph warm-up, cold Lanczos) is apart.
A budget of 0 keeps unscheduled probes out.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, WeightDynamics, every
from learnmech.probes.probe import Probe

HERE = Path(__file__).parent
BLOCKS = 7
CHEAP, DEAR = 20, 2  # steps in a block, for what costs less and more than a step


class Transformer(nn.Module):
    """Two pre-norm blocks on 64 tokens, without dropout."""

    def __init__(self, width: int = 128, heads: int = 4, vocabulary: int = 96, length: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits. [batch, length, vocabulary]"""
        x = self.embed(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def mlp() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return an MLP of 85 thousand parameters and a batch of 128."""
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    return net, (torch.randn(128, 64), torch.randint(10, (128,)))


def cnn() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a small CNN with BatchNorm and a batch of 64."""
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4, 10)), (
        torch.randn(64, 3, 16, 16),
        torch.randint(10, (64,)),
    )


def transformer() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a transformer of 430 thousand parameters and a batch of 16 windows."""
    tokens = torch.randint(96, (16, 65))
    return Transformer(), (tokens[:, :-1], tokens[:, 1:])


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


PROBES: dict[str, Callable[[int], Probe]] = {
    "Sharpness": lambda n: Sharpness(every(n), preconditioned=False),
    "Sharpness, preconditioned too": lambda n: Sharpness(every(n)),
    "GradientNoiseScale": lambda n: GradientNoiseScale(every(n)),
    "WeightDynamics": lambda n: WeightDynamics(every(n)),
}


def train(
    model: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer, recorder: Recorder | None
) -> None:
    """Do one step."""
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    optimizer.step()
    if recorder is not None:
        recorder.after_step(batch, loss)


def seconds(work: Callable[[], None]) -> float:
    """Time a block."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compare(
    make: Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]], probe: Probe | None, device: str
) -> dict[str, float]:
    """Alternate blocks of plain and recorded steps; return medians in seconds a step."""
    torch.manual_seed(0)
    model, batch = make()
    model.to(device)
    batch = (batch[0].to(device), batch[1].to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plain, recorded, first = [], [], 0.0
    block = CHEAP if probe is None or isinstance(probe, WeightDynamics) else DEAR
    rounds = 3 * BLOCKS if probe is None else BLOCKS
    with tempfile.TemporaryDirectory() as folder:
        probes = [probe] if probe is not None else [WeightDynamics(every(10**9, start=10**9))]
        with Recorder(model, optimizer, loss_fn, probes, sink=f"spool:{folder}", budget=0) as recorder:
            for _ in range(5):
                train(model, batch, optimizer, None)
            first = seconds(lambda: [train(model, batch, optimizer, recorder) for _ in range(3)] and None)
            for _ in range(rounds):
                plain.append(seconds(lambda: [train(model, batch, optimizer, None) for _ in range(block)] and None))
                recorded.append(
                    seconds(lambda: [train(model, batch, optimizer, recorder) for _ in range(block)] and None)
                )
    step = statistics.median(plain) / block
    return {
        "step": step,
        "cost": statistics.median(r - p for r, p in zip(recorded, plain, strict=True)) / block,
        "first": max(first - 3 * step, 0.0),
    }


def main() -> None:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "probe_cost.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {arguments.threads} thread(s)"
    lines = [
        f"Measured on: {name}, torch {torch.__version__}. Unit: one training step (forward, backward, AdamW).",
        "",
        "| probe | model | one measurement | 1 % of the run is one every | first use adds |",
        "| --- | --- | --- | --- | --- |",
    ]
    cases = [(probe, make) for probe in (None, *PROBES) for make in (mlp, cnn, transformer)]
    for probe, make in track(cases, description="probe x model", console=Console(stderr=True)):
        found = compare(make, None if probe is None else PROBES[probe](1), device)
        units = found["cost"] / found["step"]
        if probe is None:
            microseconds = 1e6 * found["cost"]
            lines.append(
                f"| recorder on an ordinary step | {make.__name__} | {units:.4f} ({microseconds:.0f} µs) | - | - |"
            )
        else:
            first = found["first"] / found["step"]
            lines.append(f"| {probe} | {make.__name__} | {units:.2f} | {100 * units:.0f} steps | {first:.0f} |")
    text = "\n".join(lines) + "\n"
    arguments.out.write_text(f"# What a measurement costs\n\n`make bench` writes this file.\n\n{text}")
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
