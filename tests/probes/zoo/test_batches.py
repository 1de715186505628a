"""Do no harm: a batch that a training step empties or overwrites is whole again."""

import dataclasses
import typing

import torch


def test_batch_is_popped_and_overwritten(monitored, zoo, passed):
    class Popped(zoo.Base):
        def training_step(self, batch, batch_idx):
            y = batch.pop("labels")
            x = batch["inputs"].mul_(0.5)
            batch["seen"] = True
            return self.loss_of(x, y)

    def collate(items):
        x, y = zip(*items, strict=True)
        return {"inputs": torch.stack(x), "labels": torch.stack(y), "names": ["a"] * len(x)}

    passed(monitored(Popped, collate=collate))


class Pair(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Sample:
    pair: Pair
    weights: list


def test_batch_of_nested_containers(monitored, zoo, passed):
    class Nested(zoo.Base):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

        def training_step(self, batch, batch_idx):
            batch.weights[0].add_(1)
            batch.weights.append(None)
            return self.loss_of(batch.pair.x, batch.pair.y)

    def collate(items):
        x, y = zip(*items, strict=True)
        return Sample(Pair(torch.stack(x), torch.stack(y)), [torch.ones(len(x)), {"deep": torch.ones(len(x))}])

    passed(monitored(Nested, collate=collate))
