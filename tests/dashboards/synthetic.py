"""Runs that never happened: batches with the shapes of real ones, made from closed forms and a seeded generator.

Nothing here is judged or drawn; that is done by the real store, judge and page.
"""

import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from learnmech.observables import Status
from learnmech.wire import Batch, Event, Frame, Measurement, RunInfo

T0 = 1_790_000_000.0
SGD = {"optimizer": "SGD", "parameters": 12_730, "framework": "torch 2.13", "dtype": "float32", "device": "cpu"}
ADAMW = {
    "optimizer": "AdamW",
    "parameters": 818_432,
    "framework": "lightning 2.6",
    "dtype": "float32",
    "device": "cuda:0",
}
TENSORS = ("blocks.0.attention.qkv.weight", "blocks.0.mlp.up.weight", "blocks.1.mlp.down.weight", "head.weight")


@dataclass
class Writer:
    """One writer of one run: hands out batches with gap-free sequences."""

    run: RunInfo
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    sequence: int = 0

    def batch(self, rows: list[tuple[int, float, int | None, int | None, list[Measurement], list[Event]]]) -> Batch:
        frames = []
        for step, time, samples, tokens, measurements, events in rows:
            frames.append(Frame(self.sequence, step, time, samples, tokens, measurements, events))
            self.sequence += 1
        return Batch(run=self.run, writer=self.writer, sent=rows[-1][1], frames=frames)


def info(name: str, context: dict[str, Any], *, created: float = T0, seed: str = "", **tags: str) -> RunInfo:
    return RunInfo(
        id=uuid.uuid5(uuid.NAMESPACE_URL, seed or name).hex, name=name, created=created, project="demo", tags=tags,
        context=context,
    )  # fmt: skip


def _event(kind: str, step: int, time: float, message: str, severity: str = "info") -> Event:
    return Event(kind, step, time, message, severity)


