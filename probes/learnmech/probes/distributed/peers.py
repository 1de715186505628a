"""The processes that measure together, and the messages in which they keep in step.

A collective that one process does not enter hangs the others until a timeout ends the training. Here every collective
is announced by a message of one size and type, whatever comes next: so a process that failed, wherever it was, meets
the others at their next message, and all of them raise the same error.
"""

import enum
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from learnmech.probes.distributed.failures import Kind, PeerFailed, error_of, kind_of

T = TypeVar("T")

CAPACITY = 16
"""Numbers in one message, beside one code for each process: a Lanczos step reads back about as many."""

TEXT = 480
"""Bytes of the message of an error that the other processes are told."""


class Step(enum.IntEnum):
    """What a process is about to do with the others."""

    READ = 1
    """Add up numbers that decisions depend on."""
    ADD = 2
    """Add up a vector of which it has its part."""
    DRAW = 3
    """Take the random vector of the first process."""
    PASS = 4
    """Pass through the model together: sharded parameters are gathered on the way."""
    END = 5
    """Leave."""


class Peers:
    """The processes of a group, seen from one of them. All must make the same calls in the same order.

    Whatever fails in one process before a message is told in that message; then every process raises an error of the
    same class with the same text, the failing one with its own error as the cause. A process that takes another path
    than the others is told from its announcement and counts as a failure as well, instead of hanging.

    What this cannot do: a process that dies, or that is interrupted (Ctrl-C), is missing from the next
    message as it would be from the next step of the training, and the backend reports it.

    Args:
        group: The process group; None for the default one.
        device: Where messages are: a device that the group's backend serves.

    Attributes:
        rank: Rank of this process in the group.
        size: Number of processes.
        messages: Messages exchanged so far.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu") -> None:
        self.group = group
        self.device = torch.device(device)
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.messages = 0
        self._together = False
        self._told: BaseException | None = None
        # kept: a process that has run out of memory must still be able to say so
        self._message = torch.zeros(self.size + CAPACITY, dtype=torch.float64, device=self.device)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make everything inside one measurement of all processes: it ends with a vote, also after a failure.

        Inside another one it does nothing.

        Raises:
            PeerFailed: Another process failed, or took another path. Errors that callers tell apart (out of memory,
                a refusal, a loss that is not finite, ...) keep their class, in every process.
        """  # noqa: DOC502 (raised by `say`)
        if self._together:
            yield
            return
        self._together = True
        try:
            yield
            self.say(Step.END)
        except Exception as error:
            if error is not self._told:
                self.say(Step.END, failure=error)
            raise
        finally:
            self._together, self._told = False, None

    def say(self, step: Step, values: Sequence[float] | Tensor = (), failure: Exception | None = None) -> Tensor:
        """Exchange one message: what this process is about to do, and up to `CAPACITY` numbers, which are added up.

        Args:
            step: What comes next.
            values: Numbers.
            failure: What went wrong in this process, if something did; it goes instead.

        Returns:
            The sums, in float64.

        Raises:
            PeerFailed: Some process failed, or they do different things.
        """  # noqa: DOC502 (raised by `_fail`)
        if failure is None and len(values) > CAPACITY:
            failure = PeerFailed(f"{len(values)} numbers do not fit into a message of {CAPACITY}")
        message = self._message.zero_()
        message[self.rank] = float(step) if failure is None else -float(kind_of(failure))
        if failure is None and len(values):
            own = torch.as_tensor(values, dtype=torch.float64)
            message[self.size : self.size + len(values)] = own.to(self.device)
        dist.all_reduce(message, group=self.group)
        self.messages += 1
        codes = [int(code) for code in message[: self.size].tolist()]
        if min(codes) < 0 or min(codes) != max(codes):
            self._fail(codes, failure)
        return message[self.size : self.size + len(values)].clone()

    def _fail(self, codes: Sequence[int], own: Exception | None) -> None:
        """Raise the same error in every process."""
        failed = [rank for rank, code in enumerate(codes) if code < 0]
        if failed:
            kind = Kind(min(-code for code in codes if code < 0))
            speaker = next(rank for rank in failed if codes[rank] == -kind)
            text = self._text(speaker, own)
            others = f" ({', '.join(map(str, failed))} failed)" if len(failed) > 1 else ""
            error = error_of(kind, f"process {speaker} of {self.size}{others}: {text}")
        else:
            ways = ", ".join(f"{rank}: {Step(code).name.lower()}" for rank, code in enumerate(codes))
            error = PeerFailed(f"the processes took different paths through one measurement ({ways})")
        self._told = error
        raise error from own

    def _text(self, speaker: int, own: Exception | None) -> str:
        """Return the message of the error of one process, told to all."""
        buffer = torch.zeros(TEXT, dtype=torch.int32, device=self.device)
        if self.rank == speaker and own is not None:
            said = str(own) if kind_of(own) is not Kind.OTHER else f"{type(own).__name__}: {own}"
            content = said.encode()[:TEXT]
            buffer[: len(content)] = torch.tensor(list(content), dtype=torch.int32, device=self.device)
        dist.all_reduce(buffer, group=self.group)
        return bytes(buffer.tolist()).rstrip(b"\0").decode(errors="ignore")

    def attempt(self, work: Callable[[], T], step: Step = Step.READ, values: Callable[[T], Any] = lambda _: ()) -> T:
        """Do something in this process alone that the others do too, and go on only if it went well everywhere.

        Args:
            work: What may fail; it enters no collective.
            step: What comes next.
            values: Makes numbers of the result that are added up; read the sums with `counted`.

        Raises:
            PeerFailed: It failed in some process; see `together`.
        """  # noqa: DOC502 (raised by `say`)
        return self.counted(work, step, values)[0]

    def counted(
        self, work: Callable[[], T], step: Step = Step.READ, values: Callable[[T], Any] = lambda _: ()
    ) -> tuple[T, Tensor]:
        """Do what `attempt` does; return the sums of the numbers beside the result."""
        try:
            result = work()
            numbers = values(result)
        except Exception as error:
            self.say(step, failure=error)  # raises, here and in every other process
            raise
        return result, self.say(step, numbers)

    def numbers(self, values: Tensor) -> Tensor:
        """Return numbers added up over processes, in float64, on their device: the same bits in every process."""
        flat = values.detach().double().reshape(-1)
        pieces = [self.say(Step.READ, piece) for piece in torch.split(flat, CAPACITY)]
        return torch.cat(pieces).reshape(values.shape).to(values.device)

    def first(self, values: Tensor) -> Tensor:
        """Return the numbers of the first process, in every process: where all hold the same up to rounding."""
        return self.numbers(values if self.rank == 0 else torch.zeros_like(values))

    def gathered(self, value: float) -> list[float]:
        """Return the number of each process, by rank."""
        own = torch.zeros(self.size, dtype=torch.float64)
        own[self.rank] = value
        found: list[float] = self.numbers(own).tolist()
        return found

    def agree(self, word: str) -> bool:
        """Tell whether all processes have the same word; one that has none, '', has nothing against it."""
        codes = self.gathered(float(zlib.crc32(word.encode()) + 1) if word else 0.0)
        return len({code for code in codes if code}) <= 1

    def added(self, vector: Tensor) -> Tensor:
        """Announce a vector of the same length everywhere, and add it up over processes, in place."""

        def length() -> list[float]:
            return [float(len(vector)), float(len(vector)) ** 2]

        _, (lengths, squares) = self.counted(length, Step.ADD, lambda numbers: numbers)
        if float(lengths) ** 2 != self.size * float(squares):
            self.say(Step.READ, failure=PeerFailed("the processes add up vectors of different lengths"))
        return self.total(vector)

    def total(self, vector: Tensor) -> Tensor:
        """Add up a vector over processes, in place. Announce it: `attempt(..., Step.ADD)`."""
        if vector.device == self.device:
            dist.all_reduce(vector, group=self.group)
            return vector
        carried = vector.to(self.device)
        dist.all_reduce(carried, group=self.group)
        return vector.copy_(carried)

    def shown(self, vector: Tensor) -> Tensor:
        """Fill a vector with that of the first process, in place. Announce it: `attempt(..., Step.DRAW)`."""
        source = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        carried = vector.to(self.device)
        dist.broadcast(carried, source, group=self.group)
        return vector if carried is vector else vector.copy_(carried)

    def same(self, value: float, what: str) -> None:
        """Make sure that all processes have the same number.

        Raises:
            PeerFailed: They do not.
        """  # noqa: DOC502 (raised by `attempt`)
        theirs = float(self.first(torch.tensor([value], dtype=torch.float64)))

        def compare() -> None:
            if theirs != value:
                raise PeerFailed(f"{what} is {value:g}, in process 0 it is {theirs:g}")

        self.attempt(compare)
