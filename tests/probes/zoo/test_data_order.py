"""Do no harm: loaders keep their place, and every example comes when it would have come."""

import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset


class Stateful:
    """A loader that keeps its place, shuffles by a stream of its own, and can be saved: no copy may move it."""

    def __init__(self, data, batch):
        self.data, self.batch, self.place = data, batch, 0
        self.order = random.Random(5)

    def __len__(self):
        return len(self.data) // self.batch

    def __iter__(self):
        for _ in range(len(self)):
            self.place += 1
            chosen = [self.data[self.order.randrange(len(self.data))] for _ in range(self.batch)]
            yield tuple(map(torch.stack, zip(*chosen, strict=True)))

    def state_dict(self):
        return {"place": self.place, "order": self.order.getstate()}

    def load_state_dict(self, state):
        self.place = state["place"]
        self.order.setstate(state["order"])


def test_a_stateful_loader_keeps_its_place(monitored, zoo, passed):
    made = []

    def loader(data):
        made.append(Stateful(data, zoo.BATCH))
        return made[-1]

    passed(monitored(zoo.Base, loader=loader))
    assert made[0].state_dict() == made[1].state_dict()


def test_a_loader_that_the_module_holds_and_the_step_draws_from(monitored, zoo):
    """Its place would move with every replay: it is put back, or found out."""

    class Draws(zoo.Base):
        def __init__(self):
            super().__init__()
            self.more = Stateful(zoo.Noisy(seed=3), 4)

        def loss_of(self, x, y):
            more, labels = next(iter(self.more))
            return super().loss_of(x, y) + super().loss_of(more, labels)

        def memory(self):
            return repr(self.more.state_dict())

    monitored(Draws)


def numbers():
    yield from range(1000)


ITERATORS = {
    "list": lambda: iter(list(range(1000))),
    "generator": numbers,
    "loader": lambda: iter(DataLoader(torch.arange(1000.0))),
    "cycle": lambda: itertools.cycle(range(7)),
    "zip": lambda: map(sum, zip(range(1000), itertools.count(), strict=False)),
}


class Stream:
    """An iterator of the user's around another one."""

    def __init__(self, inner):
        self.inner, self.drawn = inner, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.drawn += 1
        return next(self.inner)


@pytest.mark.parametrize("inside", [False, True], ids=["held", "held by an object"])
@pytest.mark.parametrize("kind", ITERATORS)
def test_an_iterator_that_the_module_holds_and_the_step_draws_from(monitored, zoo, kind, inside, refused):
    """A replay would use up its items, and training would go on with others."""

    class Draws(zoo.Base):
        def __init__(self):
            super().__init__()
            self.more, self.last = ITERATORS[kind](), None
            self.more = Stream(self.more) if inside else self.more

        def loss_of(self, x, y):
            self.last = float(next(self.more))
            return super().loss_of(x, y) * (1 + 0.01 * self.last)

        def memory(self):
            return self.last, getattr(self.more, "drawn", None)

    name = {"list": "list_iterator", "loader": "_SingleProcessDataLoaderIter", "zip": "map"}.get(kind, kind)
    refused(monitored(Draws, epochs=1), f"Draws.more{'.Stream.inner' if inside else ''} (a {name})", "loss=")


def test_an_iterator_of_the_users_is_put_back(monitored, zoo, passed):
    class Counts(zoo.Base):
        def __init__(self):
            super().__init__()
            self.more, self.unused = Stream(None), iter([1])

        def loss_of(self, x, y):
            self.more.drawn += 1
            return super().loss_of(x, y) * (1 + 0.01 * self.more.drawn)

        def memory(self):
            return self.more.drawn

    passed(monitored(Counts))


class Endless(IterableDataset):
    """A stream without a length that remembers how far it is."""

    def __init__(self):
        self.drawn = 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(2)
        while True:
            self.drawn += 1
            yield torch.randn(6, generator=generator), torch.randint(0, 3, (), generator=generator)


def test_an_endless_stream(monitored, zoo, passed):
    made = []

    def loader(_):
        made.append(Endless())
        return DataLoader(made[-1], batch_size=zoo.BATCH)

    run = monitored(zoo.Base, loader=loader, epochs=1, limit_train_batches=8)
    passed(run)
    assert made[0].drawn == made[1].drawn
    assert not run.all("dataset_size")


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "kept workers"])
def test_worker_processes(monitored, zoo, persistent, passed):
    def loader(data):
        return DataLoader(
            data, batch_size=zoo.BATCH, shuffle=True, num_workers=1, persistent_workers=persistent, drop_last=True,
            multiprocessing_context="fork",
        )  # fmt: skip

    passed(monitored(zoo.Base, loader=loader))


def test_several_loaders_at_once(monitored, zoo, passed):
    """Lightning passes a dict of batches, each of its own size."""

    class Both(zoo.Base):
        def training_step(self, batch, batch_idx):
            return self.loss_of(*batch["left"]) + 0.5 * self.loss_of(*batch["right"])

    def loader(data):
        return {"left": DataLoader(data, batch_size=8), "right": DataLoader(data, batch_size=8, shuffle=True)}

    passed(monitored(Both, loader=loader))
