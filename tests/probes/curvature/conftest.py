"""Four small networks and an oracle for their Hessians that never differentiates twice."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

LossFunction = Callable[[nn.Module, Any], Tensor]


class Honest:
    """x^2 as torch has it."""

    @staticmethod
    def apply(x):
        return x**2


class Detached(torch.autograd.Function):
    """x^2 with a backward pass that forgets that its input depends on x, and leaves no trace of it."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.x


class Once(torch.autograd.Function):
    """x^2, honestly marked as differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.fixture
def squares() -> dict[str, Any]:
    """x^2 three ways: right, with a second derivative that is silently wrong, and without one."""
    return {"honest": Honest, "detached": Detached, "once": Once}


@dataclass
class Problem:
    """A model with a loss and a batch."""

    model: nn.Module
    loss: LossFunction
    batch: Any

    def double(self) -> "Problem":
        """The same in float64, in a model of its own."""
        model = copy.deepcopy(self.model).double()
        return Problem(model, self.loss, tuple(t.double() if t.is_floating_point() else t for t in self.batch))


class Attention(nn.Module):
    """A causal transformer block with PyTorch's own attention kernel: flash unless told otherwise."""

    def __init__(self, width: int = 8, heads: int = 2, vocabulary: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.first, self.second, self.last = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        parts = self.qkv(self.first(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(self.last(x + self.feed(self.second(x))))


class Recurrent(nn.Module):
    """A two-layer LSTM that predicts a number."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, num_layers=2, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _classes(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _squares(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def _next_token(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())


def _mlp() -> Problem:
    layers = [nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, 8), nn.GELU(), nn.Linear(8, 3)]
    return Problem(nn.Sequential(*layers).eval(), _classes, (torch.randn(16, 6), torch.randint(0, 3, (16,))))


def _cnn() -> Problem:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh()]
    model = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))  # in training mode
    return Problem(model, _classes, (torch.randn(12, 1, 8, 8), torch.randint(0, 3, (12,))))


def _transformer() -> Problem:
    return Problem(Attention(), _next_token, (torch.randint(0, 5, (6, 7)),))


def _lstm() -> Problem:
    return Problem(Recurrent(), _squares, (torch.randn(8, 4, 3), torch.randn(8, 1)))


ARCHITECTURES = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer, "lstm": _lstm}


@pytest.fixture(params=sorted(ARCHITECTURES))
def problem(request: pytest.FixtureRequest) -> Problem:
    """Each of the four architectures, freshly initialised with a fixed seed."""
    torch.manual_seed(7)
    return ARCHITECTURES[request.param]()


@pytest.fixture
def architecture() -> Callable[[str], Problem]:
    """One architecture by name."""

    def make(name: str) -> Problem:
        torch.manual_seed(7)
        return ARCHITECTURES[name]()

    return make


@pytest.fixture
def dense_hessian() -> Callable[[Problem], Tensor]:
    """The dense Hessian in float64, column by column from central differences of `loss.backward()`.

    Independent of the code under test: it differentiates once, on the parameters of a copy of the model, with the
    attention and recurrent kernels PyTorch picks by itself. Its own error is h^2 f'''' / 6 + 1e-16 |g| / h, below 1e-8.
    """

    def hessian(problem: Problem, h: float = 1e-5) -> Tensor:
        twin = problem.double()
        parameters = [p for p in twin.model.parameters() if p.requires_grad]
        size = sum(p.numel() for p in parameters)

        def gradient() -> Tensor:
            twin.model.zero_grad()
            twin.loss(twin.model, twin.batch).backward()
            return torch.cat(
                [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
            )

        columns = torch.empty(size, size, dtype=torch.float64)
        row = 0
        for parameter in parameters:
            flat = parameter.data.view(-1)
            for index in range(len(flat)):
                kept = flat[index].item()
                flat[index] = kept + h
                forward = gradient()
                flat[index] = kept - h
                columns[row] = (forward - gradient()) / (2 * h)
                flat[index] = kept
                row += 1
        return (columns + columns.T) / 2

    return hessian
