"""Scale, rescaling and shift symmetries of plain networks: found where they are, refused where they are not.

The models say by their construction what must be found; where a formula is checked, it is written out with slices.
"""

import math

import pytest
import torch
from torch import nn

from learnmech.probes.symmetry.residual import Precision, read_residual

DOUBLE, SINGLE = torch.float64, torch.float32


def net(activation, dtype=DOUBLE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), activation, nn.Linear(16, 12), activation, nn.Linear(12, 5)).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "autocast", "most"), [(DOUBLE, False, 1e-15), (SINGLE, False, 1e-6), (SINGLE, True, 1e-2)]
)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.Identity()])
def test_homogeneous_activations_balance_every_hidden_unit(dtype, autocast, most, activation, examples, residuals):
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]).to(batch[0].dtype), batch[1])
    found = residuals(net(activation, dtype), loss, examples.batch(64, 6, dtype=dtype), autocast=autocast)
    assert {"0, 2", "2, 4"} <= set(found.holding("rescale"))
    assert found.largest("rescale") < most
    assert {"4", "4.bias"} == set(found.holding("shift"))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Softplus()])
def test_others_do_not(activation, examples, residuals):
    found = residuals(net(activation, SINGLE), examples.loss, examples.batch(64, 6, dtype=SINGLE))
    assert not found.holding("rescale")
    assert found.least_refused("rescale") > 1e-2
    assert found.holding("shift") == ["4", "4.bias"]


def test_the_balance_written_out_needs_the_bias(examples):
    model = net(nn.ReLU())
    examples.loss(model, examples.batch(64, 6)).backward()
    (w, b, v), (gw, gb, gv) = (
        [p.data for p in list(model.parameters())[:3]],
        [p.grad for p in list(model.parameters())[:3]],
    )
    incoming, outgoing = (w * gw).sum(1), (v * gv).sum(0)
    torch.testing.assert_close(incoming + b * gb, outgoing, rtol=1e-12, atol=1e-16)
    assert (incoming - outgoing).abs().max() > 1e-3


def test_label_smoothing_keeps_the_shift_and_a_squared_loss_has_none(examples, residuals):
    smoothed = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)
    squared = lambda model, batch: model(batch[0]).square().mean()
    assert "4" in residuals(net(nn.ReLU()), smoothed, examples.batch(64, 6)).holding("shift")
    assert not residuals(net(nn.ReLU()), squared, examples.batch(64, 6)).holding("shift")


def test_convolutions_of_all_sorts(examples, residuals):
    """Grouped, transposed and depthwise convolutions; a flattening after the last: nine places for each channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2, groups=2), nn.ReLU(),
        nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(),
        nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(12 * 9, 5),
    ).double()  # fmt: skip
    found = residuals(model, examples.loss, examples.batch(16, 2, 10, 10))
    assert found.holding("rescale") == ["0, 2", "2, 4", "4, 6", "6, 10"]
    assert found.largest("rescale") < 1e-14


def test_batch_norm_makes_each_output_scale_invariant(examples, residuals):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.GELU(),
        nn.Flatten(), nn.Linear(6 * 16, 5),
    ).double()  # fmt: skip
    batch = examples.batch(16, 2, 8, 8)
    found = residuals(model, examples.loss, batch)
    assert {"0 per output", "3 per output"} <= set(found.holding("scale"))
    assert not {label for label in found.holding("scale") if label.startswith("7")}
    assert found.holding("rescale") == ["1, 3"], "BatchNorm's own weight, ReLU, convolution; after GELU nothing"
    model.eval()  # fixed statistics do not follow the weights
    assert not residuals(model, examples.loss, batch).holding("scale")


def test_layer_norm_needs_the_bias_and_weight_norm_the_direction_alone(examples, residuals):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(16, 12)), nn.GELU(),
        nn.Linear(12, 12), nn.GroupNorm(3, 12), nn.GELU(), nn.Linear(12, 5),
    ).double()  # fmt: skip
    nn.init.normal_(model[0].bias)
    nn.init.normal_(model[5].bias)
    found = residuals(model, examples.loss, examples.batch(32, 6))
    assert found.holding("scale") == [
        "0 with bias",
        "3.parametrizations.weight.original1",
        "3.parametrizations.weight.original1 per output",
        "5 with bias",
        "5 with bias in 3 groups",
    ]
    assert found.largest("scale") < 1e-4


def test_a_gated_unit_in_one_matrix(examples, residuals):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.down = nn.Linear(6, 32), nn.Linear(16, 5)

        def forward(self, x):
            up, gate = self.both(x).chunk(2, -1)
            return self.down(up * gate.sigmoid())

    torch.manual_seed(0)
    found = residuals(Gated().double(), examples.loss, examples.batch(32, 6))
    assert found.holding("gated") == ["both[0:], down"]
    assert found.least_refused("gated") > 0.1


def test_dead_units_and_missing_gradients_say_nothing(examples, residuals):
    """A gradient of zero satisfies every identity: it must not certify."""
    model = net(nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    found = residuals(model, examples.loss, examples.batch(16, 6))
    assert "0, 2" not in found.holding("rescale")
    assert not found.holding("scale")
    model = net(nn.ReLU())
    model[2].weight.requires_grad_(False)
    assert not residuals(model, examples.loss, examples.batch(16, 6)).holding("rescale")


def test_two_sides_that_both_vanish_say_nothing():
    """Where another symmetry makes both sides zero, what is left is rounding, and may be equal by chance."""
    assert math.isnan(read_residual([0.0, 2e-8, 1.0], Precision.SINGLE))
    assert read_residual([0.0, 2e-8, 1.0], Precision.DOUBLE) == 0.0
    assert math.isnan(read_residual([0.0, 0.0, 0.0], Precision.DOUBLE))
    assert math.isnan(read_residual([math.nan, 1.0, 1.0], Precision.DOUBLE))
    assert read_residual([0.5, 2.0, 4.0], Precision.SINGLE) == 0.25
