"""What a run of the comparison found, before it becomes text or a picture."""

from dataclasses import dataclass, field

from benchmarks.side_by_side import Row
from benchmarks.tracking import Track


@dataclass
class Reading:
    """All tools on one problem.

    Attributes:
        step: Steps of training behind it.
        truth: The eigenvalue.
        agreement: Relative difference of two converged answers in float64, by code that is not shared.
        rows: One a tool.
    """

    step: int
    truth: float
    agreement: float
    rows: list[Row]


@dataclass
class Network:
    """Everything about one network.

    Attributes:
        name: Its name.
        parameters: How many it has.
        recipe: How it was trained.
        examples: Size of the batch.
        readings: At the start and in the middle.
        steps: Steps at which the run was measured.
        truths: The eigenvalue at each.
        tracks: One a tool.
    """

    name: str
    parameters: int
    recipe: str
    examples: int
    readings: list[Reading] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)


@dataclass
class Results:
    """A whole run.

    Attributes:
        where: Device and versions, in words.
        memory: How peak memory was measured, in words.
        every: Steps between two measurements of a run.
        networks: One a network.
        manners: A table of how tools behave.
    """

    where: str
    memory: str
    every: int
    networks: list[Network] = field(default_factory=list)
    manners: list[list[str]] = field(default_factory=list)
