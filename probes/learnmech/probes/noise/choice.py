"""Which source the next measurement is made from: the cheapest that the run has, and why not a cheaper one."""

from typing import NoReturn

from torch import nn

from learnmech.probes.arguments import function
from learnmech.probes.context import distributed
from learnmech.probes.isolation import Refusal, Skip
from learnmech.probes.noise.additive import Additive
from learnmech.probes.noise.per_example.norms import FITTED
from learnmech.probes.noise.per_example.safety import refusal, unasked

SOURCES = ("auto", "pieces", "examples", "norm_layers", "split")

CUT_EVERY = 8
"""Of so many measurements under `auto` one is made by cutting the batch, since the law of gradient noise is judged by
two batches at the same weights. Measured on a transformer of two blocks and on an MLP: 0.65 and 1.9 steps from
examples, 1.36 and 3.4 cut up, so that this adds a seventh."""

FIT_EVERY = 4
"""Of so many measurements with `norm_layers` one is exact, after the first ones, which all are."""

PATIENCE = 3
"""Updates in a row from which nothing could be made, after which their source is given up."""

LONG_PATIENCE = 30
"""The same for updates of other sizes than expected, where examples were asked for and nothing else is tried: where one
batch in ten is as large as the one before, 30 others come in a row with a probability of 4 %."""

COUPLED = (
    "the gradient of a batch is not the mean of the gradients of its examples. If the loss is a mean over tokens, pass "
    "units= (GradientNoiseScale(units=lambda batch: (batch[1] != -100).sum()), say), else noise is told of examples "
    "that do not weigh alike; if it compares examples, the noise is that of pieces of a batch"
)

UNTOLD = "no update so far tells how many examples it has: no tensor of its batches has a first dimension"

DRAWN = (
    "the loss draws random numbers of its own, which are others for a batch and for its pieces: whether its "
    'examples have gradients of their own cannot be tested (if they have, pass source="examples")'
)


def check_arguments(source: str, *, units: object, split: object) -> None:
    """Check the arguments of `GradientNoiseScale`.

    Raises:
        ValueError: There is no such source, or it takes no units.
        TypeError: `units` or `split` cannot be called.
    """  # noqa: DOC502 (raised by function)
    if source not in SOURCES:
        raise ValueError(f"GradientNoiseScale(source={source!r}): expected one of {', '.join(map(repr, SOURCES))}")
    if source in ("examples", "norm_layers") and units is not None:
        raise ValueError(
            f'GradientNoiseScale(source="{source}") takes losses that are means over examples; units= goes with '
            'source="pieces" and source="split"'
        )
    for argument, value in (("units", units), ("split", split)):
        function("GradientNoiseScale", argument, value, "a function of a batch")


