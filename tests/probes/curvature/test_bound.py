"""The residual bound over a thousand random matrices: within it lies an eigenvalue, every time.

The oracle is LAPACK in float64 on the matrix as given, float32 entries included: it shares nothing with the iteration.
"""

import pytest
import torch

from learnmech.probes.curvature import lanczos
from learnmech.probes.curvature.solvers.stopping import Trust

SPECTRA = {
    "normal": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    "clustered": lambda n, g: torch.randint(-2, 3, (n,), generator=g) + 1e-4 * torch.randn(n, generator=g).double(),
    "degenerate": lambda n, g: torch.randint(-1, 2, (n,), generator=g).double(),
    "heavy tail": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64).mul(4).sinh(),
    "negative": lambda n, g: -torch.rand(n, generator=g, dtype=torch.float64) - 0.01,
    "near-symmetric": lambda n, g: torch.rand(n, generator=g, dtype=torch.float64).mul(2).sub(1) * 143,
    "low rank": lambda n, g: (torch.arange(n) < 3) * torch.randn(n, generator=g, dtype=torch.float64),
    "tiny": lambda n, g: 1e-7 * torch.randn(n, generator=g, dtype=torch.float64),
}
ROUNDS = 125


@pytest.mark.parametrize("kind", SPECTRA)
def test_an_eigenvalue_lies_within_every_residual(kind):
    """Eight spectra, 125 cases each: sizes, ends, blocks, budgets, bases and tolerances are drawn as well."""
    generator = torch.Generator().manual_seed(sorted(SPECTRA).index(kind))

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    for case in range(ROUNDS):
        n, dtype = number(2, 40), (torch.float32, torch.float64)[case % 2]
        values = SPECTRA[kind](n, generator)
        q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        matrix = ((q * values) @ q.T).to(dtype)
        matrix = (matrix + matrix.T) / 2
        which = ("largest", "smallest", "both")[number(0, 2)]
        k = number(1, min(3, n // 2)) if which == "both" else number(1, min(4, n))
        block = number(k, min(k + 2, n))
        ends = 2 * k if which == "both" else k

        def draw(n=n, dtype=dtype):
            return torch.randn(n, generator=generator, dtype=dtype)

        pairs = lanczos(
            lambda v, matrix=matrix: matrix @ v,
            torch.stack([draw() for _ in range(block)]),
            k=k,
            which=which,
            tol=10.0 ** -number(1, 8),
            accuracy=(None, 0.01)[number(0, 1)],
            trust=Trust(warm=number(0, 1) == 1),
            max_products=number(ends, n + 5) if ends <= n + 5 else ends,
            max_basis=(None, ends + block + 4 + number(0, 6))[number(0, 1)],
            draw=draw,
        )
        exact = torch.linalg.eigvalsh(matrix.double())
        scale = float(exact.abs().max())
        slack = scale * (1e-12 if dtype is torch.float64 else 1e-6)  # |v| - 1 and LAPACK's own error
        what = (kind, case, n, dtype, which, k, block)
        vectors = pairs.vectors.double()
        for value, residual, vector in zip(pairs.values, pairs.residuals, vectors, strict=True):
            assert (exact - value).abs().min() <= residual + slack, what
            assert (matrix.double() @ vector - value * vector).norm() <= residual * (1 + 1e-5) + slack, what
        assert (vectors @ vectors.T - torch.eye(len(vectors), dtype=torch.float64)).abs().max() < (
            1e-10 if dtype is torch.float64 else 1e-4
        ), what
        # Ritz values interlace: none lies beyond the eigenvalue of its rank
        top = 0 if which == "smallest" else k
        found = len(pairs.values)
        top = min(top, (found + 1) // 2) if which == "both" and found < 2 * k else min(top, found)
        assert (pairs.values[:top] <= exact.flip(0)[:top] + slack).all(), what
        assert (pairs.values[top:] >= exact[: found - top] - slack).all(), what
        assert (pairs.errors <= pairs.residuals).all(), what
