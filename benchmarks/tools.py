"""Every way to the largest eigenvalue of a Hessian that is compared: ours, and each peer as its documentation uses it.

A product is counted where the tool multiplies: PyHessian's `hessian_vector_product`, curvlinops' `_matmat` (columns),
hessian-eigenthings' `matvec`; ours by the operator's own `matvec`. What else a measurement does (building graphs, our
comparison with finite differences) shows in its time.
"""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import Batch, CrossEntropy, loss_fn
from benchmarks.problems import size
from learnmech.observables import Status
from learnmech.probes.curvature import Choice, TopEigenvalues, objective_of, top_eigenvalues, top_eigenvalues_of
from learnmech.probes.curvature.operators import HessianOperator
from learnmech.probes.isolation import FunctionSource, PureLoss, isolated


@dataclass(frozen=True)
class Reading:
    """What a tool said.

    Attributes:
        value: The eigenvalue.
        products: Products with the Hessian that it took.
        says: What the tool says about its convergence; '' if nothing.
        result: The whole result, for a tool that can start from it.
    """

    value: float
    products: int
    says: str = ""
    result: Any = None


Measure = Callable[[nn.Module, Batch, int], Reading]
"""Measures a model on a batch, under a seed. The model is the tool's own copy."""


@dataclass(frozen=True)
class Tool:
    """A way to the eigenvalue.

    Attributes:
        name: Its name in tables.
        measure: How to call it.
        needs: The module it needs; '' for ours.
    """

    name: str
    measure: Measure
    needs: str = ""

    @property
    def here(self) -> bool:
        """Tell whether it is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


@contextmanager
def counted(owner: Any, name: str, columns: Callable[..., int] = lambda *_, **__: 1) -> Iterator[list[int]]:
    """Count calls of a function or method; `columns` tells how many products a call is."""
    original, calls = getattr(owner, name), [0]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls[0] += columns(*args, **kwargs)
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, wrapper):
        yield calls


def ours(model: nn.Module, batch: Batch, seed: int, **settings: Any) -> Reading:
    """Call `top_eigenvalues`: a first measurement, which finds a way to products and checks it."""
    with counted(HessianOperator, "matvec") as calls:
        result = top_eigenvalues(loss_fn, model, [batch], seed=seed, **settings)
    return Reading(float(result.eigenvalues[0]), calls[0], _status(result), result)


class Again:
    """A later measurement, as a probe makes nine of ten: the way to products is known, the last result is the start.

    Args:
        before: The weights at which the measurement before was made.
        batch: Its batch.
        settings: For `top_eigenvalues_of`.
    """

    def __init__(self, before: nn.Module, batch: Batch, **settings: Any) -> None:
        self.choice = Choice()
        self.settings = settings
        self.start: TopEigenvalues | None = None
        self.start = self._top(before, batch, 0)

    def _top(self, model: nn.Module, batch: Batch, seed: int) -> TopEigenvalues:
        def work(loss: PureLoss) -> TopEigenvalues:
            operator = self.choice.operator(objective_of(loss, [batch]))
            return top_eigenvalues_of(operator, start=self.start, seed=seed, check=False, **self.settings)

        return isolated(FunctionSource(model, loss_fn), work)

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Reading:
        """Measure."""
        with counted(HessianOperator, "matvec") as calls:
            result = self._top(model, batch, seed)
        return Reading(float(result.eigenvalues[0]), calls[0], _status(result), result)


def to_one_percent() -> dict[str, float]:
    """Return the settings of `top_eigenvalues` that ask for 1 %."""
    return {"accuracy": 0.01} if "accuracy" in inspect.signature(top_eigenvalues).parameters else {"tol": 0.05}


def _status(result: TopEigenvalues) -> str:
    return "converged" if result.status is Status.OK else f"{result.status.value}: {result.reason}"


class AsTrained(nn.Module):
    """A model that stays in the mode it is in: PyHessian puts it into evaluation mode, where BatchNorm is another
    function, and would be compared with a loss that it did not measure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs."""
        return self.model(inputs)

    def eval(self) -> "AsTrained":
        """Do nothing."""
        return self


def pyhessian(model: nn.Module, batch: Batch, seed: int, *, as_trained: bool = True, **settings: Any) -> Reading:
    """Call PyHessian's power iteration."""
    module = importlib.import_module("pyhessian.hessian")
    cuda = batch[0].is_cuda
    torch.manual_seed(seed)
    with warnings.catch_warnings(), counted(sys.modules[module.__name__], "hessian_vector_product") as calls:
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        found = module.hessian(AsTrained(model) if as_trained else model, CrossEntropy(), data=batch, cuda=cuda)
        values, _ = found.eigenvalues(**settings)
    model.zero_grad()  # the gradients hold their graph, in a cycle
    return Reading(values[0], calls[0])


def curvlinops(
    model: nn.Module, batch: Batch, seed: int, *, start: Any = None, replace_norms: bool = True, **settings: Any
) -> Reading:
    """Call SciPy's eigsh on curvlinops' Hessian, without its test for determinism (two more products)."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    if replace_norms:  # BatchNorm's running averages are written in place, which forward mode does not allow
        torch.func.replace_all_batch_norm_modules_(model)
    operator = HessianLinearOperator(
        model, CrossEntropy(), list(model.parameters()), [batch], check_deterministic=False
    )
    first = np.random.default_rng(seed).standard_normal(size(model)).astype(np.float32) if start is None else start
    with counted(HessianLinearOperator, "_matmat", lambda _, tensors: tensors[0].shape[-1]) as calls:
        try:
            values, vectors = eigsh(operator.to_scipy(), k=1, which="LA", v0=first, **settings)
        except ArpackNoConvergence as error:
            return Reading(float("nan"), calls[0], str(error))
    return Reading(float(values[0]), calls[0], "converged", vectors[:, 0])


def eigenthings(model: nn.Module, batch: Batch, seed: int, **settings: Any) -> Reading:
    """Call hessian-eigenthings' Lanczos for the largest algebraic eigenvalue."""
    from hessian_eigenthings import HessianOperator as Theirs
    from hessian_eigenthings import lanczos

    operator = Theirs(model, [batch], loss_fn)
    with counted(Theirs, "matvec") as calls:
        found = lanczos(operator, k=1, which="LA", seed=seed, **settings)
    return Reading(float(found.eigenvalues[0]), calls[0], "converged" if bool(found.converged[0]) else "not converged")
