"""A symmetry of the loss: which parts of which parameters it moves, and how."""

import enum
from dataclasses import dataclass, replace

from torch import Tensor


class Kind(enum.StrEnum):
    """The kinds of continuous symmetries that are looked for; a group of each has one conserved charge per unit."""

    SCALE = "scale"
    """The loss does not change with the scale of weights: a normalization follows. Charge |w|^2."""
    RESCALE = "rescale"
    """A hidden unit's incoming weights and bias times c, its outgoing ones by c: a homogeneous activation (ReLU, leaky
    ReLU, none) lies between. Charge |w_in|^2 + b^2 - |w_out|^2."""
    GATED = "gated"
    """The same between the linear branch of a gated unit (GLU, SwiGLU) and what follows, whatever the gate is."""
    VALUE_OUTPUT = "value_output"
    """The same between the values and the output projection of an attention head, for every invertible matrix M that
    mixes the head's dimensions: W_V -> M W_V, W_O -> W_O M^-1. Charge: the diagonal of W_V W_V' - W_O' W_O."""
    QUERY_KEY = "query_key"
    """The same between queries and keys. Charge: the diagonal of W_Q W_Q' - W_K W_K'."""
    QUERY_KEY_PAIR = "query_key_pair"
    """What rotary positions leave of it: one scale per pair of dimensions that is rotated together."""
    SHIFT = "shift"
    """The loss does not change when one vector is added to the weights of every output: a softmax or the mean of a
    LayerNorm takes it out. Charge: the sum over outputs."""
    RESIDUAL_STREAM = "residual_stream"
    """Everything that is ever written into the residual stream times c: only normalizations read it. Charge: the sum of
    |w|^2 of the writers."""


Steps = tuple[tuple[str, tuple[int, ...]], ...]
"""Methods of a tensor that reorder its elements, with their arguments, in order."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a parameter, cut into units.

    Attributes:
        parameter: Its name.
        steps: What brings it, or its gradient, into the shape [units, elements of a unit].
        sign: How it enters the charge, 1 or -1.
    """

    parameter: str
    steps: Steps = ()
    sign: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is all of the parameter."""
        return not any(method in ("narrow", "select") for method, _ in self.steps)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor of the parameter's shape, as [units, elements]."""
        for method, arguments in self.steps:
            tensor = getattr(tensor, method)(*arguments)
        return tensor

    def then(self, *steps: tuple[str, tuple[int, ...]]) -> "Part":
        """Return the part with its units arranged further."""
        return replace(self, steps=self.steps + steps)

    def negative(self) -> "Part":
        """Return the part with the other sign."""
        return replace(self, sign=-self.sign)


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that one symmetry moves together.

    With w and g the weights and the gradient of each part, per unit, the symmetry forces for every batch

        sum of sign <w, g> = 0   (SHIFT: sum of g = 0),

    and gradient flow conserves the charge Q = sum of sign |w|^2 (SHIFT: sum of w).

    Attributes:
        kind: The kind of symmetry.
        label: What it is about, in names of modules and parameters; unique with `kind`.
        parts: What it moves; all have the same number of units, in the same order.
        family: Groups of one family are the same symmetry assumed finer or coarser, finest first: one is enough.
        block: Units that any invertible matrix may mix (a head's dimensions); 1: each unit on its own.
    """

    kind: Kind
    label: str
    parts: tuple[Part, ...]
    family: str
    block: int = 1

    @property
    def linear(self) -> bool:
        """Whether the charge is linear in the weights."""
        return self.kind is Kind.SHIFT

    @property
    def two_sided(self) -> bool:
        """Whether two sides balance; else the charge is a sum that does not change."""
        return any(part.sign < 0 for part in self.parts)

    @property
    def names(self) -> frozenset[str]:
        """The parameters that it moves."""
        return frozenset(part.parameter for part in self.parts)
