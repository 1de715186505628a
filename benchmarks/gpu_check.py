"""What only an accelerator can show: right numbers, identical training, no waiting, memory, recovery from running out.

    make gpu-check

Writes `gpu_check.md` beside this file, with the name of the device, and on CUDA `overhead-cuda.md`: what a monitored
training costs there (a quarter of an hour; `--quick` takes a twentieth of that). Without an accelerator the same checks
run on the CPU, as far as they mean anything there, and nothing is written.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Symmetries, WeightDynamics, every
from learnmech.probes.curvature import top_eigenvalues
from learnmech.probes.probe import Probe
from learnmech.wire.spool import batches

HERE = Path(__file__).parent
Batch = tuple[Tensor, Tensor]
ORDINARY_STEPS = 20
"""Steps watched for waiting, after as many that are not: more than any first use."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the report."""

    name: str
    passed: bool
    figure: str


class Attention(nn.Module):
    """One transformer layer with the attention kernel that the device prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits. [batch, length, 32]"""
        return self.head(self.layer(self.embed(tokens)))


class Recurrent(nn.Module):
    """An LSTM, which runs on cuDNN where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the last place. [batch, 4]"""
        return self.head(self.lstm(x)[0][:, -1])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))


def _cnn() -> nn.Module:
    conv = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU()]
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4))


def _classes(shape: tuple[int, ...]) -> Callable[[], Batch]:
    return lambda: (torch.randn(32, *shape), torch.randint(4, (32,)))


