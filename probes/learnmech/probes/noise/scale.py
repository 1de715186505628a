"""From estimates of |G|^2 and tr Sigma to measurements: their window, the noise scale, and what follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from learnmech.laws.batch_size import propagated, speedup, temperature
from learnmech.laws.statistics import Interval
from learnmech.observables import Status
from learnmech.probes.estimators.noise import NoiseParts
from learnmech.probes.estimators.ratio import Moments, Ratio, quantile, ratio_now
from learnmech.probes.noise.reasons import SUSPECTED, too_few, too_loose, with_left_out
from learnmech.probes.noise.surges import Jumps, Surges, Verdict
from learnmech.probes.noise.weighing import Weighing, without_estimates
from learnmech.probes.noise.window import FEWEST, RESOLVED, ExponentialWindow
from learnmech.wire import Measurement

HALF_LIFE = 25.0
"""Measurements after which one counts half: n_eff = 72 in the long run. The noise scale is then determined as long as
|G|^2 scatters by no more than 2.6 times itself from one measurement to the next: its mean must be (4 + 1)/(4 - 1) = 5/3
times t = 1.99 standard errors for an interval of a factor of 4, and sqrt(72) / 3.3 = 2.6."""

WIDEST_SPEEDUP = 1.0 / 3.0
"""Largest width of the interval of a determined `doubling_speedup`: what a noise scale known to a factor of 4 leaves at
most, 1/(1 + r/4) - 1/(1 + r) at r = 2. Its whole range is from 1 to 2."""


class NoiseTracker:
    """Keeps a window of estimates for each scope, and says what is known.

    Measures, in each scope: `noise_trace` and `grad_sq_norm` of the update itself, with the standard error that their
    scatter shows; `noise_scale`, the ratio of their means over the window, a number only while its 95 % interval spans
    no more than a factor, otherwise `undetermined` with what bounds it; `signal_to_noise`. Both are for the moment: how
    far the window seems to lag behind a drift widens their intervals. In the scope '' of the whole model also
    `doubling_speedup`, and `temperature` where the optimizer has one: that is 4 numbers a scope, and 2. Ratios take 8
    measurements.

    An update without estimates leaves the windows as they are, and is reported; so does one whose gradient is far out
    of line, while a window begins anew after a jump (`learnmech.probes.noise.surges`). Where the pieces of updates
    contradict the weights that they are said to have, nothing is estimated, and what came of such weights before is
    forgotten.

    Args:
        half_life: Measurements after which one counts half.
        factor: Largest upper over lower end of the interval of a determined noise scale.
    """

    def __init__(self, half_life: float = HALF_LIFE, factor: float = RESOLVED) -> None:
        self._windows: dict[str, ExponentialWindow] = {}
        self._surges: dict[str, Surges] = {}
        self._jumps: dict[str, Jumps] = {}
        self._begun: set[str] = set()  # scopes whose window has begun anew
        self._half_life = half_life
        self._factor = factor
        self._weighing = Weighing(half_life)  # a wrong half-life is told now, not in training
        self._contradicted = False

    def reset(self) -> None:
        """Forget all measurements."""
        self._windows.clear()
        self._surges.clear()
        self._jumps.clear()
        self._begun.clear()
        self._weighing.reset()
        self._contradicted = False

    def window(self, scope: str = "") -> ExponentialWindow:
        """Return the window of pairs (tr Sigma, |G|^2) of a scope."""
        return self._windows.setdefault(scope, ExponentialWindow(self._half_life))

    def update(
        self,
        parts: Mapping[str, NoiseParts],
        *,
        method: str,
        batch_size: float | None = None,
        effective_learning_rate: float | None = None,
        population: float | None = None,
    ) -> list[Measurement]:
        """Take the estimates of one update and return what to record.

        Args:
            parts: Estimates by scope.
            method: Where they come from, such as `ranks`.
            batch_size: Examples of a whole update, where the estimates are from a part of it.
            effective_learning_rate: eta (1 - tau) / (1 - mu) of the SGD family, the same for all parameters; None: the
                optimizer has no temperature.
            population: Examples of the data set, where batches are drawn from it without replacement.
        """
        found = []
        contradiction = self._weighing.contradicted(parts[""]) if "" in parts else ""
        if contradiction:
            if not self._contradicted:
                self._windows.clear()
                self._begun.clear()
            parts = without_estimates(parts, contradiction)
        self._contradicted = bool(contradiction)
        for scope, part in parts.items():
            if part.status is not Status.OK:
                found += self._nothing(scope, part, method)
                continue
            window = self.window(scope)
            self._take(scope, part, window)
            known = _Known.of(window, self._factor, begun=scope in self._begun, suspected=self._jumps[scope].suspected)
            batch = batch_size or part.batch_size
            windowed = f"{method}_window_of_{known.moments.count:.0f}"
            found += _parts(scope, part, known, method)
            found.append(_scale(scope, known, windowed))
            found.append(_signal(scope, known, batch, windowed))
            if scope == "":
                found.append(_doubling(known, batch, windowed))
                if effective_learning_rate is not None:
                    found.append(_temperature(known, batch, effective_learning_rate, population, windowed))
        return found

    def _take(self, scope: str, part: NoiseParts, window: ExponentialWindow) -> None:
        """Put the estimates of one update into a window, unless they are out of line."""
        means = window.moments()
        size = abs(part.grad_sq_norm) + part.noise_trace / part.batch_size
        usual = abs(means.mean_b) + means.mean_a / part.batch_size
        verdict = self._surges.setdefault(scope, Surges()).judge(size, usual, window.count)
        jumps = self._jumps.setdefault(scope, Jumps())
        if verdict is Verdict.LEAVE:
            window.left_out += 1
            return
        jumped = jumps.judge(part.noise_trace, part.grad_sq_norm, means, window.count)
        if jumped or verdict is Verdict.BEGIN:
            window.clear()
            self._jumps[scope] = Jumps()
            self._begun.add(scope)
        window.append(part.noise_trace, part.grad_sq_norm)

    def _nothing(self, scope: str, part: NoiseParts, method: str) -> list[Measurement]:
        value = math.nan if part.status is Status.NON_FINITE else None
        self.window(scope).left_out += 1
        return [
            Measurement(name, value, scope=scope, status=part.status, reason=part.reason, method=method)
            for name in ("noise_trace", "grad_sq_norm", "noise_scale")
        ]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a window says.

    Attributes:
        window: The window.
        moments: Of its pairs (tr Sigma, |G|^2).
        ratio: Their ratio of the moment, the noise scale.
        factor: What it is determined to, if it is.
        begun: The window has begun anew after a jump.
        suspected: The latest measurements may be the beginning of one.
    """

    window: ExponentialWindow
    moments: Moments
    ratio: Ratio
    factor: float
    begun: bool
    suspected: bool

    @classmethod
    def of(cls, window: ExponentialWindow, factor: float, *, begun: bool, suspected: bool) -> "_Known":
        """Look at a window."""
        moments = window.moments()
        return cls(window, moments, ratio_now(moments, factor), factor, begun, suspected)

    @property
    def young(self) -> bool:
        """There are too few measurements for a ratio, or they may have to be forgotten."""
        return self.window.count < FEWEST or self.suspected

    def trouble(self) -> str:
        """Say why the noise scale is not determined, and what is known of it all the same."""
        ratio, count = self.ratio, self.window.count
        if self.moments.mean_a == self.moments.mean_b == 0.0:
            return "all gradients are zero"
        if self.suspected:
            return SUSPECTED
        if self.young:
            return too_few(count, "since the noise has jumped") if self.begun else too_few(count)
        if not ratio.bounded:
            bound = f": the noise scale is at least {ratio.at_least:.3g}" if ratio.at_least > 0.0 else ""
            return f"|G|^2 is not resolved from zero over {count} measurements{bound}"
        if ratio.upper <= 0.0:
            return "|G|^2 came out negative beyond its error: the pieces are not independent"
        return too_loose(self.moments, ratio, self.factor, numerator="tr Sigma", name="the noise scale")