def descent(
    run: RunInfo, *, rate: float = 0.2, steps: int = 3000, every: int = 10, halve_at: int | None = None,
    edge: float = 1.005, onset: float = 500.0, seed: int = 1, end: str | None = "run_finished", pace: float = 0.02,
    die_at: int | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Full-batch gradient descent: sharpness rises to 2/rate and hovers; after `halve_at` it climbs to the new edge."""
    noise = random.Random(seed)
    writer = Writer(run)
    sharpness, loss = 2.0, 2.3
    constants = {"momentum": 0.0, "dampening": 0.0, "nesterov": 0.0, "weight_decay": 0.0, "full_batch": 1.0,
                 "deterministic_loss": 1.0, "batch_size": 1797.0, "dataset_size": 1797.0}  # fmt: skip
    rows = []
    for step in range(0, steps + 1, every):
        time = run.created + step * pace
        measurements: list[Measurement] = []
        events: list[Event] = []
        if step == 0:
            events.append(_event("run_started", 0, time, "SGD, 12 730 parameters"))
            measurements += [Measurement(name, value) for name, value in constants.items()]
            measurements.append(Measurement("learning_rate", rate))
        if halve_at is not None and step == halve_at:
            rate /= 2
            measurements.append(Measurement("learning_rate", rate))
            events.append(_event("hyperparameter_changed", step, time, f"learning_rate {2 * rate:g} -> {rate:g}"))
        target = edge * 2 / rate
        sharpness += (target - sharpness) * (1 - math.exp(-every / onset)) * (1 + 0.3 * noise.gauss(0, 1))
        at_edge = sharpness > 0.93 * target
        value = min(sharpness, 1.02 * target) * (1 + (0.012 if at_edge else 0.004) * noise.gauss(0, 1))
        loss = (0.03 + 2.27 * math.exp(-step / 420)) * (1 + (0.06 * noise.gauss(0, 1) if at_edge else 0.0))
        if die_at is not None and step >= die_at:
            value, loss = (math.nan, math.inf) if step > die_at + 20 * every else (value * 1.3, loss * 3)
        lost = 1200 <= step < 1290 and die_at is None
        measurements += [
            Measurement("sharpness", math.nan if lost else value, stderr=None if lost else 0.012 * value,
                        status=Status.NON_FINITE if lost or not math.isfinite(value) else Status.OK, cost=0.04),
            Measurement("loss", loss, status=Status.OK if math.isfinite(loss) else Status.NON_FINITE),
            Measurement("grad_norm", 0.6 * math.sqrt(max(loss, 1e-3)) if math.isfinite(loss) else math.nan),
            Measurement("weight_norm", 14 + 4 * (1 - math.exp(-step / 1500))),
            Measurement("update_norm", rate * 0.3 * math.sqrt(min(loss, 9.0))),
            Measurement("overhead", 0.0098 + 0.02 * math.exp(-step / 60)),
            Measurement("probe_cost", 0.04 + 0.004 * noise.random(), scope="Sharpness"),
        ]  # fmt: skip
        rows.append((step, time, step * 1797, None, measurements, events))
    finish = run.created + steps * pace
    if end:
        bad = end == "run_failed"
        message = "ValueError: the loss is not finite" if bad else "all steps done"
        rows.append((steps, finish, None, None, [], [_event(end, steps, finish, message, "error" if bad else "info")]))
    for start in range(0, len(rows), 40):
        yield writer.batch(rows[start : start + 40])


def transformer(
    run: RunInfo, *, rate: float = 3e-3, decay: float = 0.5, steps: int = 4000, every: int = 20, seed: int = 2,
    end: str | None = "run_finished", between: float = 1.0, pace: float = 0.03,
) -> Iterator[Batch]:  # fmt: skip
    """AdamW on text: the noise scale grows past the batch size, weights relax into rotational equilibrium."""
    noise = random.Random(seed)
    writer = Writer(run)
    batch, context = 32, 128
    angle = math.sqrt(2 * rate * decay * 0.1 / 1.9)
    rows = []
    for step in range(0, steps + 1, every):
        time = run.created + step * pace
        measurements: list[Measurement] = []
        events: list[Event] = []
        if step == 0:
            events.append(_event("run_started", 0, time, "AdamW, 818 432 parameters"))
            constants = {"learning_rate": rate, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": decay,
                         "decoupled_weight_decay": 1.0, "batch_size": float(batch), "full_batch": 0.0,
                         "deterministic_loss": 1.0, "accumulation": 1.0}  # fmt: skip
            measurements += [Measurement(name, value) for name, value in constants.items()]
        loss = 1.35 + 2.8 * math.exp(-step / 500) + 0.04 * noise.gauss(0, 1)
        squared = 0.9 * math.exp(-step / 700) + 0.012
        trace = 1.1 + 2.0 * math.exp(-step / 1500)
        relax = 1 - 0.7 * math.exp(-step * 2 * rate * decay)
        measured = trace * (1 + 0.11 * noise.gauss(0, 1))
        other = between * trace * (1 + 0.11 * noise.gauss(0, 1))
        early = step < 200
        measurements += [
            Measurement("loss", loss),
            Measurement("grad_norm", math.sqrt(squared + trace / batch)),
            Measurement("noise_trace", measured, stderr=0.11 * trace),
            Measurement("noise_trace_between", other, stderr=0.11 * trace),
            Measurement("grad_sq_norm", squared * (1 + 0.2 * noise.gauss(0, 1)), stderr=0.2 * squared),
            Measurement("noise_scale", None if early else trace / squared * (1 + 0.06 * noise.gauss(0, 1)),
                        stderr=None if early else 0.12 * trace / squared,
                        status=Status.UNDETERMINED if early else Status.OK,
                        reason="the squared gradient is not resolved from zero yet" if early else ""),
            Measurement("weight_norm", 31 * math.sqrt(relax)),
            Measurement("overhead", 0.0095 + 0.015 * math.exp(-step / 90)),
            Measurement("sharpness_preconditioned", 4000 * (1 + 0.1 * noise.gauss(0, 1)), stderr=60.0),
        ]  # fmt: skip
        for place, tensor in enumerate(TENSORS):
            value = angle * (1 + (0.02, 0.05, -0.03, 0.6)[place] + 0.03 * noise.gauss(0, 1)) / relax
            measurements += [
                Measurement("angular_update", value, scope=tensor),
                Measurement("scale_invariance", 2e-5 if place < 3 else 0.04, scope=tensor),
                Measurement("weight_norm", (9 - place) * math.sqrt(relax), scope=tensor),
            ]
        measurements += [
            Measurement("angular_update", angle * (1.03 + 0.02 * noise.gauss(0, 1)) / relax, scope="scale_invariant"),
            Measurement("scale_invariance", 3e-5, scope="scale_invariant"),
        ]
        rows.append((step, time, step * batch, step * batch * context, measurements, events))
    finish = run.created + steps * pace
    if end:
        rows.append((steps, finish, None, None, [], [_event(end, steps, finish, "all steps done")]))
    for start in range(0, len(rows), 40):
        yield writer.batch(rows[start : start + 40])


QUANTILES = {"0.001": -3.09, "0.01": -2.33, "0.05": -1.64, "0.25": -0.67, "0.5": 0.0, "0.75": 0.67, "0.95": 1.64,
             "0.99": 2.33, "0.999": 3.09}  # fmt: skip
"""Normal deviates of the probabilities, from any table."""

CALM = 200
"""Steps before which `curved` only knows a bound of the critical step."""

LOST = range(1200, 1300)
"""Steps at which the spectrum of `curved` could not be measured."""


def curved(
    run: RunInfo, *, rate: float = 0.05, steps: int = 3000, every: int = 10, seed: int = 3, ranks: int = 5
) -> Iterator[Batch]:
    """Minibatch SGD whose Hessian is watched: a bulk that widens around zero, outliers that rise to the edge."""
    noise = random.Random(seed)
    writer = Writer(run)
    rows = []
    for step in range(0, steps + 1, every):
        time = run.created + step * 0.05
        rise = 1 - math.exp(-step / 600)
        at_edge = 2 / rate * (0.1 + 0.9 * rise)
        wiggle = 1 + 0.03 * noise.gauss(0, 1)
        top = 0.8 * at_edge * wiggle
        first = -0.004 - 0.01 * rise  # of a step: what the gradient promises
        second = -first * (0.15 + 0.75 * rise) * wiggle
        measurements = [
            Measurement("loss", 0.2 + 2.1 * math.exp(-step / 500) + 0.02 * noise.gauss(0, 1)),
            Measurement("sharpness", top, stderr=0.01 * top),
            Measurement("batch_sharpness", at_edge * wiggle, stderr=0.06 * at_edge),
            Measurement("update_sharpness", 0.7 * at_edge * wiggle),
            Measurement(
                "critical_step", 32.0, status=Status.UNDETERMINED, reason="it does not rise as far as was looked"
            )
            if step < CALM
            else Measurement("critical_step", 1.02 + 8 * math.exp(-step / 300) + 0.05 * noise.gauss(0, 1)),
            Measurement("loss_change_linear", first),
            Measurement("loss_change_predicted", first + second),
            Measurement("loss_change", first + 1.1 * second + 2e-4 * noise.gauss(0, 1)),
            Measurement("curvature_share", -second / first),
            Measurement("gradient_alignment", 0.1 + 0.8 * math.exp(-(((step - 700) / 500) ** 2)), scope=f"top_{ranks}"),
        ]
        if step == 0:
            measurements += [Measurement("learning_rate", rate), Measurement("batch_size", 32.0)]
        if step % (5 * every) == 0:
            measurements += _spectrum(step, top, rise, ranks, noise)
        rows.append((step, time, step * 32, None, measurements, []))
    rows.append((steps, time, None, None, [], [_event("run_finished", steps, time, "all steps done")]))
    for start in range(0, len(rows), 40):
        yield writer.batch(rows[start : start + 40])


def _spectrum(step: int, top: float, rise: float, ranks: int, noise: random.Random) -> list[Measurement]:
    lost = step in LOST
    reason = "two starts of Lanczos do not agree"
    found = []
    for probability, deviate in QUANTILES.items():
        # sinh makes the tails of a normal density as heavy as those of a Hessian; the positive one is the heavier
        value = 0.004 * (1 + 3 * rise) * math.sinh((1.9 if deviate > 0 else 1.5) * deviate) + 2e-4 * noise.gauss(0, 1)
        error = 4e-4 + 0.05 * abs(value)
        if lost:
            found.append(
                Measurement("hessian_quantile", None, scope=probability, status=Status.UNDETERMINED, reason=reason)
            )
        else:
            found.append(Measurement("hessian_quantile", value, scope=probability, stderr=error))
    for rank in range(1, ranks + 1):
        value = top * (1.01 - 0.17 * (rank - 1)) * (1 + 0.01 * noise.gauss(0, 1))
        found.append(Measurement("hessian_eigenvalue", value, scope=str(rank), stderr=0.01 * value))
    for rank in (1, 2):
        value = (-0.1 - 2.4 * math.exp(-step / 900)) / rank * (1 + 0.03 * noise.gauss(0, 1))
        found.append(Measurement("hessian_eigenvalue_smallest", value, scope=str(rank), stderr=0.02 * abs(value)))
    trace = 60 * (1 + rise) * (1 + 0.04 * noise.gauss(0, 1))
    frobenius = 1.6 * top * (1 + 0.02 * noise.gauss(0, 1))
    found.append(Measurement("hessian_trace", trace, stderr=0.05 * trace))
    found.append(Measurement("hessian_frobenius", frobenius, stderr=0.03 * frobenius))
    return found


UNRESOLVED = 200
"""Steps before which `noisy` cannot tell the signal from noise."""


def noisy(
    run: RunInfo, *, blocks: int = 60, steps: int = 1000, every: int = 20, rate: float = 0.05, seed: int = 8
) -> Iterator[Batch]:
    """SGD whose noise and symmetries are watched in many blocks: the deeper the block, the less of a step is signal."""
    noise = random.Random(seed)
    writer = Writer(run)
    rows = []
    for step in range(0, steps + 1, every):
        time = run.created + step * 0.05
        early = {"status": Status.UNDETERMINED, "reason": "not resolved"} if step < UNRESOLVED else {}
        scale = 40 + step / 10
        found = [
            Measurement("loss", 2.0 * math.exp(-step / 500)),
            Measurement("noise_scale", scale, stderr=0.1 * scale, **early),
            Measurement("noise_scale_hessian", 3 * scale, stderr=0.3 * scale, **early),
            Measurement("doubling_speedup", 1.5, stderr=0.05, **early),
            Measurement("temperature", rate * 0.1, stderr=0.001),
            Measurement("noise_trace_hessian", 20.0 * (1 + 0.1 * noise.gauss(0, 1)), stderr=2.0),
            Measurement("grad_hessian_grad", 0.1 * noise.gauss(0, 1), stderr=0.1),
            Measurement("grad_sq_norm", 0.1 * (1 + noise.gauss(0, 1)), stderr=0.1),
            Measurement("fluctuation_dissipation", 1 + 0.05 * noise.gauss(0, 1), stderr=0.05),
            Measurement("overhead", 0.01),
        ]
        for scope, size in (("", 5.0), ("type:Linear", 4.0), ("type:LayerNorm", 1.0)):
            found.append(Measurement("noise_trace", size, scope=scope))
            found.append(Measurement("noise_trace_between", 2 * size, scope=scope))
            found.append(Measurement("signal_to_noise", size, scope=scope))
        for block in range(blocks):
            lost = block == 3 and 500 <= step < 600
            value = math.nan if lost else 10.0 * 100 ** (-block / (blocks - 1))
            reason = {"status": Status.NON_FINITE, "reason": "nan"} if lost else early
            found.append(Measurement("signal_to_noise", value, scope=f"blocks.{block}", **reason))
            found.append(Measurement("relative_update", 1e-3 * (block + 1), scope=f"blocks.{block}"))
            found.append(Measurement("relative_update", 1e-3, scope=f"blocks.{block}.mlp.weight"))
        for kind, size in (("scale", 1e-6), ("shift", 1e-2)):
            found.append(Measurement("symmetry_residual", size, scope=f"symmetry:{kind}"))
            drift = -1e-3 * (1 + 0.1 * noise.gauss(0, 1))
            found.append(Measurement("charge_drift", drift, scope=f"symmetry:{kind}", stderr=1e-6))
            found.append(Measurement("charge_drift_predicted", drift, scope=f"symmetry:{kind}"))
        found += [Measurement("probe_cost", 0.1 * cost, scope=name) for cost, name in ((1, "symmetries"), (3, "noise"))]
        if step == 0:
            found += [Measurement("learning_rate", rate), Measurement("batch_size", 32.0)]
        rows.append((step, time, step * 32, None, found, []))
    rows.append((steps, time, None, None, [], [_event("run_finished", steps, time, "all steps done")]))
    for start in range(0, len(rows), 20):
        yield writer.batch(rows[start : start + 20])
