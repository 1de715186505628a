"""Symmetries of the loss: found, certified, and what updates do to their charges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learnmech.probes.arguments import whole
from learnmech.probes.changes import Changes
from learnmech.probes.distributed.fsdp import is_shard
from learnmech.probes.groups import scopes
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.symmetry.account import Drift, Opened, close_account, open_account
from learnmech.probes.symmetry.candidates import candidates
from learnmech.probes.symmetry.certificates import LOOKS, REFUSALS, Certificates, publish
from learnmech.probes.symmetry.group import Group, Kind
from learnmech.probes.symmetry.optimizers import Updates, updates_of
from learnmech.probes.symmetry.report import count_measurements, drift_measurements, residual_measurements
from learnmech.probes.symmetry.rescaling import Rescaled, RescalingTests
from learnmech.probes.symmetry.residual import Precision, floor, precision_of, read_residual, residual_sums
from learnmech.probes.symmetry.sums import Reader
from learnmech.wire import Measurement

LATE = "the gradient was only seen after the update"


@dataclass(slots=True)
class _Look:
    """What was seen of the weights before an update and of their gradient."""

    groups: list[Group]
    residuals: list[Tensor]
    precisions: list[Precision]
    floors: list[float]
    accounts: list[Opened]
    updates: Updates
    gradients: dict[str, tuple[Tensor, int]]
    scale: Tensor | float


class Symmetries(BaseProbe):
    """Measures symmetries of the loss, and the charges that gradient flow would conserve because of them.

    Candidates come from the module tree and shapes (`learnmech.probes.symmetry.candidates`); what the symmetry forces
    on every gradient, for any optimizer, is measured; a group that obeys within rounding at five measurements in a row
    is certified, one that does not is refused and looked at no more.

    - Scope `''`: `symmetry_groups`, how many are certified, recorded when it changes.
    - Scopes `symmetry:scale`, `symmetry:rescale`, ..., one for each kind that was found: `symmetry_groups`,
      `symmetry_residual` (the largest; zero up to rounding: the instrument's self-test), `charge` and `charge_drift`
      (the change of the charge in one update), and for SGD, with momentum, dampening, Nesterov and weight decay,
      `charge_drift_predicted` and `charge_drift_error`: exact, from what is known before the update.

    Other probes ask `learnmech.probes.symmetry.certified(view)`. A measurement looks at one update; predictions over
    many are in `learnmech.probes.symmetry.conservation`. The device is not waited for, but with `rescale`.

    Points per measurement: for each kind found 5 with a prediction (SGD), 3 without; `symmetry_groups` when it changes.
    That is 20 for a transformer of two blocks with four kinds under SGD, 30 for one with six, 40 at most. `per_block`
    adds as many for each kind in each block: 55 and 75 in all, 225 for the second one with twelve blocks; blocks are
    merged where there are more than 64.

    Costs sums over weights and gradients, and none of either is copied; the first measurements, which refuse most
    candidates, cost more than later ones. Gradients are kept until the update is measured.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        per_block: Whether to add a scope for each kind in each block of the model, such as `symmetry:rescale/blocks.0`.
        looks: Measurements in a row that certify a group.
        rescale: Whether to test each certified group once, one at a measurement, by evaluating the loss at rescaled
            weights: five forward passes. A group that fails loses its certificate, and what it takes to get it again,
            and to be tested again, doubles each time.
        name: Name, if there are two probes of this class.

    References:
        Kunin et al. 2021, arXiv 2012.04728; Tanaka & Kunin 2021, arXiv 2105.02716; Du et al. 2018, arXiv 1806.00900.
    """

    default_name: ClassVar[str] = "symmetries"
    observables: ClassVar[tuple[str, ...]] = ("symmetry_groups",)
    moment: ClassVar[Moment] = Moment.UPDATE
    appetite: ClassVar[float] = 0.5
    """Share of the budget that it takes at most: half of one per cent of the time by default."""

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        per_block: bool = False,
        looks: int = LOOKS,
        rescale: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, name=name)
        self.looks = whole(self, "looks", looks, 1, LOOKS)
        self.per_block = per_block
        self.rescale = rescale
        self.reset()

    def reset(self) -> None:
        """Forget the certificates of an earlier run."""
        self._set_replays(self.rescale)
        self.certificates = Certificates(self.looks)
        self._known: tuple[object, ...] = ()
        self._left_out: dict[str, str] = {}
        self._untold = ""
        self._blocks: dict[str, str] = {}
        self._look: _Look | None = None
        self._held: Mapping[str, Tensor] | None = None
        self._changes = Changes()
        self._tests = RescalingTests()
        self._failed = 0

    def prepare(self, view: TrainingView) -> None:
        """Look at the gradient while it is there.

        Raises:
            Refusal: All parameters are sharded.
        """
        if view.parameters and all(map(is_shard, view.parameters.values())):
            raise Refusal(
                "Parameters are sharded over processes, and sharded symmetries are not measured yet.",
                "WeightDynamics finds the scale-invariant weights among them.",
            )
        self._find(view)
        self._look, self._held = None, None
        if view.gradients is None:
            self._held = view.hold()
            return
        names = {name for group in self.certificates.certified() for name in group.names}
        with torch.no_grad():
            self._look = self._looked(view, view.parameters, updates_of(view, names & set(view.parameters)))

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Compare with the weights after the update; the numbers are handed over once they have been read."""
        look, self._look = self._look, None
        held, self._held = self._held, None
        with torch.no_grad():
            if look is None and held is not None and view.gradients is not None:
                look = self._looked(view, held, Updates(reason=LATE))
            if look is not None:
                self._settle(view, look)
        if self.replays:
            self._rescale(view)
        return []

    def notice(self) -> str:
        """Say once which parameters are left out, and why."""
        said, self._untold = self._untold, ""
        return said

    @property
    def rescaled(self) -> Mapping[tuple[Kind, str], Rescaled]:
        """What rescaling did to the loss, by kind and label of the group."""
        return self._tests.found

    def _set_replays(self, replays: bool) -> None:
        self.replays = replays  # type: ignore[misc]  # of this probe alone: whether it does is a choice

    def _tell(self, message: str) -> None:
        self._untold = f"{self._untold}; {message}" if self._untold else message

    def _find(self, view: TrainingView) -> None:
        """Look for candidates where the model is not what it was."""
        now = tuple((name, p.shape) for name, p in view.parameters.items())
        if now == self._known:
            return
        self._known = now
        self.certificates.offer(candidates(view.model))
        publish(view.model, self.certificates)
        if self.per_block:
            found = scopes(view.model, view.parameters)
            self._blocks = {
                name: scope for scope, names in found.items() if scope and ":" not in scope for name in names
            }

    def _looked(self, view: TrainingView, weights: Mapping[str, Tensor], updates: Updates) -> _Look:
        gradients = self._usable(weights, view.gradients or {})
        reader = Reader(weights, gradients, updates.buffers)
        certified = set(self.certificates.certified())
        versions = {n: (g, g._version) for n, g in gradients.items()}
        look = _Look([], [], [], [], [], updates, versions, view.gradient_scale)
        for group in self.certificates.open():
            if not group.names <= gradients.keys():
                continue
            if group in certified:
                look.accounts.append(open_account(group, reader, updates))
            sums = [reader.sums(part, linear=group.linear, momentum=False) for part in group.parts]
            look.groups.append(group)
            look.residuals.append(residual_sums(group, reader, sums, whole=self.certificates.whole(group)))
            tensors = [tensor for name in group.names for tensor in (weights[name], gradients[name])]
            precision = precision_of(tensors, precise=view.precise)
            look.precisions.append(precision)
            look.floors.append(floor(group, precision, sum(s.elements for s in sums)))
        return look

    def _usable(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients that can be summed up; the others are left out with a reason."""
        usable: dict[str, Tensor] = {}
        out: dict[str, list[str]] = {}
        for name, w in weights.items():
            g = gradients.get(name)
            why = _why_not(w, g)
            if g is not None and not why:
                usable[name] = g
            elif self._left_out.get(name) != why:
                self._left_out[name] = why
                out.setdefault(why, []).append(name)
        for why, names in out.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._tell(f"left out: {names[0]}{others} ({why})")
        return usable

    def _settle(self, view: TrainingView, look: _Look) -> None:
        """Close the accounts, and hand the numbers over."""
        accounts = [a for a in look.accounts if a.group.names <= view.parameters.keys()]
        changed = None
        reason = look.updates.reason
        if any(g._version != version for g, version in look.gradients.values()):
            changed = {name: look.updates.received(name, g) for name, (g, _) in look.gradients.items()}
        closed = [close_account(a, view.parameters, look.scale, changed) for a in accounts]
        groups, precisions, floors = look.groups, look.precisions, look.floors
        blocks, changes, certificates = self._blocks, self._changes, self.certificates

        def build(numbers: list[float]) -> list[Measurement]:
            rows = [numbers[3 * i : 3 * i + 3] for i in range(len(groups))]
            residuals = {}
            for group, precision, largest, row in zip(groups, precisions, floors, rows, strict=True):
                residuals[group] = read_residual(row, precision)
                certificates.look(group, residuals[group], largest)
            rest = numbers[3 * len(groups) :]
            drifts = [(a.group, Drift(*rest[8 * i : 8 * i + 8])) for i, a in enumerate(accounts)]
            ever = [(group, residuals.get(group, math.nan)) for group in certificates.ever()]
            return [
                *count_measurements(certificates.certified(), certificates.ever(), changes, blocks),
                *residual_measurements(ever, blocks),
                *drift_measurements(drifts, look.updates.method, reason, changes, blocks),
            ]

        view.defer([*look.residuals, *closed], build)

    def _rescale(self, view: TrainingView) -> None:
        """Evaluate the loss at rescaled weights for one certified group that this was not done for."""
        try:
            self._tests.next(view, self.certificates.certified())
        except Refusal as refusal:  # the rest of the measurement does without
            self._set_replays(False)
            self._tell(f"no test by rescaling ({refusal})")
        except Exception as error:  # noqa: BLE001 (a loss may raise anything; what was measured does not need it)
            self._failed += 1
            if self._failed >= REFUSALS:
                self._set_replays(False)
            self._tell(f"no test by rescaling ({type(error).__name__}: {error})"[:300])


def _why_not(w: Tensor, g: Tensor | None) -> str:
    if is_shard(w) or (g is not None and is_shard(g)):
        return "sharded over processes"
    if g is None:
        return "no gradient"
    if g.layout != torch.strided:
        return "sparse gradient"
    if not w.is_floating_point():
        return f"its numbers are {str(w.dtype).removeprefix('torch.')}"
    if g.shape != w.shape or g.device != w.device:
        return "its gradient has another shape or is elsewhere"
    return ""
