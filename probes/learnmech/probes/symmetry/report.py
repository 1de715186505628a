"""From numbers read back to measurements: kinds of symmetries, and blocks of the model on request."""

import math
from collections.abc import Iterator, Mapping, Sequence

from learnmech.observables import Status
from learnmech.probes.changes import Changes
from learnmech.probes.estimators.weights import summed
from learnmech.probes.symmetry.account import SAME, Drift
from learnmech.probes.symmetry.group import Group
from learnmech.wire import Measurement

SCOPE = "symmetry:"
"""What scopes of kinds begin with, such as `symmetry:rescale`; those of a block go on with `/blocks.0`."""

CLEARED = "the gradient that the optimizer got is not known: it was cleared, or changed by more than one factor"
DROWNED = "the predicted change is no larger than what rounding the weights makes"


def scopes_of(group: Group, blocks: Mapping[str, str]) -> list[str]:
    """Return the scopes that a group counts for: its kind, and its kind in the block of its first parameter."""
    kind = f"{SCOPE}{group.kind}"
    block = blocks.get(group.parts[0].parameter)
    return [kind] if block is None else [kind, f"{kind}/{block}"]


def residual_measurements(residuals: Sequence[tuple[Group, float]], blocks: Mapping[str, str]) -> Iterator[Measurement]:
    """Yield the largest residual of each scope.

    Args:
        residuals: Groups that have or have had a certificate, each with its residual.
        blocks: The block of each parameter, empty if blocks are not asked for.
    """
    found: dict[str, list[float]] = {}
    for group, residual in residuals:
        for scope in scopes_of(group, blocks):
            found.setdefault(scope, []).append(residual)
    for scope, values in found.items():
        seen = [value for value in values if not math.isnan(value)]
        if seen:
            yield Measurement("symmetry_residual", max(seen), scope=scope)


def count_measurements(
    certified: Sequence[Group], ever: Sequence[Group], changes: Changes, blocks: Mapping[str, str]
) -> list[Measurement]:
    """Return the numbers of certified groups that changed: of all of them, and of each scope that ever had one."""
    counts = {"": len(certified)} | dict.fromkeys((scope for group in ever for scope in scopes_of(group, blocks)), 0)
    for group in certified:
        for scope in scopes_of(group, blocks):
            counts[scope] += 1
    return [m for scope, count in counts.items() for m in changes.note("symmetry_groups", float(count), scope)]


def drift_measurements(
    drifts: Sequence[tuple[Group, Drift]], method: str, reason: str, changes: Changes, blocks: Mapping[str, str]
) -> Iterator[Measurement]:
    """Yield charges and their drifts, summed over the groups of each scope.

    Args:
        drifts: What the update did to each group.
        method: What the prediction rests on.
        reason: Why there is none, '' if there is.
        changes: Says a reason once.
        blocks: The block of each parameter, empty if blocks are not asked for.
    """
    if drifts and not reason:
        factors = [drift.factor for _, drift in drifts]
        alike = all(f > 0.0 and math.isfinite(f) for f in factors) and max(factors) - min(factors) <= SAME * max(
            factors
        )
        reason = "" if alike else CLEARED
    found: dict[str, list[Drift]] = {}
    for group, drift in drifts:
        for scope in scopes_of(group, blocks):
            found.setdefault(scope, []).append(drift)
    for scope, own in found.items():
        many = f"sum_of_{len(own)}"
        rounding = summed(drift.rounding_sq for drift in own)
        yield Measurement("charge", summed(drift.charge for drift in own), scope=scope, method=many)
        change = summed(drift.change for drift in own)
        yield Measurement("charge_drift", change, scope=scope, stderr=math.sqrt(rounding), method=many)
        if reason:
            yield from changes.note("charge_drift_predicted", None, scope, reason)
            continue
        predicted, broken = summed(drift.predicted for drift in own), summed(drift.broken for drift in own)
        yield Measurement("charge_drift_predicted", predicted, scope=scope, stderr=abs(broken), method=method)
        size = summed(drift.predicted_sq for drift in own)
        difference = summed(drift.difference_sq for drift in own)
        if not math.isfinite(size + difference + rounding):
            error, status, why = None, Status.NON_FINITE, "weights or gradients are not finite"
        elif size <= rounding:
            error, status, why = (math.sqrt(difference / size) if size > 0.0 else None), Status.UNDETERMINED, DROWNED
        else:
            error, status, why = math.sqrt(difference / size), Status.OK, ""
        yield Measurement("charge_drift_error", error, scope=scope, method=method, status=status, reason=why)
