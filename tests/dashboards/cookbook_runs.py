"""Runs for the questions of docs/sql.md: what was sent, and which of it counts after a resume."""

import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from learnmech.observables import Status
from learnmech.wire import Event, Frame, Measurement, RunInfo

T0 = 1_790_000_000.0


@dataclass
class Run:
    """A run as it was sent: attempts, each with its first step and its frames."""

    info: RunInfo
    attempts: list[tuple[int, list[Frame]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.info.name

    def kept(self) -> Iterator[tuple[int, Frame]]:
        """Frames with their attempts, without those that a later attempt superseded."""
        for number, (_, frames) in enumerate(self.attempts):
            until = min((start for start, _ in self.attempts[number + 1 :]), default=10**9)
            yield from ((number, frame) for frame in frames if frame.step < until)

    def rows(self, observable: str, scope: str | None = "") -> list[tuple[Frame, Measurement]]:
        return [
            (frame, m)
            for _, frame in self.kept()
            for m in frame.measurements
            if m.observable == observable and scope in (None, m.scope)
        ]

    def at(self, observable: str, step: int) -> float | None:
        """The value in force at a step."""
        found = [m.value for frame, m in self.rows(observable) if frame.step <= step]
        return found[-1] if found else None

    def last(self, observable: str) -> Measurement:
        return self.rows(observable)[-1][1]

    def events(self) -> Iterator[tuple[int, Event]]:
        for number, (_, frames) in enumerate(self.attempts):
            yield from ((number, event) for frame in frames for event in frame.events)


BLOCKS = ("blocks.0", "blocks.1", "head")


def _noise(chance: random.Random, step: int, batch: float) -> list[Measurement]:
    early = step < 60
    scale = 20 + step / 8
    undetermined = {"status": Status.UNDETERMINED, "reason": "|G|^2 is not resolved from zero"} if early else {}
    found = [
        Measurement("noise_scale", scale * (1 + 0.2 * chance.gauss(0, 1)), stderr=0.1 * scale, **undetermined),
        Measurement("doubling_speedup", 1 + chance.random(), stderr=0.1),
        Measurement("temperature", 3.0 / batch * (1 + 0.01 * chance.gauss(0, 1)), **undetermined),
        Measurement("noise_trace", 5 + chance.gauss(0, 1)),
        Measurement("noise_trace_between", 6 + chance.gauss(0, 1)),
        Measurement("signal_to_noise", 9.0 * chance.random(), scope="type:Linear"),
        Measurement("signal_to_noise", -1.0, scope="group:0"),
        Measurement("fluctuation_dissipation", 1 + 0.1 * chance.gauss(0, 1), **undetermined),
    ]
    found += [Measurement("signal_to_noise", chance.random(), scope=scope) for scope in BLOCKS]
    found.append(Measurement("signal_to_noise", -2.0, scope="blocks.2", status=Status.UNDETERMINED, reason="too wide"))
    return found


def _weights(chance: random.Random, step: int, rate: float, settled: int) -> list[Measurement]:
    """Weights that have been on the way into the equilibrium of their learning rate for `settled` steps."""
    equilibrium = math.sqrt(2 * rate * 0.5 * (1 - 0.9) / (1 + 0.9))
    angle = equilibrium * (1 + 4 * math.exp(-settled / 60)) * (1 + 0.01 * chance.gauss(0, 1))
    found = [
        Measurement("angular_update", angle, scope=scope)
        for scope in ("scale_invariant", "", "type:Linear", "blocks.0")
    ]
    found.append(Measurement("angular_update", 3.1 * angle, scope="head"))
    found.append(Measurement("angular_update", 0.2 * angle, scope="embedding"))
    found.append(Measurement("scale_invariance", 1e-6, scope="scale_invariant"))
    for scope in ("", "type:Linear", *BLOCKS):
        lost = step == 100 and scope == "head"
        reason = {"status": Status.NON_FINITE, "reason": "the value is nan"} if lost else {}
        found.append(Measurement("weight_decay_share", math.nan if lost else chance.random(), scope=scope, **reason))
    found += [
        Measurement("symmetry_residual", 10 ** (-7 + chance.gauss(0, 1)), scope=f"symmetry:{kind}")
        for kind in ("scale", "shift")
    ]
    return found


def _run(name: str, created: float, tags: dict[str, str] | None = None) -> RunInfo:
    context = {"optimizer": "AdamW", "parameters": 1000}
    return RunInfo(uuid.uuid5(uuid.NAMESPACE_URL, name).hex, name, created, "cookbook", tags or {}, context)


def runs() -> list[Run]:
    """A run that was resumed with twice the batch, one that halves its rate and pauses, and one that fails at once."""
    chance = random.Random(7)
    constants = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.5, "decoupled_weight_decay": 1.0,
                 "full_batch": 0.0, "deterministic_loss": 1.0, "accumulation": 1.0}  # fmt: skip
    world = []
    for name, batch, plan in (("baseline", 32.0, [(0, 430), (400, 600)]), ("wide", 128.0, [(0, 600)])):
        run = Run(_run(name, T0 + len(world)))
        rate, changed, samples, clock = 1e-2, 0, 0.0, T0
        for number, (start, end) in enumerate(plan):
            size = batch * (1 + number)
            frames: list[Frame] = []
            for step in range(start, end + 1, 10 if name == "baseline" else 20):
                measurements: list[Measurement] = []
                events: list[Event] = []
                if step == start:
                    events.append(Event("run_started", step, clock, f"attempt {number}"))
                    measurements += [Measurement(key, value) for key, value in constants.items()]
                    measurements += [Measurement("learning_rate", rate), Measurement("batch_size", size)]
                if name == "wide" and step == 300:
                    rate, changed, clock = rate / 2, step, clock + 200
                    measurements.append(Measurement("learning_rate", rate))
                    events.append(Event("probe_failed", step, clock, "ValueError: no", "warning"))
                measurements += [
                    Measurement("loss", 3 * math.exp(-step / 200) + 0.1 * chance.random()),
                    Measurement("overhead", 0.01 + 0.001 * chance.random()),
                    Measurement("probe_cost", 0.1 * chance.random(), scope="sharpness"),
                    Measurement("probe_cost", chance.random(), scope="symmetries"),
                    *_noise(chance, step, size),
                    *_weights(chance, step, rate, step - changed),
                ]
                if step == end:
                    events.append(Event("run_finished", step, clock, "done"))
                frames.append(Frame(len(frames), step, clock, round(samples), round(8 * samples), measurements, events))
                samples += 10 * size
                clock += 3.0
            run.attempts.append((start, frames))
        world.append(run)
    broken = Run(_run("broken", T0 + 5))
    bad = Measurement("loss", math.nan, status=Status.NON_FINITE, reason="the value is nan")
    failed = Event("run_failed", 1, T0 + 9, "ValueError: the loss is not finite", "error")
    first, second = Frame(0, 0, T0 + 5, 0, 0, [Measurement("loss", 3.0)]), Frame(1, 1, T0 + 9, 8, 64, [bad], [failed])
    broken.attempts.append((0, [first, second]))
    return [*world, broken]
