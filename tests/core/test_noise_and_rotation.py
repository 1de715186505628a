"""The other two laws: predictions by closed form, preconditions case by case."""

import math
from dataclasses import replace

import pytest

from learnmech.laws import State, Value, get
from learnmech.laws.rotational_equilibrium import adamw_rotation, sgd_rotation

NOISE, ROTATION = get("gradient_noise_scale"), get("rotational_equilibrium")


def state(observable, step=10_000, context=None, **values):
    return State(
        observable,
        step,
        values={k: v if isinstance(v, Value) else Value(v, step=step) for k, v in values.items()},
        context={"optimizer": "AdamW"} if context is None else context,
    )


def noise(**values):
    return state("noise_trace_between", **{"noise_trace": 3.0, "batch_size": 32.0, "noise_scale": 320.0} | values)


def rotation(context=None, **values):
    return state(
        "angular_update",
        context=context,
        **{"learning_rate": 1e-2, "weight_decay": 0.5, "beta1": 0.9, "scale_invariance": 1e-6} | values,
    )


def test_noise_between_batches_is_predicted_by_noise_within():
    prediction = NOISE.predict(noise())
    assert prediction.value == 3.0
    assert prediction.stderr is not None, "a prediction made of measurements is pooled as a ratio of means"
    # 1 + r over 1 + r/2 at r = 10
    assert "0.1 of the noise scale 320: doubling it would make a step worth 1.83" in prediction.note


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (noise(full_batch=1.0), "no sampling noise"),
        (noise(noise_trace=0.0), "same gradient"),
        (noise(noise_trace=Value(3.0, step=1)), "No trace from within"),
        (
            state("noise_trace_between", context={"batch_coupling": "BatchNorm1d"}, noise_trace=1.0),
            "BatchNorm1d couples",
        ),
    ],
)
def test_noise_says_when_it_does_not_apply(given, reason):
    assert reason in NOISE.predict(given).not_applicable


@pytest.mark.parametrize("scale", [None, -5.0])
def test_an_unresolved_noise_scale_is_said_to_be_so(scale):
    assert "not resolved" in NOISE.predict(noise(noise_scale=Value(scale))).note


def test_rotation_closed_forms():
    assert adamw_rotation(1e-2, 0.5, 0.9) == pytest.approx(math.sqrt(2 * 1e-2 * 0.5 * 0.1 / 1.9))
    assert sgd_rotation(0.05, 0.02, 0.9) == pytest.approx(math.sqrt(2 * 0.05 * 0.02 / 1.9))
    assert ROTATION.predict(rotation()).value == pytest.approx(adamw_rotation(1e-2, 0.5, 0.9))
    sgd = ROTATION.predict(rotation({"optimizer": "SGD"}, momentum=0.9))
    assert sgd.value == pytest.approx(sgd_rotation(1e-2, 0.5, 0.9))
    assert sgd.band.upper == 1.05


def test_rotation_of_a_random_walk_under_torch_adamw_matches_the_formula():
    """A scale-invariant toy: AdamW fed with random gradients orthogonal to the weights, as laws.md's T11 does."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(0.1 * torch.randn(64, 256, generator=generator))  # near the equilibrium rms
    eta, decay, beta1 = 1e-2, 0.5, 0.9
    optimizer = torch.optim.AdamW([w], lr=eta, weight_decay=decay, betas=(beta1, 0.99))
    angles = []
    for step in range(900):
        gradient = torch.randn(w.shape, generator=generator)
        before = w.detach().clone()
        gradient -= (gradient * before).sum() / before.square().sum() * before
        w.grad = gradient / before.norm()
        optimizer.step()
        if step >= 500:
            cosine = torch.nn.functional.cosine_similarity(
                before.flatten().double(), w.detach().flatten().double(), dim=0
            )
            angles.append(torch.acos(cosine).item())
    rms = math.sqrt(sum(a * a for a in angles) / len(angles))
    assert rms == pytest.approx(adamw_rotation(eta, decay, beta1), rel=0.03)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (rotation(weight_decay=0.0), "No weight decay"),
        (rotation(learning_rate=Value(None)), "groups differ"),
        (rotation(scale_invariance=0.02), "not scale invariant"),
        (rotation(scale_invariance=Value(None)), "not certified"),
        (rotation(learning_rate=Value(1e-2, since=9_900)), "Not in equilibrium yet: 100 of the 300 steps"),
        (rotation({"optimizer": "Adam"}), "No verified equilibrium angle for Adam"),
        (rotation({"optimizer": "SGD"}, nesterov=1.0), "Nesterov"),
        (rotation({"optimizer": "SGD", "gradient_clip": 1.0}), "clipped"),
    ],
)
def test_rotation_says_when_it_does_not_apply(given, reason):
    assert reason in ROTATION.predict(given).not_applicable


def test_rotation_is_not_judged_where_nobody_looked_for_scale_invariance():
    """Blocks and module types have angles, but no certificate: silence there, and the reason for the whole model."""
    given = rotation()
    del given.values["scale_invariance"]
    assert "not certified" in ROTATION.predict(given).not_applicable
    assert ROTATION.predict(replace(given, scope="blocks.0")) is None
    assert ROTATION.predict(replace(rotation(), scope="blocks.0.weight")).value is not None


def test_above_the_noise_scale_the_band_is_wider():
    assert ROTATION.predict(rotation(batch_size=512.0, noise_scale=100.0)).band.upper == 1.25
    assert ROTATION.predict(rotation(batch_size=32.0, noise_scale=100.0)).band.upper == 1.15
