"""What stands between the loss and the optimizer is said: hooks on parameters, embeddings that shorten themselves."""

import torch
from torch import nn

from learnmech.probes.curvature.departures import departures


class Net(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3, **settings), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.embed(x))


def said(model):
    return departures(model, dict(model.named_parameters()))


def test_nothing_to_say_of_an_ordinary_model():
    model = Net()
    model(torch.tensor([1, 2])).sum().backward()
    assert said(model) == ""
    handle = model.head.weight.register_hook(lambda g: g)
    handle.remove()
    assert said(model) == ""


def test_hooks_on_gradients():
    model = Net()
    model.head.weight.register_hook(lambda g: g.clamp(-1, 1))
    model.head.bias.register_post_accumulate_grad_hook(lambda p: None)
    assert "hooks on head.weight, head.bias may change the gradient" in said(model)
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(5)])
    for layer in model:
        layer.weight.register_hook(lambda g: 2 * g)
    assert "hooks on 0.weight, 1.weight, 2.weight and others" in said(model)


def test_embeddings_that_shorten_their_rows():
    assert "embed.max_norm=1 shortens weights" in said(Net(max_norm=1.0))
    bag = nn.EmbeddingBag(5, 3, max_norm=0.5)
    assert "EmbeddingBag.max_norm=0.5 shortens" in said(bag)
