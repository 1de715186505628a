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
    """What one probe has cost.

    Attributes:
        first: Seconds of its first use: reported, but not charged, since it includes warm-up.
        spent: Seconds charged.
        last: Seconds of the latest use.
        uses: Number of uses.
    """

    first: float = 0.0
    spent: float = 0.0
    last: float = 0.0
    uses: int = 0

    @property
    def expected(self) -> float:
        """Seconds that the next use will probably cost."""
        return self.last if self.uses > 1 else WARM * self.first


@dataclass(slots=True)
class Governor:
    """Decides whether a governed probe may run.

    The rule: spent + expected <= share * (budget * elapsed - bookkeeping), where the governed probes share equally. A
    probe that has never run may run at once. Bookkeeping at every step takes half of the budget at most: where steps
    are so short that it takes more, the budget cannot be kept, and measuring nothing would not help.

    Attributes:
        budget: Share of the run's time that all governed probes together may take, such as 0.01.
    """

    budget: float
    bookkeeping: float = 0.0
    """Seconds that went into anything but probes."""
    accounts: dict[str, Account] = field(default_factory=dict)
    governed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        checked_budget(self.budget)

    def open(self, name: str, governed: bool) -> None:
        """Open the account of a probe."""
        self.accounts[name] = Account()
        if governed:
            self.governed.add(name)

    def close(self, name: str) -> None:
        """Give the share of a disabled probe to the others."""
        self.governed.discard(name)

    def may_run(self, name: str, elapsed: float) -> bool:
        """Tell whether a governed probe may run now, `elapsed` seconds into the run."""
        account = self.accounts[name]
        if self.budget == 0:
            return False
        if account.uses == 0:
            return True
        available = max(self.budget * elapsed - self.bookkeeping, self.budget * elapsed / 2)
        return account.spent + account.expected <= available / len(self.governed)

    def allowed_from(self, name: str) -> float:
        """Return the elapsed seconds from which `may_run` holds; infinite for a budget of zero."""
        account = self.accounts[name]
        if self.budget == 0:
            return math.inf
        needed = (account.spent + account.expected) * max(len(self.governed), 1)
        return min(needed + self.bookkeeping, 2 * needed) / self.budget

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
        account.last += seconds

    def correct(self, name: str, seconds: float) -> None:
        """Add seconds to the latest use that came to light later."""
        self.charge(name, seconds, new=False)

    @property
    def total(self) -> float:
        """Seconds of all uses of all probes, first uses included."""
        return sum(account.first + account.spent for account in self.accounts.values())
