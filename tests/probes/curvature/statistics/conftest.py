"""A symmetric matrix as an operator, and spectra shaped like those of Hessians."""

import math

import pytest
import torch

from learnmech.probes.curvature import Space


class Matrix:
    """A dense or diagonal symmetric matrix, seen through products."""

    method = "matrix"
    error = 0.0
    loss = 1.0
    unused = ()
    resolution = 1e-16

    def __init__(self, entries, space=None):
        self.entries = entries
        self.space = space or Space(len(entries), entries.dtype, entries.device)
        self.products = 0

    def matvec(self, vector):
        self.products += 1
        return self.entries * vector if self.entries.dim() == 1 else self.entries @ vector

    def gradient(self):
        return self.space.zeros()

    def moved(self, vector):
        return vector

    def slope(self, vector, distance):
        return distance * float(self.space.dot(vector, self.matvec(vector)))

    def magnitude(self, direction=None):
        return 1.0

    def release(self):
        pass


def _spectrum(name, size=400):
    """A spectrum by name. Random starts are the same from every side, so that a diagonal matrix stands for any."""
    place = torch.arange(size, dtype=torch.float64) / size
    bulk = 0.02 * torch.tan(math.pi * (place - 0.45).clamp(-0.4, 0.4))  # peaked at zero, with tails of either sign
    if name == "outliers":
        bulk[-5:] = torch.linspace(2, 20, 5, dtype=torch.float64)
    elif name == "semicircle":
        bulk = torch.cos(math.pi * place) + 0.3
    elif name == "power":
        bulk = 10 / (1 + torch.arange(size, dtype=torch.float64))
    return bulk.sort().values


@pytest.fixture
def matrix():
    """`matrix(entries)`: an operator; one dimension is a diagonal."""
    return Matrix


@pytest.fixture
def spectrum():
    """`spectrum(name)`: eigenvalues, ascending: `bulk`, `outliers`, `semicircle` or `power`."""
    return _spectrum
