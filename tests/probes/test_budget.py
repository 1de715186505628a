"""The promise of the budget, on a simulated clock: nothing here depends on how fast this machine is."""

import itertools
import random

import pytest

from learnmech.probes.budget import WARM, Governor

BUDGET = 0.01


def governor_of(**appetites):
    governor = Governor(BUDGET)
    for name, appetite in appetites.items():
        governor.open(name, governed=True, appetite=appetite)
    return governor


def simulated(governor, cost, step, steps=20_000):
    """Train: `cost(name)` and `step(index)` tell how long things take. Return the uses as (begin, end, name)."""
    elapsed, uses = 0.0, []
    for index in range(steps):
        elapsed += step(index)
        for name in governor.governed:
            if governor.may_run(name, elapsed):
                seconds = cost(name)
                governor.charge(name, seconds)
                uses.append((elapsed, elapsed + seconds, name))
                elapsed += seconds
    return elapsed, uses


def test_the_budget_is_kept_and_used_whatever_a_probe_costs():
    """One probe costs a hundred times the other, and as much as twenty steps."""
    governor = governor_of(cheap=1.0, dear=1.0)
    governor.open("scheduled", governed=False)
    costs = {"cheap": 0.002, "dear": 0.2}
    elapsed, uses = simulated(governor, costs.__getitem__, lambda _: 0.01, steps=100_000)
    for name, cost in costs.items():
        count = sum(used == name for _, _, used in uses) - 1  # the first is not charged
        assert count * cost == pytest.approx(0.5 * BUDGET * elapsed, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_in_any_stretch_of_time_a_probe_costs_its_share_and_one_use_more_at_most(seed):
    """Costs and steps that vary by a factor of ten, and pauses (validation) of a thousand steps."""
    rng = random.Random(seed)
    governor = governor_of(a=1.0, b=0.2)
    known = {"a": 0.05, "b": 0.003}

    def step(index):
        return 10.0 if index % 3000 == 2999 else 0.01 * rng.uniform(0.3, 3.0)

    elapsed, uses = simulated(governor, lambda name: known[name] * rng.uniform(0.3, 3.0), step)
    for name, usual in known.items():
        own = [(begin, end) for begin, end, used in uses if used == name][1:]
        assert len(own) > 20
        share = governor.accounts[name].share * BUDGET
        # a stretch from the begin of one use to the end of another; a use may cost more than was expected of it
        for (i, (begin, _)), (j, (_, end)) in itertools.combinations(enumerate(own), 2):
            spent = sum(e - b for b, e in own[i : j + 1])
            assert spent <= share * (end - begin) + 2 * 3.0 * usual
    assert elapsed > 0


def test_a_pause_of_the_training_does_not_end_in_a_burst():
    governor = governor_of(p=1.0)
    _, uses = simulated(governor, lambda _: 0.01, lambda index: 1e6 if index == 5000 else 0.01, steps=6000)
    after = [begin for begin, _, _ in uses if begin > 1e6]
    assert len(after) > 5
    assert all(later - earlier >= 0.9 for earlier, later in itertools.pairwise(after)), "1 s at 1 % pays for 10 ms"


def test_no_probe_gets_more_than_its_appetite_and_the_others_get_what_it_leaves():
    governor = governor_of(noise=0.2, weights=0.5, sharpness=1.0)
    shares = {name: account.share for name, account in governor.accounts.items()}
    assert shares == pytest.approx({"noise": 0.2, "weights": 0.4, "sharpness": 0.4})
    governor.close("sharpness")
    assert governor.accounts["weights"].share == pytest.approx(0.5), "and the rest of the budget is not used"
    governor.hungry("noise", 1.0)
    assert governor.accounts["noise"].share == pytest.approx(0.5)


def test_the_first_use_is_reported_but_not_charged():
    governor = governor_of(p=1.0)
    assert governor.may_run("p", 0.0)
    governor.charge("p", 8.0)
    assert governor.accounts["p"].spent == 0
    assert governor.total == 8.0
    needed = 8.0 * WARM / BUDGET
    assert not governor.may_run("p", 0.99 * needed)
    assert governor.wait("p", 0.99 * needed) == pytest.approx(0.01 * needed, rel=0.1)
    assert governor.may_run("p", 1.01 * needed)
    assert governor.wait("p", 1.01 * needed) == 0.0


def test_a_use_that_cost_more_than_expected_is_paid_back_first():
    governor = governor_of(p=1.0)
    for elapsed, cost in ((0.0, 1.0), (1000.0, 1.0), (2000.0, 5.0)):
        assert governor.may_run("p", elapsed)
        governor.charge("p", cost)
    assert not governor.may_run("p", 2000.0 + 890.0), "4 of debt and 5 for the next one make 900 s at 1 %"
    assert governor.may_run("p", 2000.0 + 910.0)


def test_a_probe_that_is_disabled_leaves_its_share_to_the_others():
    governor = governor_of(a=1.0, b=1.0)
    for name in ("a", "b"):
        governor.charge(name, 1.0)
        governor.charge(name, 1.0)
    assert not governor.may_run("a", 300.0)
    governor.close("b")
    assert not governor.may_run("a", 300.0), "what has passed was shared"
    assert governor.may_run("a", 460.0)


def test_a_use_is_charged_in_parts():
    governor = governor_of(p=1.0)
    for _ in range(2):
        governor.charge("p", 1.0)
        governor.charge("p", 2.0, new=False)
    account = governor.accounts["p"]
    assert (account.first, account.spent, account.last, account.uses) == (3.0, 3.0, 3.0, 2)


def test_no_budget_means_no_governed_probe():
    governor = Governor(0.0)
    governor.open("p", governed=True)
    assert not governor.may_run("p", 1e9)
    assert governor.wait("p", 1e9) == float("inf")
