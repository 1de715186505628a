"""The number that every tool is compared with: SciPy's eigsh on double backward, all in float64, converged.

Nothing of it is ours: the product is two calls of autograd, the iteration is ARPACK.
"""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.models import loss_fn
from benchmarks.problems import Problem, flat, math_attention, size
from learnmech.probes.curvature import top_eigenvalues

EXACT = 1e-9
"""ARPACK's tolerance where errors are listed: the residual relative to the eigenvalue. The eigenvalue itself is right
to the square of that over the relative gap."""

ENOUGH = 1e-4
"""The same along a run, where 1 % is the question."""

BASIS = 12
"""Vectors in ARPACK's basis: eight less than its default, for fewer products where the spectrum is easy."""


def reference(problem: Problem, tol: float = ENOUGH) -> float:
    """Return the largest algebraic eigenvalue of the Hessian."""
    model, batch = problem.precise()
    parameters = list(model.parameters())
    with math_attention():
        gradient = flat(torch.autograd.grad(loss_fn(model, batch), parameters, create_graph=True))

        def product(vector: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(vector.reshape(-1)).to(gradient)
            return flat(torch.autograd.grad(gradient, parameters, v, retain_graph=True)).cpu().numpy()

        n = size(model)
        operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(n)
        values = eigsh(operator, k=1, which="LA", tol=tol, ncv=BASIS, v0=start, return_eigenvectors=False)
    return float(values[0])


def second_opinion(problem: Problem) -> float:
    """Return the same number by our own iteration, in float64 at a residual of 1e-9."""
    model, batch = problem.precise()
    found = top_eigenvalues(loss_fn, model, [batch], tol=1e-9, max_products=200, check=False)
    return float(found.eigenvalues[0])