class Choice:
    """Decides between sources, and remembers which of them this run does not have.

    Args:
        source: One of `SOURCES`.
        only_cut: Why single examples are not to be taken unasked, '' if they may.

    Attributes:
        turn: Measurements made.
        processes: Processes that measure together.
        confirmed: Measurements from examples since the last one in which something was wrong.
        no_examples: Why single examples do not tell, '' if they may.
        no_cutting: Why batches cannot be cut, '' if they can.
    """

    def __init__(self, source: str, only_cut: str = "") -> None:
        self.source = source
        self._only_cut = only_cut
        self._pieces, self.processes = 1, 1
        self.reset()

    def reset(self) -> None:
        """Forget what an earlier run did not have."""
        self.turn = 0
        self.no_examples, self.no_cutting = self._only_cut, ""
        self._no_pieces = ""
        self._tested = False
        self._failures = self._untold = self._voids = self.confirmed = 0
        self._void = ""
        self._unsaid: list[str] = []

    def expect(self, pieces: int, processes: int) -> None:
        """Learn of how many pieces updates consist, and how many processes they are from."""
        self._pieces, self.processes = pieces, processes

    @property
    def now(self) -> str:
        """The source of the next measurement: `pieces`, `examples`, `norm_layers` or `split`."""
        if self.source not in ("auto", "norm_layers"):
            return self.source
        if self.source == "auto" and self._pieces > 1:
            return "split" if self._no_pieces else "pieces"
        if self.source == "norm_layers" and self.turn >= FITTED and self.turn % FIT_EVERY:
            return "norm_layers"
        cut = self.turn % CUT_EVERY == 0 if self.source == "auto" else self.turn == 0
        return "split" if (cut or self.no_examples) and not self.no_cutting else "examples"

    @property
    def undecided(self) -> bool:
        """Whether it has to be found out if single examples may be taken: they are the next best, and unasked for."""
        wanted = self.source == "norm_layers" or (self.source == "auto" and not self.no_examples)
        return wanted and self._pieces == 1 and not self._tested

    @property
    def doubtful(self) -> bool:
        """Whether a batch that is cut has to show if examples have gradients of their own."""
        return self._pieces == 1 and (self.source == "norm_layers" or (self.source == "auto" and not self.no_examples))

    def inspect(self, model: nn.Module) -> bool:
        """Look whether hooks on a model are safe, and tell its examples apart; tell whether they may."""
        others = "the gradient is a mean over processes" if distributed()[1] > 1 else ""
        why = others or unasked(model) or refusal(model)
        if why:
            self.tested(why)
        return not why

    def tested(self, why: str) -> None:
        """Learn why examples cannot have gradients of their own, such as a loss that compares them; '' if they can.

        Raises:
            Refusal: There is nothing else to measure from.
        """
        self._tested = True
        if why and self.source == "norm_layers":
            raise Refusal(f"Norm layers do not tell the noise: {why}.", 'Use source="auto".')
        if why:
            self.refuse_examples(why)

    def compared(self, found: Additive | None) -> None:
        """Take note of a batch that was cut, and of what it shows of examples; None: that was not asked.

        Raises:
            Refusal: There is nothing else to measure from.
        """  # noqa: DOC502 (raised by `tested`)
        if found is Additive.UNKNOWN:
            return  # the next batch is cut as well, to find out
        if found is not None:
            self.tested({Additive.NO: COUPLED, Additive.DRAWN: DRAWN}.get(found, ""))
        self.made()

    def refuse_examples(self, why: str) -> None:
        """Take batches that are cut instead of single examples from now on."""
        if self.no_examples:
            return
        self.no_examples = why
        self._unsaid.append(f"single examples do not tell: {why}; batches are cut instead")
        self.check()

    def check(self) -> None:
        """Check that some source is left.

        Raises:
            Refusal: None is.
        """
        if self.source == "norm_layers" and self._pieces > 1:
            raise Refusal("Updates of several pieces tell their noise for nothing.", 'Use source="pieces".')
        if self.no_examples and self.no_cutting:
            raise Refusal(f"Single examples do not tell the noise ({self.no_examples}), and {self.no_cutting}")

    def refuse_replays(self, why: str) -> None:
        """Learn that the loss cannot be evaluated: go on with what is left, if that may be enough."""
        if self.source not in ("auto", "norm_layers") or self.no_cutting:
            return
        alone = self._pieces == 1
        if not alone or not (self.no_examples or distributed()[1] > 1):
            self.no_cutting = f"batches cannot be cut: {why}"
        if self.no_cutting and alone:
            untested = "" if self._tested else " Whether the loss is a mean over examples was not tested."
            self._unsaid.append(f"noise is measured from single examples alone, since {self.no_cutting}{untested}")

    def made(self) -> None:
        """Take note of a measurement."""
        self.turn += 1
        self._failures = self._untold = 0

    def failed(self, why: str, *, passing: bool) -> None:
        """Take note of an update from which nothing could be made.

        Args:
            why: The reason.
            passing: The update was of other sizes than expected; the next one may not be.

        Raises:
            Refusal: There is nothing else to measure from.
        """  # noqa: DOC502 (raised by `_give_up`)
        self._failures += 1
        patience = PATIENCE
        if self.source == "examples" and passing:
            patience = LONG_PATIENCE
        elif self.source != "examples" and self.now == "examples" and not passing and not self.confirmed:
            patience = 1  # layers that hide their examples at first will hide them the next time
        if self._failures >= patience:
            self._give_up(why)

    def untold(self) -> NoReturn:
        """Take note that nothing tells how many examples the next update has.

        Raises:
            Skip: This time.
            Refusal: There is nothing else to measure from.
        """  # noqa: DOC502 (Refusal is raised by `_give_up`)
        self._untold += 1
        if self._untold >= PATIENCE:
            self._give_up(UNTOLD, "Put a tensor with one row for each example into batches.")
        raise Skip(UNTOLD)

    def _give_up(self, why: str, remedy: str = "") -> None:
        """Give up the source of the next measurement.

        Raises:
            Refusal: There is nothing else to measure from.
        """
        unasked_for = self.source in ("auto", "norm_layers")
        if not unasked_for or self.processes > 1 or (self.now == "pieces" and self.no_cutting):
            pieces = "single examples" if self.now == "examples" else "the pieces of updates"
            raise Refusal(f"The noise cannot be told from {pieces}: {why}.", remedy)
        if self.now == "norm_layers":
            raise Refusal(f"Norm layers do not tell the noise: {why}.", 'Use source="auto".')
        if self.now == "examples":
            self.refuse_examples(why)
        else:
            self._leave_pieces(why)

    def judged(self, void: str) -> None:
        """Take note of why what was seen of an update was not to be used after all; '' if it was."""
        self._voids = self._voids + 1 if void else 0
        self.confirmed = 0 if void else self.confirmed + 1
        self._void = void

    def settle(self) -> None:
        """Give a source up that was void too often; between updates only, since it may change when to measure.

        Raises:
            Refusal: There is nothing else to measure from.
        """  # noqa: DOC502 (raised by what it calls)
        if self._voids < PATIENCE:
            return
        if self.now == "pieces":
            self._leave_pieces(self._void)
        elif self.source in ("auto", "norm_layers") and self._pieces == 1 and not self.no_cutting:
            self.refuse_examples(self._void)
        self._voids = 0

    def _leave_pieces(self, why: str) -> None:
        """Cut batches from now on.

        Raises:
            Refusal: That is not wanted, or cannot be done.
        """
        if self.source != "auto" or self.processes > 1 or self.no_cutting:
            remedy = 'Use source="split".' if not self.no_cutting else ""
            raise Refusal(f"The noise cannot be told from the pieces of updates: {why}.", remedy)
        self._no_pieces = why
        self._unsaid.append(f"the pieces of updates do not tell: {why}; batches are cut instead")

    def notice(self) -> str:
        """Return what has not been said yet."""
        said, self._unsaid = "; ".join(self._unsaid), []
        return said
