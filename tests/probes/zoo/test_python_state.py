"""Do no harm: what a module keeps outside parameters and buffers is put back."""

import collections
import copy
import random
import types

import numpy as np
import torch


def test_lists_deques_counters_and_objects(monitored, zoo, passed):
    class Keeps(zoo.Base):
        def __init__(self):
            super().__init__()
            self.outputs = []
            self.recent = collections.deque(maxlen=3)
            self.counts = {"steps": 0, "nested": {"sizes": []}}
            self.names = set()
            self.helper = types.SimpleNamespace(total=0.0, ema=torch.zeros(()))
            self.array = np.zeros(2)

        def training_step(self, batch, batch_idx):
            loss = self.loss_of(*batch)
            self.outputs.append(loss.detach())
            self.recent.append(float(loss.detach()))
            self.counts["steps"] += 1
            self.counts["nested"]["sizes"].append(len(batch[0]))
            self.names.add(batch_idx)
            self.helper.total += float(loss.detach())
            self.helper.ema.mul_(0.9).add_(loss.detach(), alpha=0.1)
            self.array += 1
            self.new_attribute = batch_idx
            self.last_loss = loss  # not detached
            return loss * (1 + 0.01 * self.counts["steps"])

        def memory(self):
            return (
                [t.clone() for t in self.outputs], list(self.recent), repr(self.counts), sorted(self.names),
                self.helper.total, self.helper.ema.clone(), self.array.copy(), getattr(self, "new_attribute", None),
            )  # fmt: skip

    passed(monitored(Keeps))


def test_generators_of_its_own(monitored, zoo, passed):
    class Generators(zoo.Base):
        def __init__(self):
            super().__init__()
            self.torch_generator = torch.Generator().manual_seed(1)
            self.others = {"numpy": np.random.default_rng(2), "old": np.random.RandomState(3), "py": random.Random(4)}

        def loss_of(self, x, y):
            scale = torch.rand((), generator=self.torch_generator) + self.others["numpy"].random()
            scale = scale + self.others["old"].rand() + self.others["py"].random() + np.random.rand() + random.random()
            return super().loss_of(x, y) * scale

        def memory(self):
            return (
                self.torch_generator.get_state(), repr(self.others["numpy"].bit_generator.state),
                repr(self.others["old"].get_state()), repr(self.others["py"].getstate()),
            )  # fmt: skip

    passed(monitored(Generators))


def test_momentum_teacher_updated_in_the_step(monitored, zoo, passed):
    class Teacher(zoo.Base):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            self.hidden = [copy.deepcopy(self.net).requires_grad_(False)]  # in a list: no submodule

        def loss_of(self, x, y):
            with torch.no_grad():
                for teacher in (self.teacher, self.hidden[0]):
                    for t, s in zip(teacher.parameters(), self.net.parameters(), strict=True):
                        t.mul_(0.9).add_(s.detach(), alpha=0.1)
                target = self.teacher(x) + self.hidden[0](x)
            return super().loss_of(x, y) + (self.net(x) - target).square().mean()

        def memory(self):
            return [t.clone() for t in (*self.hidden[0].parameters(), *self.hidden[0].buffers())]

    passed(monitored(Teacher))