def _parts(scope: str, part: NoiseParts, known: _Known, method: str) -> list[Measurement]:
    # errors of one measurement, not of the mean; the scatter of two is no error bar
    several = known.window.count > 2
    errors = [math.sqrt(variance) if several else None for variance in (known.moments.var_a, known.moments.var_b)]
    return [
        Measurement("noise_trace", part.noise_trace, scope=scope, stderr=errors[0], method=method),
        Measurement("grad_sq_norm", part.grad_sq_norm, scope=scope, stderr=errors[1], method=method),
    ]


def _undetermined(name: str, scope: str, reason: str, method: str) -> Measurement:
    return Measurement(name, None, scope=scope, status=Status.UNDETERMINED, reason=reason, method=method)


def _scale(scope: str, known: _Known, method: str) -> Measurement:
    if known.ratio.determined and not known.young:
        return Measurement("noise_scale", known.ratio.value, scope=scope, stderr=known.ratio.stderr, method=method)
    return _undetermined("noise_scale", scope, with_left_out(known.trouble(), known.window), method)


def _signal(scope: str, known: _Known, batch: float, method: str) -> Measurement:
    ratio = ratio_now(known.moments.swapped)
    if ratio.stderr is not None and not known.young:
        value, error = batch * ratio.value, batch * ratio.stderr
        return Measurement("signal_to_noise", value, scope=scope, stderr=error, method=method)
    reason = known.trouble() if known.young else "tr Sigma is not resolved from zero"
    return _undetermined("signal_to_noise", scope, reason, method)


def _doubling(known: _Known, batch: float, method: str) -> Measurement:
    """Return the speed-up of twice the batch size: often known where the noise scale is only known to be large."""
    ratio = known.ratio
    upper = ratio.upper if ratio.bounded else math.inf
    if known.young or upper < 0.0:
        return _undetermined("doubling_speedup", "", known.trouble(), method)
    # |G|^2 below zero, by chance: the nearest noise scale there is is an infinite one
    value = ratio.value if ratio.value >= 0.0 else math.inf
    found = propagated(lambda scale: speedup(batch, 2 * batch, scale), Interval(value, ratio.at_least, upper))
    if found.upper - found.lower > WIDEST_SPEEDUP:
        reason = f"between {found.lower:.3g} and {found.upper:.3g}"
        return _undetermined("doubling_speedup", "", reason, method)
    error = (found.upper - found.lower) / (2 * quantile(known.moments.degrees))
    return Measurement("doubling_speedup", found.center, stderr=error, method=method)


def _temperature(known: _Known, batch: float, rate: float, population: float | None, method: str) -> Measurement:
    error, _ = known.moments.standard_errors()
    value, stderr = (temperature(rate, trace, batch, population) for trace in (known.moments.mean_a, error))
    return Measurement("temperature", value, stderr=stderr if known.window.count > 2 else None, method=method)
