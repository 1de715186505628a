"""Stability thresholds against the optimizers themselves: characteristic roots, and torch.optim run on a quadratic."""

import numpy as np
import pytest
import torch

from learnmech.laws import State, Value, get
from learnmech.laws.edge_of_stability import adam_threshold, heavy_ball_threshold, nesterov_threshold

LAW = get("edge_of_stability")


def spectral_radius(*coefficients):
    return max(abs(np.roots(coefficients)))


@pytest.mark.parametrize(("eta", "mu", "tau"), [(0.1, 0.0, 0.0), (0.1, 0.9, 0.0), (0.4, 0.5, 0.0), (0.1, 0.9, 0.9)])
def test_heavy_ball_by_the_roots_of_its_recursion(eta, mu, tau):
    h = heavy_ball_threshold(eta, mu, tau)
    for factor, stable in ((1 - 1e-6, True), (1 + 1e-6, False)):
        radius = spectral_radius(1, -(1 + mu - eta * (1 - tau) * h * factor), mu)
        assert bool(radius < 1) is stable


@pytest.mark.parametrize(("eta", "mu"), [(0.1, 0.5), (0.1, 0.9)])
def test_nesterov_by_the_roots_of_its_recursion(eta, mu):
    h = nesterov_threshold(eta, mu)
    for factor, stable in ((1 - 1e-6, True), (1 + 1e-6, False)):
        d = 1 - eta * h * factor
        assert bool(spectral_radius(1, -(1 + mu) * d, mu * d) < 1) is stable


@pytest.mark.parametrize("decay", [0.0, 10.0, 100.0])
def test_adamw_with_a_frozen_preconditioner_by_its_roots(decay):
    """x+ = (1 - eta decay) x - eta h m+, m+ = b m + (1 - b) h x in units where P = 1 - b."""
    eta, beta = 3e-3, 0.9
    h = adam_threshold(eta, beta, decay)
    for factor, stable in ((1 - 1e-6, True), (1 + 1e-6, False)):
        k = h * factor
        # state (x, m): m+ = b m + (1-b) k x ; x+ = (1 - eta decay) x - eta m+
        matrix = np.array([[1 - eta * decay - eta * (1 - beta) * k, -eta * beta], [(1 - beta) * k, beta]])
        assert bool(max(abs(np.linalg.eigvals(matrix))) < 1) is stable


def diverges(make, h, steps):
    """Run a torch optimizer on h x^2/2 and tell whether |x| ends larger than it began."""
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = make([x])
    peak = []
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * h * x.square().sum()).backward()
        optimizer.step()
        peak.append(abs(x.item()))
    return max(peak[-20:]) > max(peak[20:40])


@pytest.mark.parametrize(
    ("make", "threshold"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), heavy_ball_threshold(0.1)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), heavy_ball_threshold(0.1, 0.9)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.5), heavy_ball_threshold(0.1, 0.5, 0.5)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), nesterov_threshold(0.1, 0.9)),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1.5), heavy_ball_threshold(0.1) - 1.5),
    ],
    ids=["gd", "heavy ball", "dampened", "nesterov", "coupled decay"],
)
def test_torch_itself_turns_unstable_at_the_threshold(make, threshold):
    assert not diverges(make, threshold * 0.98, 600)
    assert diverges(make, threshold * 1.02, 600)


def state(observable="sharpness", optimizer="SGD", step=100, **values):
    values = {"learning_rate": 0.4, "full_batch": 1.0, "deterministic_loss": 1.0, "weight_decay": 0.0, **values}
    return State(
        observable,
        step,
        values={k: v if isinstance(v, Value) else Value(v) for k, v in values.items()},
        context={"optimizer": optimizer} if optimizer else {},
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (state(), 5.0),
        (state(momentum=0.9), 9.5),
        (state(momentum=0.9, dampening=0.9), 95.0),
        (state(momentum=0.9, nesterov=1.0), 3.8 / 2.8 / 0.4),
        (state(weight_decay=0.5), 4.5),
        (state("sharpness_preconditioned", "Adam", learning_rate=1e-3, beta1=0.9), 38_000.0),
        (state("sharpness_preconditioned", "AdamW", learning_rate=3e-3, beta1=0.9, weight_decay=100.0,
               decoupled_weight_decay=1.0), 10_766.67),
        (state("sharpness_preconditioned", "RMSprop"), 5.0),
        (state("sharpness_preconditioned", "RMSprop", momentum=0.5), 7.5),
        (state("sharpness_preconditioned", "Adam", learning_rate=1e-3, beta1=0.9, full_batch=0.0, batch_size=512.0,
               noise_scale=100.0), 38_000.0),
    ],
)  # fmt: skip
def test_predictions(given, expected):
    assert LAW.predict(given).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (state(optimizer=""), "did not record its optimizer"),
        (state(full_batch=0.0), "batch sharpness"),
        (state(full_batch=Value(None)), "pass full_batch=True"),
        (state(deterministic_loss=0.0), "dropout"),
        (state(learning_rate=Value(None)), "parameter groups differ"),
        (state(learning_rate=0.0), "nothing moves"),
        (state(weight_decay=9.0), "past the edge"),
        (state(optimizer="Lion"), "No verified stability threshold for Lion"),
        (state("sharpness_preconditioned", "Adam", weight_decay=0.1, beta1=0.9), "L2 regularization"),
        (state("sharpness_preconditioned", "Adam", beta1=0.9, full_batch=0.0, batch_size=32.0), "Batches are sampled"),
    ],
)
def test_the_law_says_when_it_does_not_apply(given, reason):
    prediction = LAW.predict(given)
    assert prediction.value is None
    assert reason in prediction.not_applicable


def test_clipping_takes_the_law_out():
    clipped = State("sharpness", 1, values=state().values, context={"optimizer": "SGD", "gradient_clip": 1.0})
    assert "clipped at 1" in LAW.predict(clipped).not_applicable


def test_raw_sharpness_is_not_the_gauge_of_an_adaptive_optimizer_and_the_other_way_round():
    assert LAW.predict(state("sharpness", "AdamW")) is None
    assert LAW.predict(state("sharpness_preconditioned", "SGD")) is None


def test_the_note_says_since_when_the_learning_rate_holds():
    note = LAW.predict(state(learning_rate=Value(0.2, since=1500))).note
    assert "0.2" in note
    assert "since step 1500" in note
