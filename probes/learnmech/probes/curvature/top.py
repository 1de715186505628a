"""The largest algebraic eigenvalues of the loss Hessian: the sharpness, warm-started, bounded and checked."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnmech.observables import Status
from learnmech.probes.curvature.check import NOT_COMPARED, Agreement, Comparison, compare
from learnmech.probes.curvature.counting import examples
from learnmech.probes.curvature.hvp import HessianOperator, NonFinite, NotTwiceDifferentiable
from learnmech.probes.curvature.lanczos import RitzPairs, lanczos
from learnmech.probes.curvature.preconditioner import NoPreconditioner, inverse_root, preconditioner_of
from learnmech.probes.curvature.result import TopEigenvalues, nothing
from learnmech.probes.curvature.start import start_vectors

if TYPE_CHECKING:
    from learnmech.probes.isolation import LossFunction, PureLoss

Preconditioner = torch.optim.Optimizer | Sequence[Tensor] | Mapping[str, Tensor]
"""An optimizer to read the diagonal P from, or P itself: a tensor per trainable parameter, in order or by name."""

ASYMMETRY = 0.02
"""Relative asymmetry beyond which the products are not those of a Hessian. Rounding gives 1e-6 in float32, and 3e-3
under bfloat16 autocast; a second derivative that is missing in one place gives its share of the whole."""


def top_eigenvalues(
    loss_fn: "LossFunction",
    model: nn.Module,
    batches: Sequence[Any],
    k: int = 1,
    *,
    weights: Sequence[float] | None = None,
    preconditioner: Preconditioner | None = None,
    start: Tensor | TopEigenvalues | None = None,
    tol: float = 1e-3,
    max_products: int = 60,
    generator: torch.Generator | None = None,
    seed: int = 0,
    retain: bool = True,
    check: bool = True,
) -> TopEigenvalues:
    """Return the k largest algebraic eigenvalues of the Hessian of the mean loss over all examples of `batches`.

    The loss is L(w) = sum_i n_i loss_fn(model, batches[i]) / sum_i n_i. Its Hessian acts by exact products
    (Pearlmutter 1994), its largest eigenvalues come from Lanczos. With a preconditioner P the eigenvalues are those of
    P^(-1) H, from the symmetric P^(-1/2) H P^(-1/2): what the step size of Adam or RMSprop is to be
    compared with (Cohen et al. 2022).

    The model is measured in the mode it is in. Dropout draws the same masks in every evaluation (those that training
    would draw next), batch statistics are those of each batch: the loss is one fixed function. Weights, buffers,
    gradients, training flags and random streams are left bit for bit as they were.

    Failure is data: a NaN loss, an operation without second derivative, exhausted products or a second derivative that
    finite differences contradict give a result with that `status` and a `reason`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> result = top_eigenvalues(lambda model, x: model(x).square().mean(), model, [x])
    >>> [round(value, 4) for value in result.eigenvalues.tolist()]  # H = 2/2 diag(1, 9)
    [9.0]

    Args:
        loss_fn: `loss_fn(model, batch)`, a scalar tensor: the mean over the examples of the batch.
        model: The model.
        batches: The batches, in memory, in any form that `loss_fn` takes.
        k: How many eigenvalues.
        weights: Number of examples n_i of each batch. None: the first dimension of the first tensor in the batch (see
            `learnmech.probes.curvature.counting.examples`); a single batch needs none.
        preconditioner: An optimizer (Adam, AdamW, RMSprop) or the diagonal P itself. Before the optimizer's first step
            the status is `unsupported` and the reason starts with "not yet".
        start: The result of the measurement before, or vectors: it saves products while the weights have moved little.
        tol: Relative residual to stop at. Eigenvalues are then right to about tol^2 |eigenvalue| / gap: along three
            trainings to 2e-4 and in 95 of 100 measurements to 1e-5 at tol = 1e-3. At 1e-2 most are right to 1e-3, but
            where several eigenvalues crowd at the edge of stability a warm start was off by up to 3e-2.
        max_products: Products that may be spent, never more.
        generator: Random numbers for start vectors, on the parameters' device. None: `seed` and age of `start`.
        seed: Seed of the start vectors.
        retain: Keep the graphs of all batches between products (faster); False builds them anew (smaller).
        check: Compare the curvature along the first vector with finite differences, at the cost of one product.

    Returns:
        Eigenvalues, bounds, vectors, and how they were come by.

    Raises:
        ValueError: There are no batches, their sizes cannot be told, or k, start or preconditioner do not fit.
    """  # noqa: DOC502 (raised below)
    # isolation uses twice_differentiable of this package
    from learnmech.probes.isolation import FunctionSource, Refusal, Skip, isolated

    source = FunctionSource(model, loss_fn)
    # before the swap: an optimizer's state is found by the identity of the model's own parameters
    scale = _scale(preconditioner, {name: p for name, p in source.model.named_parameters() if p.requires_grad})
    if isinstance(scale, NoPreconditioner):
        return nothing(k, Status.UNSUPPORTED, scale.reason)

    def work(loss: "PureLoss") -> TopEigenvalues:
        operator = hessian_of(loss, batches, weights=weights, scale=scale, retain=retain)
        return top_eigenvalues_of(
            operator, k, start=start, tol=tol, max_products=max_products, generator=generator, seed=seed, check=check
        )

    try:
        return isolated(source, work)
    except (Refusal, Skip) as refusal:
        return nothing(k, Status.UNSUPPORTED, str(refusal))


def hessian_of(
    loss: "PureLoss",
    batches: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    scale: Sequence[Tensor] | None = None,
    retain: bool = True,
) -> HessianOperator:
    """Return the Hessian of an isolated loss over batches; usable inside `learnmech.probes.isolation.isolated` only.

    Args:
        loss: The isolated loss.
        batches: Batches for it. The i-th one is evaluated with the i-th fixed state of the random streams.
        weights: Number of examples of each batch; None: see `top_eigenvalues`.
        scale: P^(-1/2), a tensor for each leaf, in order.
        retain: Keep graphs between products.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
    """
    if not batches:
        raise ValueError("no batches came; expected a list with one batch or more")
    if weights is None:
        weights = [examples(batch) for batch in batches] if len(batches) > 1 else [1.0]
    return HessianOperator(
        list(loss.leaves.values()),
        [partial(_evaluate, loss, batch, index) for index, batch in enumerate(batches)],
        names=list(loss.leaves),
        weights=weights,
        scale=scale,
        inside=loss.at,
        retain=retain,
    )


def _evaluate(loss: "PureLoss", batch: object, index: int, _: Sequence[Tensor]) -> Tensor:
    return loss(batch, draw=index)  # the model holds the parameters already: `inside` has put them there


def top_eigenvalues_of(
    operator: HessianOperator,
    k: int = 1,
    *,
    start: Tensor | TopEigenvalues | None = None,
    tol: float = 1e-3,
    max_products: int = 60,
    generator: torch.Generator | None = None,
    seed: int = 0,
    check: bool = True,
) -> TopEigenvalues:
    """Return the k largest algebraic eigenvalues of a Hessian operator; see `top_eigenvalues` for the arguments.

    Raises:
        ValueError: k is not between 1 and the number of parameters and products, or start does not fit.
    """
    if not 1 <= k <= min(operator.size, max_products):
        raise ValueError(
            f"k is {k}; expected at least 1 and at most the {operator.size} parameters and the {max_products} products"
        )

    def draw() -> Tensor:
        return torch.randn(operator.size, generator=drawn, device=operator.device, dtype=operator.dtype)

    drawn = generator or torch.Generator(operator.device)
    if generator is None:
        drawn.manual_seed(seed + (start.age if isinstance(start, TopEigenvalues) else 0))
    block, age = start_vectors(start, k, operator.size, operator.dtype, draw)
    try:
        pairs = lanczos(operator.matvec, block, tol=tol, max_products=max_products, draw=draw)
        if not pairs.finite:
            reason = "a Hessian-vector product is NaN or infinite"
            return nothing(k, Status.NON_FINITE, reason, products=pairs.products, loss=operator.loss)
        comparison = NOT_COMPARED
        if check:
            comparison = compare(operator, pairs.vectors[0], float(pairs.values[0]))
    except NonFinite as error:
        return nothing(k, Status.NON_FINITE, str(error), products=operator.products, loss=operator.loss)
    except NotTwiceDifferentiable as error:
        return nothing(k, Status.UNSUPPORTED, str(error), products=operator.products, loss=operator.loss)
    status, reason = _judged(pairs, comparison, tol)
    return TopEigenvalues(
        eigenvalues=pairs.values,
        residuals=pairs.residuals,
        converged=pairs.converged,
        products=pairs.products,
        vectors=pairs.vectors,
        status=status,
        reason=reason,
        loss=operator.loss,
        comparison=comparison,
        asymmetry=pairs.asymmetry,
        unused=operator.unused,
        scout=pairs.scout,
        age=age,
    )


def _judged(pairs: RitzPairs, comparison: Comparison, tol: float) -> tuple[Status, str]:
    top = float(pairs.values[0])
    if comparison.agreement is Agreement.DISAGREES:
        found = ", ".join(f"{difference:.4g}" for difference in comparison.differences)
        return Status.UNSUPPORTED, (
            f"an operation in the model has a wrong second derivative: along the top vector the curvature is {top:.4g} "
            f"by double backward and {found} by differences of gradients"
        )
    if pairs.asymmetry > ASYMMETRY:
        return Status.UNSUPPORTED, (
            "an operation in the model has a wrong second derivative: the Hessian is asymmetric by "
            f"{pairs.asymmetry:.1%} of its norm"
        )
    if not pairs.converged:
        return Status.NOT_CONVERGED, (
            f"after {pairs.products} products the relative residual is {_relative(pairs):.2g}, wanted is {tol:.2g}"
        )
    return Status.OK, ""


def _relative(pairs: RitzPairs) -> float:
    return float((pairs.residuals / pairs.values.abs()).max())


def _scale(
    preconditioner: Preconditioner | None, parameters: Mapping[str, Tensor]
) -> list[Tensor] | NoPreconditioner | None:
    if preconditioner is None:
        return None
    if isinstance(preconditioner, torch.optim.Optimizer):
        diagonal = preconditioner_of(preconditioner, list(parameters.values()))
    elif isinstance(preconditioner, Mapping):
        if missing := [name for name in parameters if name not in preconditioner]:
            raise ValueError(
                f"the preconditioner lacks {missing[0]!r}; expected a tensor for every trainable parameter"
            )
        diagonal = [preconditioner[name] for name in parameters]
    else:
        diagonal = list(preconditioner)
    return diagonal if isinstance(diagonal, NoPreconditioner) else inverse_root(diagonal)
