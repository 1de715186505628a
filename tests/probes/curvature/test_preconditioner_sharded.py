"""Parameters and moments that are DTensors, as under FSDP2: each process reads its own shard."""

import pytest
import torch
from torch import nn

from learnmech.probes.curvature.preconditioners import NoPreconditioner, preconditioner_of

SHARD = 3
"""Rows of this process; the other one holds as many."""


@pytest.fixture
def mesh():
    """Two processes, of which this is the first; the other is pretended, so only what communicates would go wrong."""
    pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=0, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh

    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def sharded(tensor, mesh):
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"])
def test_a_process_reads_its_own_shard(mesh, name):
    """The oracle is the same optimizer on a plain tensor with this shard's numbers: all divide weight by weight."""
    torch.manual_seed(0)
    values, gradients = torch.randn(SHARD, 4), torch.randn(3, SHARD, 4)
    plain, part = nn.Parameter(values.clone()), nn.Parameter(sharded(values.clone(), mesh))
    still = nn.Parameter(sharded(torch.ones(1, 2), mesh))
    kind = getattr(torch.optim, name)
    ours, theirs = kind([part, still], foreach=False), kind([plain], foreach=False)
    for gradient in gradients:
        plain.grad, part.grad = gradient.clone(), sharded(gradient.clone(), mesh)
        ours.step()
        theirs.step()
    assert part.shape == (2 * SHARD, 4)
    found, unmoved = preconditioner_of(ours, [part, still])
    (expected,) = preconditioner_of(theirs, [plain])
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)
    assert type(unmoved) is torch.Tensor
    assert unmoved.shape == (1, 2)
    assert unmoved.isinf().all()


def test_an_offered_diagonal_may_be_sharded_or_local(mesh):
    p = nn.Parameter(sharded(torch.ones(SHARD, 2), mesh))
    local = torch.rand(SHARD, 2) + 1
    for offer in (local, sharded(local, mesh)):
        optimizer = torch.optim.SGD([p])
        optimizer.learnmech_preconditioner = lambda offer=offer: {p: offer}
        (found,) = preconditioner_of(optimizer, [p])
        assert torch.equal(found, local)


def test_adafactor_spans_processes(mesh):
    p = nn.Parameter(sharded(torch.ones(SHARD, 2), mesh))
    found = preconditioner_of(torch.optim.Adafactor([p]), [p])
    assert isinstance(found, NoPreconditioner)
    assert not found.yet
    assert "span the processes" in found.reason
