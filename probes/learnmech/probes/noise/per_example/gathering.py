"""What one measurement has gathered so far, and when it is not to gather."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from weakref import WeakSet

import torch
from torch import Tensor

from learnmech.probes.isolation.flag import is_probing
from learnmech.probes.noise.per_example.forms import Form, Unsupported
from learnmech.probes.noise.per_example.layers import batch_axis
from learnmech.probes.noise.per_example.watched import Call, Place, Use, Watched, place

CLOSED = -1


class Gathering:
    """Contributions by parameter, and what is known of how examples are counted.

    Args:
        watched: The modules.
        batch_size: Examples in the batch.

    Attributes:
        reason: Why nothing of the measurement can be used.
        uncovered: Parameters without a result, and why.
        half: Some gradient of a result came in 16 bits.
        forms: What each parameter got, until its gradient is complete.
        open: What hooks in graphs hold. It dies with its graph, if no backward pass comes.
        round: Counts beginnings, since hooks in graphs may outlive them; `CLOSED` after the end.
        square: A tensor came with as many positions as examples.
        strangers: Inputs [B, B, ...] that may be someone's transpose of the model's own.
        turned: Somewhere in the graph examples have changed places with another dimension.
        kept: Autograd keeps what it saves, as far as was seen.
    """

    def __init__(self, watched: Watched, batch_size: int) -> None:
        self._refused = watched.refused
        self._sequence_first = watched.sequence_first
        self.batch_size = batch_size
        self.reason = ""
        self.open: WeakSet[Call | Use] = WeakSet()
        self.round = 0
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self.round += 1
        self.uncovered: dict[str, str] = dict(self._refused)
        self.half = self.square = self.turned = False
        self.kept = True
        self.strangers: set[Place] = set()
        self.forms: dict[str, list[Form]] = {}
        self._drop()

    def close(self) -> None:
        """Gather no more, and let go of everything but the reasons."""
        self.round = CLOSED
        for name in self.forms:
            self.uncovered.setdefault(name, "its gradient did not come through autograd's ordinary way")
        self.forms.clear()
        self._drop()

    def add(self, name: str, form: Form) -> None:
        """Take what a parameter got."""
        self.forms.setdefault(name, []).append(form)

    def called(self, *inputs: Tensor) -> None:
        """Learn of the inputs of the whole model."""
        self.strangers -= {(place(x)[0], True) for x in inputs}  # views of them in the order of their memory

    @contextmanager
    def safely(self, names: Iterable[str], device: str = "cpu") -> Iterator[None]:
        """Let nothing out: what goes wrong is a reason for some parameters, or for the whole measurement."""
        try:
            autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
            with torch.no_grad(), torch.autocast(device, enabled=False) if autocast else nullcontext():
                yield
        except Unsupported as refusal:
            self.uncovered.update(dict.fromkeys(names, str(refusal)))
        except Exception as error:  # noqa: BLE001 (nothing may be raised into training)
            self.failed(error, next(iter(names), "the graph"))

    def failed(self, error: Exception, where: str = "a call of a module") -> None:
        """Give the measurement up."""
        self.reason = f"{type(error).__name__} at {where}: {error}"[:300]

    def ignored(self) -> bool:
        """Tell whether gradients are of no interest."""
        # measurements have forward and backward passes of their own
        return bool(self.reason) or self.round == CLOSED or is_probing()

    def idle(self) -> bool:
        """Tell whether forward passes are of no interest."""
        return self.ignored() or not torch.is_grad_enabled()

    def current(self, number: int) -> None:
        """Refuse a graph that goes on giving gradients after those of others have been thrown away."""
        if number != self.round:
            raise Unsupported("its gradient came through a graph from before gradients were cleared")

    def axis(self, shape: torch.Size) -> int:
        """Return which dimension counts examples."""
        self.square |= self.same_size(shape)
        return batch_axis(shape, self.batch_size, sequence_first=self._sequence_first)

    def same_size(self, shape: torch.Size) -> bool:
        """Tell whether the first two dimensions might both count examples."""
        return len(shape) > 1 and shape[0] == shape[1] == self.batch_size

    def told_apart(self, shape: torch.Size) -> None:
        """Refuse [B, B, ...] where one may be positions and the model does not keep examples first."""
        turned = self._sequence_first or self.turned or self.strangers
        if self.same_size(shape) and turned:
            raise Unsupported(
                f"a tensor of shape {tuple(shape)}: as many positions as examples, in a model that turns them"
            )

    def _drop(self) -> None:
        for one in list(self.open):
            one.drop()
