"""Weight dynamics: what updates do to weights, for the whole model, by module type, by depth, and by tensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from learnmech.probes.changes import Changes
from learnmech.probes.distributed.fsdp import is_shard
from learnmech.probes.estimators import Motion, gradient_sums, total, update_sums
from learnmech.probes.estimators.weights import real_numbers
from learnmech.probes.groups import LIMIT, scopes
from learnmech.probes.hyperparameters import DIFFERS
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.scale_invariance import Certificates
from learnmech.probes.schedule import Schedule
from learnmech.probes.scope_numbers import Dissipation, decay_share, effective_rate, of_scope
from learnmech.probes.update_rules import Rule, UpdateRules
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from torch import Tensor

SCALE_INVARIANT = "scale_invariant"
"""Scope of the tensors that are certified scale invariant, taken together."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was measured of a gradient: names and sums of its tensors, what it is multiplied by, how it was seen."""

    names: list[str]
    sums: "Tensor"
    scale: "Tensor | float"
    method: str


class WeightDynamics(BaseProbe):
    """Measures what updates do to weights.

    - Scopes: `''`, all trainable weights as one vector; `type:Linear`, ..., by the type of the module; `blocks.0`, ...,
      by depth; see `learnmech.probes.groups.scopes`. Each has `weight_norm`, `weight_rms`, `grad_norm` (that of `''` is
      recorded with the loss), `update_norm`, `relative_update`, `angular_update`; `weight_decay_share` where weights
      decay; `fluctuation_dissipation` under SGD. `weight_norm_sq` of `''` alone.
    - Scope `scale_invariant`, the tensors whose loss does not depend on their scale, found by <w, g> = 0 at five
      measurements: the rms of `angular_update`, the largest `scale_invariance`, `weight_rms`,
      `effective_learning_rate`, and `learning_rate` and `weight_decay` if they have one value.

    Norms are those of w_t, updates and angles those of w_t -> w_(t+1); gradients are those of the update, unscaled and
    before clipping. Keeps one copy of the weights from before the update to after it, on the steps it measures; the
    device is not waited for.

    Points per measurement: 6 for each scope, 1 more where weights decay, 1 more under SGD, and 4 for `scale_invariant`.
    That is 35 for an MLP of three layers under SGD, 77 for a transformer of two blocks under AdamW, 147 for one of
    twelve, and 1 036 for any model; `per_parameter` adds up to 10 for each tensor, which makes 1 330 of the 147.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        per_parameter: Whether every tensor is a scope too, by its name, with its `scale_invariance` and, where that is
            certified, its `effective_learning_rate`.
        parameter_groups: Whether every parameter group of the optimizers is a scope too, `group:0`, ..., with its
            `learning_rate` and `weight_decay`.
        limit: Scopes by type at most, and scopes by depth at most.
        half_life: Measurements after which one counts half in `fluctuation_dissipation`.
        name: Name, if there are two probes of this class.

    References:
        Kosson et al. 2023, arXiv 2305.17212; scale invariance: van Laarhoven 2017, arXiv 1706.05350; fluctuation and
        dissipation: Yaida 2018, arXiv 1810.00004.
    """

    default_name: ClassVar[str] = "weight_dynamics"
    observables: ClassVar[tuple[str, ...]] = ("weight_norm", "weight_norm_sq", "update_norm", "relative_update")
    moment: ClassVar[Moment] = Moment.UPDATE

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        per_parameter: bool = False,
        parameter_groups: bool = False,
        limit: int = LIMIT,
        half_life: float = 50.0,
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, name=name)
        if limit < 1:
            raise ValueError(f"WeightDynamics(limit={limit!r}): expected how many scopes of a kind, from 1 on")
        if not 1.0 <= half_life < math.inf:
            raise ValueError(f"WeightDynamics(half_life={half_life!r}): expected measurements, from 1 on, such as 50")
        self.per_parameter = per_parameter
        self.parameter_groups = parameter_groups
        self.limit = limit
        self.half_life = half_life
        self.reset()

    def reset(self) -> None:
        """Forget the certificates and windows of an earlier run."""
        self._before: Mapping[str, Tensor] = {}
        self._at = -1
        self._seen: _Seen | None = None
        self._scopes: dict[str, list[str]] = {}
        self._divided: list[object] = []
        self._update_rules = UpdateRules()
        self._rules: Mapping[str, Rule] = {}
        self._certificates = Certificates()
        self._dissipation = Dissipation(self.half_life)
        self._changes = Changes()

    def __getstate__(self) -> dict[str, Any]:
        """Leave held weights and what points to the training out of copies and pickles."""
        left_out = {"_before": {}, "_at": -1, "_seen": None, "_divided": [], "_update_rules": UpdateRules()}
        return self.__dict__ | left_out

    def prepare(self, view: TrainingView) -> None:
        """Copy the weights before the update, and take the sums of its gradient while it is there.

        Raises:
            Refusal: Parameters are sharded.
        """
        if any(map(is_shard, view.parameters.values())):
            raise Refusal("Parameters are sharded over processes, and sharded norms are not measured yet.")
        if self._at != view.step or self._before.keys() != view.parameters.keys():  # else: the next micro-batch
            self._before, self._at = view.hold(), view.step
        self._divide(view)
        self._rules = self._update_rules.read(view.optimizers, view.parameters)
        self._seen = self._gradient(view)

    def _divide(self, view: TrainingView) -> None:
        """Find the scopes, if parameters have come, gone or moved to other groups since."""
        now: list[object] = [(name, id(p)) for name, p in view.parameters.items()]
        if self.parameter_groups:
            now += [len(group["params"]) for optimizer in view.optimizers for group in optimizer.param_groups]
        if now != self._divided:
            optimizers = view.optimizers if self.parameter_groups else ()
            self._scopes = scopes(
                view.model,
                view.parameters,
                per_parameter=self.per_parameter,
                optimizers=optimizers,
                limit=self.limit,
            )
            self._divided = now

    def _gradient(self, view: TrainingView) -> _Seen | None:
        gradients = view.gradients or {}
        names = [name for name, g in gradients.items() if _fits(g, self._before.get(name))]
        if not names:
            return None
        sums = gradient_sums([self._before[name] for name in names], [gradients[name] for name in names])
        return _Seen(names, sums, view.gradient_scale, view.gradient_method)

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Compare with the weights after the update; the numbers are handed over once they have been read."""
        seen = self._seen or self._gradient(view)
        before, self._before, self._seen, self._at = self._before, {}, None, -1
        names = [name for name, w in before.items() if _fits(view.parameters.get(name), w)]
        if not names:
            return []
        values = [update_sums([before[name] for name in names], [view.parameters[name] for name in names])]
        if seen is not None:
            values += [seen.sums] if isinstance(seen.scale, float | int) else [seen.sums, seen.scale]
        sizes = {name: real_numbers(before[name]) for name in names}
        matrices = [name for name in names if before[name].dim() >= 2]
        divided, rules, precise = self._scopes, self._rules, view.precise

        def build(numbers: list[float]) -> list[Measurement]:
            motions = _motions(numbers, names, sizes, seen)
            self._certificates.look({name: motions[name] for name in matrices})
            certified = self._certificates.certified(precise=precise)
            found: list[Measurement] = []
            for scope, members in divided.items():
                found += self._scope(scope, [name for name in members if name in motions], motions, rules, seen)
                if self.per_parameter and scope and len(members) == 1:
                    found += _single(scope, members[0], motions, rules, certified)
            return found + self._invariant({n: c for n, c in certified.items() if n in motions}, motions, rules)

        view.defer(values, build)
        return []

    def _scope(
        self,
        scope: str,
        members: Sequence[str],
        motions: Mapping[str, Motion],
        rules: Mapping[str, Rule],
        seen: _Seen | None,
    ) -> list[Measurement]:
        if not members:
            return []
        whole = total(motions[name] for name in members)
        parts = [(motions[name], rules.get(name)) for name in members]
        found = of_scope(scope, whole, "" if seen is None else seen.method, gradient_seen=seen is not None)
        found += decay_share(scope, whole, parts)
        relation = self._dissipation.measure(scope, parts)
        if isinstance(relation, str):
            if not scope:
                found += self._changes.note("fluctuation_dissipation", None, reason=relation)
        else:
            found += relation
        if scope.startswith("group:"):
            found += self._in_force(scope, members, rules)
        return found

    def _invariant(
        self, certified: Mapping[str, float], motions: Mapping[str, Motion], rules: Mapping[str, Rule]
    ) -> list[Measurement]:
        """Summarize the tensors that have been scale invariant at the last looks."""
        members = {name: cosine for name, cosine in certified.items() if math.isfinite(motions[name].angular_update)}
        if not members:
            return []
        angle = math.sqrt(math.fsum(motions[name].angular_update ** 2 for name in members) / len(members))
        found = [
            Measurement("angular_update", angle, scope=SCALE_INVARIANT, method=f"rms_of_{len(members)}"),
            Measurement("scale_invariance", max(members.values()), scope=SCALE_INVARIANT),
            Measurement("weight_rms", total(motions[name] for name in members).weight_rms, scope=SCALE_INVARIANT),
            *effective_rate(SCALE_INVARIANT, [(motions[name], rules.get(name)) for name in members]),
        ]
        return found + self._in_force(SCALE_INVARIANT, list(members), rules)

    def _in_force(self, scope: str, members: Sequence[str], rules: Mapping[str, Rule]) -> list[Measurement]:
        """Return learning rate and weight decay of a scope, if they have changed and all members have the same."""
        found: list[Measurement] = []
        for observable in ("learning_rate", "weight_decay"):
            values = {_setting(rules.get(name), observable) for name in members}
            common = values.pop() if len(values) == 1 else None
            found += self._changes.note(observable, common, scope, "" if common is not None else DIFFERS)
        return found


def _fits(tensor: "Tensor | None", weights: "Tensor | None") -> bool:
    """Tell whether two tensors can be compared: a parameter may have come, gone or been replaced."""
    return tensor is not None and weights is not None and tensor.shape == weights.shape


def _setting(rule: Rule | None, observable: str) -> float | None:
    if rule is None:
        return None
    return rule.rate if observable == "learning_rate" else rule.decay


def _motions(
    numbers: Sequence[float], names: Sequence[str], sizes: Mapping[str, int], seen: _Seen | None
) -> dict[str, Motion]:
    """Put together what was read back: the sums of updates, those of gradients, and the scale of these."""
    rows = [numbers[3 * i : 3 * i + 3] for i in range(len(names))]
    found = {name: Motion(sizes[name], w, s, along) for name, (w, s, along) in zip(names, rows, strict=True)}
    if seen is None:
        return found
    first, count = 3 * len(names), len(seen.names)
    scale = float(seen.scale) if isinstance(seen.scale, float | int) else numbers[first + 2 * count]
    for i, name in enumerate(seen.names):
        if name in found:
            square, along = numbers[first + 2 * i : first + 2 * i + 2]
            found[name] = replace(found[name], gradient_sq=square / scale**2, along_gradient=along / scale, gradients=1)
    return found


def _single(
    scope: str, name: str, motions: Mapping[str, Motion], rules: Mapping[str, Rule], certified: Mapping[str, float]
) -> list[Measurement]:
    """Return what is said of single tensors only."""
    if name not in motions or not math.isfinite(motions[name].scale_invariance):
        return []
    found = [Measurement("scale_invariance", motions[name].scale_invariance, scope=scope)]
    return found + (effective_rate(scope, [(motions[name], rules.get(name))]) if name in certified else [])
