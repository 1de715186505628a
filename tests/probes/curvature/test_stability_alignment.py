"""The share of a gradient in the top eigenspace is that of a dense eigendecomposition, within its stated error."""

import math

import numpy as np
import pytest
import torch

from learnmech.probes.curvature.space import Space
from learnmech.probes.curvature.stability import alignment


def share(vectors, gradient):
    return float((vectors @ gradient).square().sum() / gradient.square().sum())


def test_the_error_holds_over_random_matrices():
    """300 matrices with perturbed eigenvectors: residuals and gaps from the dense matrix, which nothing here shares."""
    generator = np.random.default_rng(0)
    space, ratios = Space(12, torch.float64, torch.device("cpu")), []
    for _ in range(300):
        values = np.sort(generator.normal(size=12))[::-1] * 3
        basis = np.linalg.qr(generator.normal(size=(12, 12)))[0]
        matrix = basis @ np.diag(values) @ basis.T
        k = int(generator.integers(1, 5))
        noise = 10 ** generator.uniform(-6, -1.5)
        ritz = np.linalg.qr(basis[:, :k] + noise * generator.normal(size=(12, k)))[0]
        small, turn = np.linalg.eigh(ritz.T @ matrix @ ritz)
        ritz, theta = ritz @ turn, small
        residuals = np.linalg.norm(matrix @ ritz - ritz * theta, axis=0)
        gradient = torch.from_numpy(basis @ (generator.normal(size=12) * np.exp(generator.normal(size=12))))
        found = alignment(
            torch.from_numpy(ritz.T.copy()),
            gradient,
            space,
            residuals=residuals.tolist(),
            gaps=(theta - values[k]).tolist(),
        )
        exact = share(torch.from_numpy(basis[:, :k].T.copy()), gradient)
        if math.isnan(found.error):
            continue
        ratios.append(abs(found.value - exact) / found.error)
        assert found.value == pytest.approx(share(torch.from_numpy(ritz.T.copy()), gradient), rel=1e-12)
    assert len(ratios) > 250
    assert max(ratios) <= 1.0
    assert np.median(ratios) > 0.02, "a bound that is always far too wide tells nothing"


def test_without_a_gap_or_a_gradient_there_is_no_error_or_no_value():
    space = Space(3, torch.float64, torch.device("cpu"))
    vectors = torch.eye(3, dtype=torch.float64)[:1]
    g = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    found = alignment(vectors, g, space, residuals=[0.1], gaps=[-0.1])
    assert found.value == pytest.approx(0.36)
    assert math.isnan(found.error)
    assert math.isnan(alignment(vectors, 0 * g, space, residuals=[0.1], gaps=[1.0]).value)
    assert alignment(torch.eye(3, dtype=torch.float64), g, space, residuals=[0.1] * 3, gaps=[math.inf] * 3).error == 0
