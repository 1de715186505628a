"""The largest algebraic eigenvalues of the loss Hessian: the sharpness, warm-started, bounded and checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learnmech.observables import Status
from learnmech.probes.curvature.check import NOT_COMPARED, compare
from learnmech.probes.curvature.continuation import beginning, runner_up, turned
from learnmech.probes.curvature.objective import NonFinite, Unmeasurable
from learnmech.probes.curvature.operators import Choice, Operator
from learnmech.probes.curvature.operators.choice import DIFFERENCES
from learnmech.probes.curvature.preconditioners import NoPreconditioner, inverse_root, preconditioner_of
from learnmech.probes.curvature.processes import operator_of
from learnmech.probes.curvature.result import TopEigenvalues, nothing
from learnmech.probes.curvature.solvers.lanczos import lanczos
from learnmech.probes.curvature.trust import judged, uncertainty, widened
from learnmech.probes.distributed import peers_of
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.isolation import FunctionSource, LossFunction, PureLoss, Refusal, Skip

Preconditioner = torch.optim.Optimizer | Sequence[Tensor] | Mapping[str, Tensor]
"""An optimizer to read the diagonal P from, or P itself: a tensor per trainable parameter, in order or by name."""


def top_eigenvalues(
    loss_fn: LossFunction,
    model: nn.Module,
    batches: Sequence[Any],
    k: int = 1,
    *,
    weights: Sequence[float] | None = None,
    preconditioner: Preconditioner | None = None,
    start: Tensor | TopEigenvalues | None = None,
    which: str = "largest",
    tol: float = 1e-3,
    accuracy: float | None = None,
    max_products: int = 60,
    max_basis: int | None = None,
    generator: torch.Generator | None = None,
    seed: int = 0,
    retain: bool = True,
    check: bool = True,
    method: str = "auto",
) -> TopEigenvalues:
    """Return the k largest algebraic eigenvalues of the Hessian of the mean loss over all examples of `batches`.

    The loss is L(w) = sum_i n_i loss_fn(model, batches[i]) / sum_i n_i. Its Hessian acts by exact products
    (Pearlmutter 1994), its largest eigenvalues come from Lanczos. With a preconditioner P the eigenvalues are those of
    P^(-1) H, from the symmetric P^(-1/2) H P^(-1/2): what the step size of Adam or RMSprop is to be
    compared with (Cohen et al. 2022).

    Where the model is trained by several processes (`DistributedDataParallel`, `fully_shard`), all of them call this
    alike, each with its own batches (some may have none, unless parameters are sharded), and all get the same answer,
    that of all their examples. Vectors are whole in every process, or its shard where parameters are sharded.

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
            `learnmech.probes.isolation.counting.examples`); a single batch needs none.
        preconditioner: An optimizer (which ones: docs/preconditioners.md) or the diagonal P itself. Before the
            optimizer's first step the status is `unsupported` and the reason starts with "not yet".
        start: The result of the measurement before, or vectors: it saves products while the weights have moved little.
        which: `largest`, `smallest` (the most negative first), or `both`: the k largest, then the k smallest.
        tol: Relative residual to stop at. Eigenvalues are then right to about tol^2 |eigenvalue| / gap: along three
            trainings to 2e-4 and in 95 of 100 measurements to 1e-5 at tol = 1e-3. At 1e-2 most are right to 1e-3, but
            where several eigenvalues crowd at the edge of stability a warm start was off by up to 3e-2.
        accuracy: Instead of `tol`: relative error of each eigenvalue to stop at, by an estimate (`errors`): far
            cheaper, since the error of an eigenvalue is about the square of that of its vector. At 1 %, 20 steps
            apart, half of the measurements took three products while the vectors held and six while they turned; one
            of a hundred was off by more than 1 %, where what nothing tracked had overtaken. It is an estimate:
            `residuals` is the bound.
        max_products: Products that may be spent, never more.
        max_basis: Vectors of the parameters' size that may be held; None: as many as products. See `lanczos`.
        generator: Random numbers for start vectors, on the parameters' device. None: `seed` and age of `start`.
        seed: Seed of the start vectors.
        retain: Keep the graphs of all batches between products (faster); False builds them anew (smaller).
        check: Compare the curvature along the first vector with finite differences, at the cost of one product.
        method: `auto`, or the one way to products to use; see `learnmech.probes.curvature.operators.Choice`.

    Returns:
        Eigenvalues, bounds, vectors, and how they were come by.

    Raises:
        TypeError: batches, start or preconditioner is of another kind.
        ValueError: There are no batches, their sizes cannot be told, or k, which, tol, accuracy, max_basis, start or
            preconditioner do not fit.
    """  # noqa: DOC502 (raised below)
    if not isinstance(batches, Sequence):
        raise TypeError(
            f"batches is a {type(batches).__name__}; expected a list of batches, which are gone through once for each "
            "product: list(batches), or [batch] for one"
        )
    peers = peers_of(model)
    source = FunctionSource(model, loss_fn)
    # before the swap: an optimizer's state is found by the identity of the model's own parameters
    scale = _scale(preconditioner, {name: p for name, p in source.model.named_parameters() if p.requires_grad})
    choice = Choice(method)

    def work(loss: PureLoss) -> TopEigenvalues:
        if isinstance(scale, NoPreconditioner):  # inside, so that processes agree on it
            raise Unmeasurable(scale.reason)
        while True:
            operator = operator_of(loss, batches, choice, weights=weights, scale=scale, retain=retain)
            found = top_eigenvalues_of(
                operator,
                k,
                start=start,
                which=which,
                tol=tol,
                accuracy=accuracy,
                max_products=max_products,
                max_basis=max_basis,
                generator=generator,
                seed=seed,
                check=check,
            )
            operator.release()
            if found.status is not Status.UNSUPPORTED or not choice.doubt(found.reason):
                return found

    try:
        # differences are asked for where training's own kernels are to be used
        return isolated_together(source, choice.arithmetic.around(work), peers=peers, twice=method != DIFFERENCES)
    except (Refusal, Skip, Unmeasurable) as refusal:
        return nothing(2 * k if which == "both" else k, Status.UNSUPPORTED, str(refusal))


def top_eigenvalues_of(
    operator: Operator,
    k: int = 1,
    *,
    start: Tensor | TopEigenvalues | None = None,
    which: str = "largest",
    tol: float = 1e-3,
    accuracy: float | None = None,
    max_products: int = 60,
    max_basis: int | None = None,
    generator: torch.Generator | None = None,
    seed: int = 0,
    check: bool = True,
) -> TopEigenvalues:
    """Return the k largest algebraic eigenvalues of a Hessian operator; see `top_eigenvalues` for the arguments.

    Raises:
        TypeError: start is neither vectors nor an earlier result.
        ValueError: k is not between 1 and the number of parameters and products, or another argument does not fit.
    """
    rows = 2 * k if which == "both" else k
    if not 0 < tol < 1 or (accuracy is not None and not 0 < accuracy < 1):
        raise ValueError(
            f"tol is {tol!r} and accuracy is {accuracy!r}; expected a relative residual between 0 and 1, such as 1e-3, "
            "and a relative error between 0 and 1, such as 0.01, or None"
        )
    if start is not None and not isinstance(start, (Tensor, TopEigenvalues)):
        raise TypeError(
            f"start is {start!r}; expected the result of an earlier measurement, a tensor of vectors with "
            f"{operator.space.size} numbers each, or None"
        )
    if not 1 <= k <= rows <= min(operator.space.dimension, max_products):
        both = " at each end" if which == "both" else ""
        raise ValueError(
            f"k is {k}{both}; expected at least 1, and {rows} eigenvalues to be at most the "
            f"{operator.space.dimension} parameters and the {max_products} products"
            + ('; type which="largest" or which="smallest" for one end' if which == "both" else "")
        )

    def draw() -> Tensor:
        return space.draw(drawn)

    space = operator.space
    drawn = generator or space.generator(seed + (start.age if isinstance(start, TopEigenvalues) else 0))
    try:
        begin = beginning(start, k, which, operator, draw, accuracy)
        pairs = lanczos(
            operator.matvec,
            begin.vectors,
            k=k,
            which=which,
            tol=tol,
            accuracy=accuracy,
            trust=begin.trust,
            max_products=max_products,
            max_basis=max_basis,
            draw=draw,
            space=space,
        )
        if not pairs.finite:
            reason = "a Hessian-vector product is NaN or infinite"
            return nothing(rows, Status.NON_FINITE, reason, products=pairs.products, loss=operator.loss)
        comparison = NOT_COMPARED
        if check:
            comparison = compare(operator, pairs.vectors[0], float(pairs.values[0]))
    except NonFinite as error:
        return nothing(rows, Status.NON_FINITE, str(error), products=operator.products, loss=operator.loss)
    except Unmeasurable as error:
        return nothing(rows, Status.UNSUPPORTED, str(error), products=operator.products, loss=operator.loss)
    status, reason = judged(operator, pairs, comparison, tol)
    if status is Status.NOT_CONVERGED and accuracy is not None:
        worst = float((pairs.errors / pairs.values.abs()).max())
        reason = f"after {pairs.products} products the estimated error is {worst:.2g}, wanted is {accuracy:.2g}"
    own = uncertainty(operator)
    scout, second = runner_up(pairs, start, begin)
    return TopEigenvalues(
        eigenvalues=pairs.values,
        residuals=widened(operator, pairs.residuals),
        converged=pairs.converged,
        products=pairs.products,
        vectors=pairs.vectors,
        status=status,
        reason=reason,
        loss=operator.loss,
        comparison=comparison,
        asymmetry=pairs.asymmetry,
        unused=operator.unused,
        scout=scout,
        second=second,
        age=begin.age,
        errors=pairs.errors + own,
        turned=turned(pairs.vectors, start, space),
    )


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
    elif isinstance(preconditioner, (list, tuple)):
        diagonal = list(preconditioner)
    else:
        raise TypeError(
            f"preconditioner is {preconditioner!r}; expected the optimizer itself, such as torch.optim.Adam(...), or "
            "the diagonal: a tensor for each trainable parameter, in a list or by name"
        )
    return diagonal if isinstance(diagonal, NoPreconditioner) else inverse_root(diagonal)