def _tokens() -> Batch:
    tokens = torch.randint(32, (16, 33))
    return tokens[:, :-1], tokens[:, 1:]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "MLP": (_mlp, _classes((16,))),
    "CNN with BatchNorm": (_cnn, _classes((1, 8, 8))),
    "LSTM": (Recurrent, _classes((10, 16))),
    "attention": (Attention, _tokens),
}


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy."""
    return cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def made(name: str, device: str) -> tuple[nn.Module, Batch]:
    """Make a model and a batch, the same numbers on every device."""
    torch.manual_seed(0)
    model, batch = MODELS[name][0](), MODELS[name][1]()
    return model.to(device), (batch[0].to(device), batch[1].to(device))


def right(name: str, device: str) -> Outcome:
    """Compare the top eigenvalue in float32 on the device with float64 on the CPU."""
    model, batch = made(name, "cpu")
    model, double = model.double(), batch[0].double() if batch[0].is_floating_point() else batch[0]
    expected = float(top_eigenvalues(loss_fn, model, [(double, batch[1])], tol=1e-8, max_products=200).eigenvalues[0])
    found = top_eigenvalues(loss_fn, *_one(*made(name, device)), tol=1e-4, max_products=200)
    error = abs(float(found.eigenvalues[0]) - expected) / abs(expected)
    said = f"relative error {error:.1e}, {found.products} products, {found.status} {found.reason}".strip()
    return Outcome(f"sharpness of the {name} against float64 on the CPU", error < 1e-3, said)


def _one(model: nn.Module, batch: Batch) -> tuple[nn.Module, list[Batch]]:
    return model, [batch]


def compiled(name: str, device: str) -> Outcome:
    """Compare the compiled model with the same one in eager mode."""
    model, batch = made(name, device)
    expected = float(top_eigenvalues(loss_fn, model, [batch], tol=1e-5, max_products=200).eigenvalues[0])
    quick = torch.compile(model)
    loss_fn(quick, batch).backward()
    found = top_eigenvalues(loss_fn, quick, [batch], tol=1e-5, max_products=200)
    error = abs(float(found.eigenvalues[0]) - expected) / abs(expected)
    return Outcome(f"sharpness of the compiled {name}", error < 1e-3, f"relative error {error:.1e}, {found.status}")


def autocast(name: str, device: str) -> Outcome:
    """Compare bfloat16 autocast with float32: the top eigenvalue is promised within a few per cent."""
    model, batch = made(name, device)
    expected = float(top_eigenvalues(loss_fn, model, [batch], tol=1e-4, max_products=200).eigenvalues[0])

    def rounded(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return loss_fn(model, batch)

    found = top_eigenvalues(rounded, model, [batch], tol=1e-2, max_products=200)
    error = abs(float(found.eigenvalues[0]) - expected) / abs(expected)
    return Outcome(f"sharpness of the {name} under bfloat16 autocast", error < 0.05, f"relative error {error:.1e}")


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> list[Tensor]:
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    streams = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if device == "cuda" else [])
    return [tensor.detach().clone() for tensor in tensors] + streams


@dataclass(frozen=True, slots=True)
class Cell:
    """A setting of a training that must come out the same; `benchmarks.harmless` has all of them, on the CPU alone."""

    micro_batches: int = 1
    clip: float | None = None
    half: torch.dtype | None = None

    def __str__(self) -> str:
        names = [f"{self.micro_batches} micro-batches" if self.micro_batches > 1 else ""]
        names += [f"clipping at {self.clip}" if self.clip else "", str(self.half).removeprefix("torch.")]
        return ", ".join(name for name in names if name and name != "None") or "plain"


CELLS = (Cell(), Cell(3, 0.1), Cell(half=torch.bfloat16), Cell(2, 0.1, torch.float16))


def harmless(name: str, device: str, cell: Cell) -> Outcome:
    """Train with and without the recorder; everything must be the same, bit for bit."""

    def train(record: bool) -> list[Tensor]:
        model, batch = made(name, device)
        pieces = list(zip(*(part.chunk(cell.micro_batches) for part in batch), strict=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=cell.half is torch.float16)
        probes: list[Probe] = [Sharpness(every(2)), GradientNoiseScale(every(2)), WeightDynamics(every(2))]
        probes = [*probes, Symmetries(every(2))] if record else []

        def loss_of(model: nn.Module, batch: Batch) -> Tensor:
            with torch.autocast(device, cell.half or torch.bfloat16, enabled=cell.half is not None):
                return loss_fn(model, batch)

        with (
            tempfile.TemporaryDirectory() as folder,
            Recorder(
                model,
                optimizer,
                loss_of,
                probes,
                sink=f"spool:{folder}",
                accumulation=cell.micro_batches,
                scaler=scaler if scaler.is_enabled() else None,
            ) as recorder,
        ):
            for _ in range(10):
                optimizer.zero_grad()
                for piece in pieces:
                    scaler.scale(loss_of(model, piece) / len(pieces)).backward()
                    recorder.after_backward(piece)
                if cell.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), cell.clip)
                scaler.step(optimizer)
                scaler.update()
                recorder.after_step(pieces[-1])
        return _state(model, optimizer, device)

    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        pairs = list(zip(train(record=False), train(record=True), strict=True))
    finally:
        torch.use_deterministic_algorithms(mode=False)
    differing = sum(not torch.equal(a, b) for a, b in pairs)
    said = f"{differing} of {len(pairs)} differ"
    return Outcome(f"training of the {name} with and without, {cell}", differing == 0, said)


WATCHED: dict[str, tuple[Callable[[], list[Probe]], int, str]] = {
    "no probe": (list, 1, ""),
    "`Sharpness` that is not due, and `WeightDynamics`": (
        lambda: [Sharpness(every(10**6)), WeightDynamics(every(5))],
        1,
        "update_norm",
    ),
    "noise of 2 micro-batches": (lambda: [GradientNoiseScale(every(1), source="pieces")], 2, "noise_trace"),
    "noise of single examples": (lambda: [GradientNoiseScale(every(1), source="examples")], 1, "noise_trace"),
    "`Symmetries`": (lambda: [Symmetries(every(1))], 1, "symmetry_residual"),
}
"""What is watched for waiting: probes, micro-batches, and what has to be measured meanwhile."""


@contextmanager
def _waiting_raises(device: str, active: bool) -> Iterator[None]:
    """Let every wait for the device raise; on the CPU nothing waits."""
    if device != "cuda" or not active:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def unhurried(name: str, device: str) -> Outcome:
    """Measure while any wait for the device raises: in backward passes, in the optimizer's step, and after it.

    What raises in a hook costs the measurement and nothing else: therefore the numbers are counted. Without a probe the
    training itself is seen not to wait.
    """
    probes, micro_batches, observable = WATCHED[name]
    torch.manual_seed(0)
    # homogeneous and without bias in front, so that there are symmetries to be measured
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    pieces = [(torch.randn(32, 16).to(device), torch.randint(4, (32,)).to(device)) for _ in range(micro_batches)]
    with tempfile.TemporaryDirectory() as folder:
        with Recorder(
            model,
            optimizer,
            loss_fn,
            probes(),
            sink=f"spool:{folder}",
            accumulation=micro_batches,
            strict=True,
        ) as recorder:
            for step in range(2 * ORDINARY_STEPS):
                optimizer.zero_grad()
                with _waiting_raises(device, step >= ORDINARY_STEPS):
                    for piece in pieces:
                        loss = loss_fn(model, piece) / micro_batches
                        loss.backward()
                        recorder.after_backward(piece)
                    optimizer.step()
                    recorder.after_step(pieces[-1], loss)
        frames = [frame for batch in batches(Path(folder)) for frame in batch.frames if frame.step >= ORDINARY_STEPS]
    measured = {
        frame.step for frame in frames for m in frame.measurements if m.observable == observable and m.status == "ok"
    }
    expected = {"": 0, "update_norm": ORDINARY_STEPS // 5}.get(observable, ORDINARY_STEPS)
    said = f"measured at {len(measured)} of {ORDINARY_STEPS} steps"
    said += " under sync debug mode" if device == "cuda" else "; waiting is not checked: needs CUDA"
    return Outcome(f"no waiting for the device: {name}", len(measured) == expected, said)


def memory(name: str, device: str) -> Outcome:
    """Report the peak memory of a measurement beside that of a training step."""
    if device != "cuda":
        return Outcome(f"memory of a sharpness of the {name}", passed=True, figure="not checked: needs CUDA")
    model, batch = made(name, device)

    def peak(work: Callable[[], Any]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    step = peak(lambda: loss_fn(model, batch).backward())
    model.zero_grad()
    ours = peak(lambda: top_eigenvalues(loss_fn, model, [batch]))
    return Outcome(f"memory of a sharpness of the {name}", passed=True, figure=f"{ours / step:.1f} backward passes")


def exhausted(device: str) -> Outcome:
    """Leave too little memory for a measurement: it must fail as data, and training must go on."""
    if device != "cuda":
        return Outcome("running out of memory", passed=True, figure="not checked: needs CUDA")
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4)).to(device)
    batch = (torch.randn(16384, 1024, device=device), torch.randint(4, (16384,), device=device))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with (
        tempfile.TemporaryDirectory() as folder,
        Recorder(model, optimizer, loss_fn, [Sharpness(every(1))], sink=f"spool:{folder}") as recorder,
    ):
        loss_fn(model, batch).backward()
        optimizer.step()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(free - 3 * 2**28, 0), dtype=torch.uint8, device=device)
        for _ in range(4):
            recorder.after_step(batch)
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        del ballast
    return Outcome("running out of memory", passed=True, figure="training went on")


def checks(device: str) -> list[Callable[[], Outcome]]:
    """List what is checked."""
    found: list[Callable[[], Outcome]] = []
    for name in MODELS:
        found += [lambda name=name: right(name, device), lambda name=name: memory(name, device)]
        # an LSTM has no kernel for float16 on the CPU
        cells = [cell for cell in CELLS if (device, name, cell.half) != ("cpu", "LSTM", torch.float16)]
        found += [lambda name=name, cell=cell: harmless(name, device, cell) for cell in cells]
    found += [lambda: compiled("MLP", device), lambda: compiled("attention", device)]
    found += [lambda: autocast("MLP", device), lambda: autocast("attention", device)]
    found += [lambda name=name: unhurried(name, device) for name in WATCHED]
    return [*found, lambda: exhausted(device)]


def checked(check: Callable[[], Outcome]) -> Outcome:
    """Run one check; an exception fails it and stops none of the others."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (whatever a device raises is the finding)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(f"check at line {where.lineno} of {Path(where.filename).name}", False, f"{error!r}"[:300])


