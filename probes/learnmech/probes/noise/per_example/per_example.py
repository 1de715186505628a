"""Squared norms of the gradient of every example, taken from the ordinary backward pass of training."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from learnmech.probes.foreign import GRADIENT, foreign
from learnmech.probes.noise.per_example import check
from learnmech.probes.noise.per_example.collector import Collector
from learnmech.probes.noise.per_example.forms import Form, merge, squares, wide_type
from learnmech.probes.noise.per_example.safety import refusal

TOO_SMALL = "a batch of {}: the scatter of single examples needs two or more"


class PerExample:
    """Takes |h_i|^2 for every example and parameter during one forward and backward pass, exactly.

    The gradient of a batch is g = sum_i h_i, where h_i is what example i contributes: c_i times its own gradient, with
    the weight c_i that the loss gives it (1/B under a mean over examples; n_i/N under a mean over tokens). Nothing is
    evaluated again: hooks on layers see their inputs and the gradients of their outputs, hooks on nodes of the graph
    see parameters used in other ways.

    Covered: linear layers (any leading dimensions), convolutions, embeddings, LayerNorm, RMSNorm, GroupNorm, their
    biases, `nn.MultiheadAttention`, parameters that are added, multiplied, expanded or used as a matrix, tied
    parameters and layers that are called several times. `uncovered` has a reason for every other parameter, and
    `coverage` the share that the rest makes up. With batch statistics (BatchNorm) an example has no gradient of its
    own, and nothing is covered. A loss that couples examples (contrastive) cannot be seen from here: do not use this.

    The first dimension counts examples, in front of whatever a layer accepts; in a model with sequence-first layers it
    may be the second. Where as many positions as examples would leave it open, parameters are not covered; only a layer
    on a table that no example enters, with B rows by chance, is not recognized. In data-parallel training the examples
    are those of this process. A loss scale multiplies h_i.

    Cost: for T positions the cheaper of T rows columns and T^2 (rows + columns) products for each weight and example.
    Measured on a transformer of two blocks (430 thousand parameters, 16 windows of 64, one CPU thread): 45 % of a step,
    10 % more with `verify`; for the norms alone 10 %, most of it normalizing anew, which larger layers outweigh.
    Memory: inputs of layers are tensors that autograd keeps anyway (under autocast it keeps a copy in 16 bits, and the
    original stays alive as well); inside checkpointed parts nothing is kept, the recomputed input is taken. All is let
    go of when the gradient of the parameter is complete.

    Nothing raises: what goes wrong is told by `reason` or `uncovered`. Nothing is read back from the device.

    >>> model = nn.Linear(3, 2)
    >>> with PerExample(model, dict(model.named_parameters()), batch_size=5) as examples:
    ...     model(torch.randn(5, 3)).square().mean().backward()
    >>> {name: tuple(square.shape) for name, square in examples.squares().items()}
    {'weight': (5,), 'bias': (5,)}

    Args:
        model: The model that trains.
        parameters: The parameters to measure, by name; those that need no gradient are left out.
        batch_size: Examples in the batch, B, two or more.
        verify: Gather `evidence` that all uses of each parameter were seen; needed once for a model, and now and then.
            It is done for parameters with hooks of others anyway.
        seed: For the directions of `evidence`; another one at each measurement.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], batch_size: int, *, verify: bool = True, seed: int = 0
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._batch_size = batch_size
        self._verify = verify
        self._squares: dict[str, Tensor] = {}
        self._evidence: dict[str, Tensor] = {}
        self._directions = check.Directions(seed)
        self._reason = refusal(model) if batch_size > 1 else TOO_SMALL.format(batch_size)
        self._collector = Collector(
            model, {} if self._reason else self._parameters, batch_size, self._complete, self._anew
        )

    @property
    def reason(self) -> str:
        """Why nothing of this measurement can be used, '' if it can."""
        return self._reason or self._collector.reason

    @property
    def uncovered(self) -> dict[str, str]:
        """Parameters without a result, and why."""
        return self._collector.uncovered

    @property
    def coverage(self) -> float:
        """The covered share of the numbers in all measured parameters."""
        total = sum(p.numel() for p in self._parameters.values())
        return sum(self._parameters[name].numel() for name in self.squares()) / total if total else 0.0

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return self._collector.seconds

    def arm(self) -> None:
        """Put the hooks in place, before the forward pass."""
        with self._collector.safely(()):
            self._collector.arm()

    def disarm(self) -> None:
        """Take all hooks away and let go of everything but the results, after the backward pass."""
        self._collector.disarm()
        self._directions.clear()

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()

    def squares(self) -> dict[str, Tensor]:
        """Return |h_i|^2 of every covered parameter, on its device; zero where no gradient came, float64 [B]."""
        if self.reason or not self._squares:
            return {}
        found = {}
        for name, parameter in self._parameters.items():
            if name in self.uncovered:
                continue
            square = self._squares.get(name)
            if square is None:
                square = torch.zeros(self._batch_size, dtype=wide_type(parameter), device=parameter.device)
            found[name] = square
        return found

    def in_scopes(self, scopes: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Return |h_i|^2 in every scope, on the device of its first parameter: rows for `Sums.add_pieces`, float64 [B].

        A scope with a parameter that is not covered is left out: a part is not the whole. For what is left of it, ask
        for a scope of its covered parameters, and take |g|^2 of the same.

        Args:
            scopes: For each scope the names of its parameters.
        """
        found = self.squares()
        totals = {}
        for scope, names in scopes.items():
            if names and all(name in found for name in names):
                device = found[names[0]].device
                totals[scope] = torch.stack([found[name].to(device, non_blocking=True) for name in names]).sum(0)
        return totals

    def evidence(self) -> dict[str, Tensor]:
        """Return for each parameter estimates of |g - sum_i h_i|^2 and |g|^2, to be read back for `judge`, [2]."""
        return {} if self.reason else dict(self._evidence)

    def judge(self, evidence: Mapping[str, Sequence[float]]) -> dict[str, str]:
        """Return the parameters whose contributions do not add up to the gradient; they become `uncovered`.

        Args:
            evidence: What `evidence` returned, read back.
        """
        found = check.refuted(evidence, half=self._collector.half)
        self.uncovered.update(found)
        return found

    def _anew(self) -> None:
        self._squares.clear()
        self._evidence.clear()

    def _complete(self, name: str, forms: list[Form], gradient: Tensor) -> None:
        uses = merge(forms)
        self._squares[name] = squares(uses)
        if self._verify or foreign(self._parameters[name], GRADIENT):  # their hook may have changed the gradient
            self._evidence[name] = check.evidence(uses, gradient, self._directions)
