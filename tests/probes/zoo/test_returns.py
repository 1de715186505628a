"""Do no harm, whatever a step takes and returns."""

import torch


def test_a_dict_with_more_than_the_loss(monitored, zoo, passed):
    class Dict(zoo.Base):
        def training_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            loss = torch.nn.functional.cross_entropy(logits, batch[1])
            return {"logits": logits.detach(), "loss": loss, "names": ["a"]}

    passed(monitored(Dict))


def test_a_loss_of_one_element(monitored, zoo, passed):
    class One(zoo.Base):
        def training_step(self, batch, batch_idx):
            return self.loss_of(*batch).reshape(1)

    passed(monitored(One))


def test_any_arguments(monitored, zoo, passed):
    class Any(zoo.Base):
        def training_step(self, *args, **kwargs):
            (x, y), index = args
            return self.loss_of(x, y) * (1 + 0.01 * index)

    passed(monitored(Any))


def test_the_batch_alone(monitored, zoo, passed):
    class Alone(zoo.Base):
        def training_step(self, batch):
            return self.loss_of(*batch)

    passed(monitored(Alone))


def test_seeds_set_in_the_step(monitored, zoo, passed):
    """A step that seeds generators by itself must not do so for the training a second time at another place."""

    class Seeds(zoo.Base):
        def training_step(self, batch, batch_idx):
            torch.manual_seed(batch_idx)
            loss = self.loss_of(*batch)
            torch.manual_seed(100 + batch_idx)
            return loss

    passed(monitored(Seeds))


def test_a_step_under_no_grad_in_part(monitored, zoo, passed):
    class Part(zoo.Base):
        def loss_of(self, x, y):
            with torch.no_grad():
                target = self.net(x).softmax(-1)
            with torch.inference_mode():
                weight = float(self.net(x).std())
            return super().loss_of(x, y) * (1 + 0.01 * weight) + (self.net(x).softmax(-1) - target).square().mean()

    passed(monitored(Part))


def test_attributes_set_past_the_module(monitored, zoo, passed):
    """A module with its own `__setattr__`, a property that counts, and a method bound to another object."""

    class Odd(zoo.Base):
        def __init__(self):
            super().__init__()
            self.asked = 0

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "asked":
                self.__dict__["history"] = (*self.__dict__.get("history", ()), value)

        @property
        def scale(self):
            self.asked += 1
            return 1 + 0.01 * self.asked

        def loss_of(self, x, y):
            return super().loss_of(x, y) * self.scale

        def memory(self):
            return self.asked, self.history

    passed(monitored(Odd))
