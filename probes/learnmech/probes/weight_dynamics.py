"""Weight dynamics: what updates do to weights, for the whole model, by module type, by depth, and by tensor."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from learnmech.probes.changes import Changes
from learnmech.probes.estimators import Motion, total
from learnmech.probes.groups import LIMIT, scopes
from learnmech.probes.hyperparameters import DIFFERS
from learnmech.probes.isolation import Refusal
from learnmech.probes.motions import GradientSums, compared, seen
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.scope_numbers import Dissipation, decay_share, effective_rate, of_scope
from learnmech.probes.symmetry.certificates import REFUSALS
from learnmech.probes.symmetry.invariance import Invariant, ScaleInvariance
from learnmech.probes.update_rules import Rule, UpdateRules, rules_of
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from torch import Tensor

SCALE_INVARIANT = "scale_invariant"
"""Scope of the tensors that are certified scale invariant, taken together."""


class WeightDynamics(BaseProbe):
    """Measures what updates do to weights.

    - Scopes: `''`, all trainable weights as one vector; `type:Linear`, ..., by the type of the module; `blocks.0`, ...,
      by depth; see `learnmech.probes.groups.scopes`. Each has `weight_norm`, `weight_rms`, `grad_norm` (that of `''` is
      recorded with the loss), `update_norm`, `relative_update`, `angular_update`; `weight_decay_share` where weights
      decay; `fluctuation_dissipation` under SGD. `weight_norm_sq` of `''` alone.
    - Scope `scale_invariant`, the weights whose scale the loss does not depend on, alone or together with their bias:
      the rms of `angular_update`, the largest `scale_invariance` (its method: how many of them the loss has confirmed
      at rescaled weights; in half precision it often cannot tell), `weight_rms`, `effective_learning_rate`, and
      `learning_rate` and `weight_decay` if they have one value. Found by <w, g> = 0 at five measurements in a row and,
      where another probe has shown that the loss may be evaluated, and in one process, by five evaluations at rescaled
      weights, once for all of them, or once for each if that fails; what fails is tested again after 10, 20, 40, ...
      such measurements in a row; see `learnmech.probes.symmetry.ScaleInvariance`. Certificates of `Symmetries` count as
      well.

    Norms are those of w_t, updates and angles those of w_t -> w_(t+1); gradients are those of the update, unscaled and
    before clipping, but in `weight_decay_share` and `fluctuation_dissipation` after it. Keeps one copy of the weights
    from before the update to after it, on the steps it measures; the device is not waited for, but where the loss is
    evaluated at rescaled weights. Under `DistributedDataParallel` the first process measures alone; where parameters
    are sharded (`fully_shard`, over replicas too, tensor parallelism) all processes add up the sums of their parts, in
    one collective of seven numbers for each tensor.

    Points per measurement: 6 for each scope, 1 more where weights decay, 1 more under SGD, and 4 for `scale_invariant`.
    That is 35 for an MLP of three layers under SGD, 77 for a transformer of two blocks under AdamW, 147 for one of
    twelve, and 1 036 for any model; `parameter_groups` adds as many for each of `limit` groups at most; `per_parameter`
    adds up to 10 for each tensor, which makes 1 327 of the 147. Where parameter groups differ, each scope adds
    `learning_rate` and `weight_decay` when they change in it.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        per_parameter: Whether every tensor is a scope too, by its name, with its `scale_invariance` and, where that is
            certified, its `effective_learning_rate`.
        parameter_groups: Whether the first `limit` parameter groups of the optimizers are scopes too, `group:0`, ...
        limit: Scopes by type at most, scopes by depth at most, and parameter groups at most.
        half_life: Measurements after which one counts half in `fluctuation_dissipation`.
        name: Name, if there are two probes of this class.

    References:
        Kosson et al. 2023, arXiv 2305.17212; scale invariance: van Laarhoven 2017, arXiv 1706.05350; fluctuation and
        dissipation: Yaida 2018, arXiv 1810.00004.
    """

    default_name: ClassVar[str] = "weight_dynamics"
    observables: ClassVar[tuple[str, ...]] = ("weight_norm", "weight_norm_sq", "update_norm", "relative_update")
    moment: ClassVar[Moment] = Moment.UPDATE
    sums_shards: ClassVar[bool] = True
    appetite: ClassVar[float] = 0.5
    """Share of the budget that it takes at most: half of one per cent of the time by default."""

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
        self._seen: GradientSums | None = None
        self._scopes: dict[str, list[str]] = {}
        self._divided: list[object] = []
        self._rules = UpdateRules()
        self._apart = False
        self._invariance = ScaleInvariance()
        self._no_tests = self._told = ""
        self._failed = 0
        self._dissipation = Dissipation(self.half_life)
        self._changes = Changes()

    def __getstate__(self) -> dict[str, Any]:
        """Leave held weights and what points to the training out of copies and pickles."""
        left_out = {"_before": {}, "_at": -1, "_seen": None, "_divided": [], "_rules": UpdateRules()}
        return self.__dict__ | left_out

    def prepare(self, view: TrainingView) -> None:
        """Copy the weights before the update, and take the sums of its gradient while it is there."""
        if self._at != view.step or self._before.keys() != view.parameters.keys():  # else: the next micro-batch
            self._before, self._at = view.hold(), view.step
        self._divide(view)
        self._rules = rules_of(view.optimizers, view.parameters)
        self._seen = seen(view, self._before)

    def _divide(self, view: TrainingView) -> None:
        """Find the scopes, if parameters came, went or moved to other groups since, or half precision was found."""
        now: list[object] = [view.precise, *((name, id(p), p.dtype) for name, p in view.parameters.items())]
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
            for scope in [scope for scope in self._scopes if scope.startswith("group:")][self.limit :]:
                del self._scopes[scope]
            self._invariance.find(view)
            self._divided = now

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Compare with the weights after the update; the numbers are handed over once they have been read.

        Raises:
            Refusal: Parameters are sharded, and the other processes do not measure.
            Skip: Parameters are sharded, and came or went during the update.
        """  # noqa: DOC502 (raised by `compared`)
        before, self._before, self._at = self._before, {}, -1
        gradient, self._seen = self._seen or seen(view, before), None
        update = compared(view, before, gradient)
        if update is None:
            return []
        divided, settings, model = self._scopes, self._rules, view.model
        tests = view.may_replay and not self._no_tests

        def build(numbers: list[float]) -> list[Measurement]:
            motions = update.read(numbers)
            applied = update.applied(motions, numbers)
            rules = settings.read(numbers[len(numbers) - len(settings.values) :])
            self._invariance.look(motions)
            invariant = self._invariance.members(model, motions, tested=tests)
            alone = {member.names[0] for member in invariant if len(member.names) == 1}
            self._apart = self._apart or len({(rule.rate, rule.decay) for rule in rules.values()}) > 1
            found: list[Measurement] = []
            for scope, members in divided.items():
                own = [name for name in members if name in motions]
                found += self._scope(scope, own, motions, applied, rules, update.gradient)
                if self.per_parameter and scope and len(members) == 1:
                    found += _single(scope, members[0], motions, rules, alone)
            return found + self._invariant(invariant, rules)

        view.defer([*update.values, *settings.values], build)
        if tests:
            self._test(view)
        return []

    def notice(self) -> str:
        """Say once why the loss was not evaluated at rescaled weights."""
        said, self._told = self._told, ""
        return said

    def _test(self, view: TrainingView) -> None:
        try:
            self._invariance.test(view)
        except Exception as error:  # noqa: BLE001 (a loss may raise anything; what was measured does not need it)
            self._failed += 1
            self._told = f"no test by rescaling ({type(error).__name__}: {error})"[:300]
            if isinstance(error, Refusal) or self._failed >= REFUSALS:  # one alone may be a lack of memory
                self._no_tests = self._told

    def _scope(
        self,
        scope: str,
        members: Sequence[str],
        motions: Mapping[str, Motion],
        applied: Mapping[str, Motion],
        rules: Mapping[str, Rule],
        gradient: GradientSums | None,
    ) -> list[Measurement]:
        if not members:
            return []
        whole = total([motions[name] for name in members])
        parts = [(applied[name], rules.get(name)) for name in members]
        found = of_scope(scope, whole, "" if gradient is None else gradient.method, gradient_seen=gradient is not None)
        found += decay_share(scope, total([motion for motion, _ in parts]), parts)
        relation = self._dissipation.measure(scope, parts)
        if isinstance(relation, str):
            if not scope:
                found += self._changes.note("fluctuation_dissipation", None, reason=relation)
        else:
            found += relation
        if self._apart and scope and not scope.startswith("group:"):  # these, and the whole, are recorded at the update
            found += self._in_force(scope, members, rules)
        return found

    def _invariant(self, invariant: Sequence[Invariant], rules: Mapping[str, Rule]) -> list[Measurement]:
        """Summarize what is certified scale invariant and moves by one rule (a bias may not decay with its weight)."""
        members = [
            member
            for member in invariant
            if math.isfinite(member.motion.angular_update)
            and math.isfinite(member.residual)
            and len({rules.get(name) for name in member.names}) == 1
        ]
        if not members:
            return []
        angle = math.sqrt(math.fsum(member.motion.angular_update**2 for member in members) / len(members))
        parts = [(member.motion, rules.get(member.names[0])) for member in members]
        residual = max(member.residual for member in members)
        confirmed = f"loss_confirms_{sum(member.confirmed for member in members)}_of_{len(members)}"
        found = [
            Measurement("angular_update", angle, scope=SCALE_INVARIANT, method=f"rms_of_{len(members)}"),
            Measurement("scale_invariance", residual, scope=SCALE_INVARIANT, method=confirmed),
            Measurement("weight_rms", total([motion for motion, _ in parts]).weight_rms, scope=SCALE_INVARIANT),
            *effective_rate(SCALE_INVARIANT, parts),
        ]
        return found + self._in_force(SCALE_INVARIANT, [name for member in members for name in member.names], rules)

    def _in_force(self, scope: str, members: Sequence[str], rules: Mapping[str, Rule]) -> list[Measurement]:
        """Return learning rate and weight decay of a scope, if they have changed and all members have the same."""
        found: list[Measurement] = []
        for observable in ("learning_rate", "weight_decay"):
            values = {_setting(rules.get(name), observable) for name in members}
            common = values.pop() if len(values) == 1 else None
            found += self._changes.note(observable, common, scope, "" if common is not None else DIFFERS)
        return found


def _setting(rule: Rule | None, observable: str) -> float | None:
    if rule is None:
        return None
    return rule.rate if observable == "learning_rate" else rule.decay


def _single(
    scope: str, name: str, motions: Mapping[str, Motion], rules: Mapping[str, Rule], invariant: Collection[str]
) -> list[Measurement]:
    """Return what is said of single tensors only."""
    if name not in motions or not math.isfinite(motions[name].scale_invariance):
        return []
    found = [Measurement("scale_invariance", motions[name].scale_invariance, scope=scope)]
    return found + (effective_rate(scope, [(motions[name], rules.get(name))]) if name in invariant else [])
