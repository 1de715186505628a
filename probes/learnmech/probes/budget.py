"""The budget: a probe without a schedule runs only while its cost stays within its share of the run's time."""

import math
from dataclasses import dataclass, field

WARM = 0.25
"""Cost of a warm measurement relative to the first one: 3 to 5 Hessian products instead of 20, where building the graph
costs two products more (measured on a small transformer). Used until a second measurement has shown the truth."""


def checked_budget(budget: float) -> float:
    """Return a budget that can be kept.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not a share from 0 to 1.
    """
    said = f"budget is {budget!r}: expected a share of the run's time from 0 to 1, such as 0.01 for 1 %"
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(said)
    if not 0 <= budget <= 1:
        raise ValueError(said)
    return budget


@dataclass(slots=True)
class Account:
    """What one probe has cost, and what it has saved up.

    Attributes:
        appetite: Largest share of the whole budget that it may take.
        share: Share of the whole budget that it has.
        first: Seconds of its first use: reported, but not charged, since it includes warm-up.
        spent: Seconds charged.
        last: Seconds of the latest use.
        uses: Number of uses.
        saved: Seconds that it may spend now; negative: a debt.
        seen: What all probes together had earned when that was brought up to date.
    """

    appetite: float = 1.0
    share: float = 0.0
    first: float = 0.0
    spent: float = 0.0
    last: float = 0.0
    uses: int = 0
    saved: float = 0.0
    seen: float = 0.0

    @property
    def expected(self) -> float:
        """Seconds that the next use will probably cost."""
        return self.last if self.uses > 1 else WARM * self.first


@dataclass(slots=True)
class Governor:
    """Decides whether a governed probe may run.

    All of them together earn budget * time - bookkeeping. Each saves its share of that, pays for its uses with it, and
    may run when it has saved what the next use will probably cost: never more than that, so that a pause of the
    training does not end in a burst. Hence in any stretch of time

        cost of a probe <= share * budget * time + one use

    which holds from its second use on: the first, with its warm-up, is reported and not charged, and may come at once.
    Shares are equal, except that no probe gets more than its appetite; what it leaves goes to the others.

    Bookkeeping at every step takes half of the budget at most: where steps are so short that it takes more, the budget
    cannot be kept, and measuring nothing would not help.

    Attributes:
        budget: Share of the run's time that all governed probes together may take, such as 0.01.
    """

    budget: float
    bookkeeping: float = 0.0
    """Seconds that went into anything but probes."""
    total: float = 0.0
    """Seconds of all uses of all probes, first uses included."""
    accounts: dict[str, Account] = field(default_factory=dict)
    governed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        checked_budget(self.budget)

    def open(self, name: str, governed: bool, appetite: float = 1.0) -> None:
        """Open the account of a probe.

        Args:
            name: Its name.
            governed: True if the budget decides when it runs.
            appetite: Largest share of the whole budget that it may take.
        """
        self.accounts[name] = Account(appetite)
        if governed:
            self.governed.add(name)
            self._divide()

    def close(self, name: str) -> None:
        """Give the share of a disabled probe to the others."""
        self.governed.discard(name)
        self._divide()

    def _divide(self) -> None:
        """Share the budget out: equally, up to each probe's appetite, the most modest first."""
        left = 1.0
        modest = sorted((self.accounts[name] for name in self.governed), key=lambda account: account.appetite)
        for index, account in enumerate(modest):
            account.share = min(account.appetite, left / (len(modest) - index))
            left -= account.share

    def hungry(self, name: str, appetite: float) -> None:
        """Learn that the appetite of a probe is another one now."""
        account = self.accounts[name]
        if account.appetite != appetite:
            account.appetite = appetite
            self._divide()

    def change(self, budget: float, elapsed: float) -> None:
        """Go on with another budget from now on, with nothing saved."""
        self.budget = checked_budget(budget)
        for account in self.accounts.values():
            account.saved, account.seen = 0.0, self._earned(elapsed)

    def _earned(self, elapsed: float) -> float:
        """Return the seconds that all governed probes together have earned since the start."""
        whole = self.budget * elapsed
        return max(whole - self.bookkeeping, whole / 2)

    def settle(self, name: str, elapsed: float) -> Account:
        """Bring what a probe has saved up to date."""
        account, earned = self.accounts[name], self._earned(elapsed)
        if earned > account.seen:
            account.saved = min(account.saved + account.share * (earned - account.seen), account.expected)
            account.seen = earned
        return account

    def may_run(self, name: str, elapsed: float) -> bool:
        """Tell whether a governed probe may run now, `elapsed` seconds into the run."""
        if self.budget == 0:
            return False
        account = self.settle(name, elapsed)
        return account.uses == 0 or account.saved >= account.expected

    def wait(self, name: str, elapsed: float) -> float:
        """Return the seconds until a probe may run again; infinite for a budget of zero."""
        if self.budget == 0:
            return math.inf
        account = self.settle(name, elapsed)
        pace = account.share * self._earned(elapsed) / elapsed if elapsed > 0 else 0.0
        missing = max(account.expected - account.saved, 0.0)
        if account.uses == 0 or missing == 0:
            return 0.0
        return missing / pace if pace > 0 else math.inf

    def charge(self, name: str, seconds: float, *, new: bool = True) -> None:
        """Enter the cost of a use of a probe; of a use entered before, a further part of it if not `new`."""
        account = self.accounts[name]
        if new:
            account.uses += 1
            account.last = 0.0
        if account.uses <= 1:
            account.first += seconds
        else:
            account.spent += seconds
            account.saved -= seconds
        account.last += seconds
        self.total += seconds

    def correct(self, name: str, seconds: float) -> None:
        """Add seconds to the latest use that came to light later."""
        self.charge(name, seconds, new=False)