def costs(device: str, *, quick: bool) -> str:
    """Return what a monitored training costs, as `benchmarks.overhead` writes it."""
    sys.path.append(str(HERE.parent))  # this file is run by its name
    from benchmarks import overhead

    text = overhead.measured(device, torch.get_num_threads(), quick=quick)
    return text.replace('`make bench ARGS="--only overhead"`', "`make gpu-check`")


def main() -> int:
    """Run the checks, print them, and write the reports where there is an accelerator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=HERE / "gpu_check.md")
    parser.add_argument("--quick", action="store_true", help="a shorter look at the costs")
    arguments = parser.parse_args()
    device: str = arguments.device
    torch.backends.cuda.matmul.allow_tf32 = False
    console = Console(stderr=True)
    outcomes = [checked(check) for check in track(checks(device), description=f"checks on {device}", console=console)]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    lines = [
        f"Measured on: {name}, torch {torch.__version__}.",
        "",
        "| check | passed | figure |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {one.name} | {'yes' if one.passed else '**no**'} | {one.figure} |" for one in outcomes]
    text = "\n".join(lines) + "\n"
    if device != "cpu":
        arguments.out.write_text(f"# Checks on an accelerator\n\n`make gpu-check` writes this file.\n\n{text}")
    Console().print(text, markup=False)
    if device == "cuda":
        (arguments.out.parent / "overhead-cuda.md").write_text(costs(device, quick=arguments.quick), encoding="utf-8")
    return 0 if all(one.passed for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
