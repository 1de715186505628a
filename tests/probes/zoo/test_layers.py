"""Do no harm: layers and weights that change in the forward pass are put back."""

import torch
import torchmetrics
from torch import nn
from torch.nn.functional import cross_entropy


def test_batch_norm_dropout_and_metrics(monitored, zoo, passed):
    class Metrics(zoo.Base):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.net(x)
            self.accuracy(logits, y)
            self.mean.update(logits.mean())
            loss = cross_entropy(logits, y)
            self.log_dict({"loss": loss, "accuracy": self.accuracy, "mean": self.mean}, on_step=True, on_epoch=True)
            return {"loss": loss, "logits": logits.detach()}

    passed(monitored(Metrics))


def test_convolution_with_batch_norm(monitored, zoo, passed):
    class Convolution(zoo.Base):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                nn.Linear(16, 3),
            )  # fmt: skip

    run = monitored(Convolution, dataset=zoo.Noisy((1, 5, 5)))
    passed(run)
    assert run.context["batch_coupling"] == "BatchNorm2d"


def test_transformer(monitored, zoo, passed):
    class Transformer(zoo.Base):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
            self.out = nn.Linear(8, 3)

        def loss_of(self, x, y):
            return cross_entropy(self.out(self.inner(x).mean(dim=1)), y)

    passed(monitored(Transformer, dataset=zoo.Noisy((5, 4))))


def test_hidden_state_of_a_recurrent_net(monitored, zoo):
    class Recurrent(zoo.Base):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.out = nn.Linear(6, 3)
            self.hidden = None

        def loss_of(self, x, y):
            output, hidden = self.lstm(x, self.hidden)
            self.hidden = tuple(h.detach() for h in hidden)
            return cross_entropy(self.out(output[:, -1]), y)

        def memory(self):
            return self.hidden and tuple(h.clone() for h in self.hidden)

    run = monitored(Recurrent, dataset=zoo.Noisy((5, 4)))
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert len(run.all("sharpness")) >= 3
    # a hidden state of eight examples does not fit a piece of two: noise cannot be had, and that is said
    assert [event.data["probe"] for event in run.of_kind("probe_disabled")] == ["gradient_noise_scale"]


def test_buffers_queues_and_pointers(monitored, zoo, passed):
    class Queue(zoo.Base):
        def __init__(self):
            super().__init__()
            self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
            self.register_buffer("queue", torch.zeros(4, 6))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
            self.register_buffer("rebound", torch.zeros(6))

        def loss_of(self, x, y):
            self.queue[self.pointer % 4] = x.mean(dim=0).detach()
            self.pointer += 1
            self.rebound = 0.9 * self.rebound + 0.1 * x.mean(dim=0)
            return super().loss_of(self.spectral(x) + self.queue.mean(dim=0) + self.rebound, y)

    passed(monitored(Queue))


def test_tied_and_normalized_weights(monitored, zoo, passed):
    class Tied(zoo.Base):
        def __init__(self):
            super().__init__()
            self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
            self.decoder.weight = self.encoder.weight
            self.direct = [self.encoder.weight]  # a reference that swapping by name does not reach

        def loss_of(self, x, y):
            penalty = 1e-2 * sum(p.square().sum() for p in self.parameters()) + 0.1 * self.direct[0].square().sum()
            return super().loss_of(self.decoder(torch.tanh(self.encoder(self.first(x)))), y) + penalty

    passed(monitored(Tied))


def test_embedding_that_renormalizes_in_the_forward_pass(monitored, zoo, passed):
    class Renorm(zoo.Base):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 6, max_norm=0.5)

        def loss_of(self, x, y):
            return super().loss_of(x + self.table(y), y)

    passed(monitored(Renorm))


def test_train_and_eval_flags_flip_in_the_step(monitored, zoo, passed):
    class Flips(zoo.Base):
        def training_step(self, batch, batch_idx):
            self.net[1].train(not self.net[1].training)
            self.net[0].weight.requires_grad_(self.net[0].weight.requires_grad)
            return super().training_step(batch, batch_idx)

    passed(monitored(Flips))


def test_checkpointed_activations(monitored, zoo, passed):
    class Checkpointed(zoo.Base):
        def loss_of(self, x, y):
            logits = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
            return cross_entropy(logits, y)

    passed(monitored(Checkpointed))
