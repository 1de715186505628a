import pytest
import torch
from sklearn.datasets import load_digits

from learnmech.lab import digits


def test_the_digits_have_their_shapes_and_one_class_each():
    data = digits.load(300)
    assert data.inputs.shape == (300, 64)
    assert data.inputs.dtype == torch.float32
    assert data.targets.shape == (300, 10)
    assert torch.equal(data.targets.sum(dim=1), torch.ones(300))


def test_the_same_seed_gives_the_same_digits_and_another_seed_others():
    assert torch.equal(digits.load(100, seed=3).inputs, digits.load(100, seed=3).inputs)
    assert not torch.equal(digits.load(100, seed=3).inputs, digits.load(100, seed=4).inputs)


def test_the_whole_set_is_centred_per_pixel_and_scaled_by_the_pixels_own_deviation():
    """NumPy's own mean and standard deviation on the raw images are the oracle."""
    pixels = load_digits().data / 16
    data = digits.load(digits.AVAILABLE)
    torch.testing.assert_close(data.inputs.mean(dim=0), torch.zeros(64), atol=1e-5, rtol=0)
    assert float(data.inputs.std()) == pytest.approx((pixels - pixels.mean(axis=0)).std() / pixels.std(), rel=1e-3)
    assert pixels.std() == pytest.approx(0.376, abs=1e-3)


def test_every_image_keeps_its_label():
    """The raw set, looked up by pixels, is the oracle: shuffling inputs and targets apart would fail."""
    images, labels = load_digits(return_X_y=True)
    data = digits.load(20, seed=1)
    scaled = torch.as_tensor((images / 16 - (images / 16).mean(axis=0)) / (images / 16).std(ddof=1)).float()
    for image, target in zip(data.inputs, data.targets, strict=True):
        nearest = int((scaled - image).square().sum(dim=1).argmin())
        assert int(target.argmax()) == labels[nearest]


@pytest.mark.parametrize("n", [0, -1, 1798])
def test_a_wrong_number_of_digits_says_how_many_there_are(n):
    with pytest.raises(ValueError, match="expected 1 to 1797 digits"):
        digits.load(n)


def test_the_network_has_its_layers_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    network = digits.tanh_network(width=7, hidden=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(p.shape) for p in network.parameters() if p.dim() == 2] == [(7, 64), (7, 7), (7, 7), (10, 7)]
    same = digits.tanh_network(width=7, hidden=3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_the_loss_is_half_the_squared_distance_averaged_over_images():
    model = torch.nn.Identity()
    inputs, targets = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert float(digits.squared_error(model, (inputs, targets))) == pytest.approx((1.0 + 4.0) / 2 / 2)


def test_accuracy_counts_the_largest_output():
    data = digits.Digits(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert digits.accuracy(torch.nn.Identity(), data) == 0.5
