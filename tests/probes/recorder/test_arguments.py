"""Wrong arguments are said at once, in words that name the remedy."""

import pytest
import torch

from learnmech.probes import GradientNoiseScale, HessianEigenvalues, HessianSpectrum, Recorder, Sharpness, every


def loss_fn(model, batch):
    return model(batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, o: Recorder(m, o, loss_fn, [Sharpness]), "the class Sharpness"),
        (lambda m, o: Recorder(m, o, loss_fn, [Sharpness(), Sharpness()]), "unique names"),
        (lambda m, o: Recorder(m, o, "loss"), "loss_fn is 'loss'"),
        (lambda m, o: Recorder(m, o, loss_fn, [Sharpness(20)]), r"every\(n\)"),
        (lambda m, o: Recorder(m, o, loss_fn, budget=2.0), "share of the run's time"),
        (lambda m, o: Recorder(m, o, loss_fn, budget="1%"), "budget is '1%'.* such as 0.01 for 1 %"),
        (lambda m, o: Recorder(m, o, loss_fn, Sharpness()), r"probes is one Sharpness; .* \[Sharpness\(\.\.\.\)\]"),
        (lambda m, o: Recorder(m, o, loss_fn, "sharpness"), "probes is 'sharpness'; expected a list of probes"),
        (lambda m, o: Recorder(m, o, loss_fn, accumulation=2.5), "accumulation=2.5.* whole number"),
        (lambda m, o: HessianSpectrum(steps=2.5), r"HessianSpectrum\(steps=2.5\): expected a whole number"),
        (lambda m, o: HessianEigenvalues(k=70), "k=70.* at least one product for each eigenvalue, 70"),
        (lambda m, o: Recorder(m, o, loss_fn, accumulation=0), "whole number of 1 or more"),
        (lambda m, o: every(0), "expected a whole number"),
        (lambda m, o: Sharpness(tol=2.0), "relative residual"),
        (lambda m, o: GradientNoiseScale(half_life=0), "a half-life of 0 measurements"),
    ],
)
def test_wrong_arguments_are_said_at_once(make, message, quartic):
    model = quartic.model()
    with pytest.raises((TypeError, ValueError), match=message):
        make(model, torch.optim.SGD(model.parameters(), lr=0.1))
