"""The Hessian-weighted noise scale of several processes: that of the union of their batches.

The oracle trains in one process on the same batches, and takes gradients and the dense Hessian of every piece, each the
union of the processes' pieces, by torch itself.
"""

import pytest
import torch

PROCESSES = 2


@pytest.fixture
def found(group):
    return group("hessian_noise", PROCESSES)


def expected(problem, dense):
    """(tr(H Sigma), G'HG) by step. Processes have 6 and 8 examples: pieces of 2 + 3, 2 + 3 and 2 + 2."""
    model, loss, _ = problem()
    _, _, (x, y) = problem(examples=200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(3):
        starts = (32 * step, 32 * step + 8)
        cuts = [(0, 2, 4, 6), (0, 3, 6, 8)]
        pieces = []
        for k in range(3):
            rows = torch.cat([torch.arange(s + cut[k], s + cut[k + 1]) for s, cut in zip(starts, cuts, strict=True)])
            pieces.append((x[rows], y[rows]))
        sizes = [len(piece[0]) for piece in pieces]
        gradients, matrices = [], []
        for piece in pieces:
            each = torch.autograd.grad(loss(model, piece), list(model.parameters()))
            gradients.append(torch.cat([g.reshape(-1) for g in each]))
            matrices.append(dense(model, loss, piece))
        trace = square = 0.0
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            apart = gradients[i] - gradients[j]
            trace += float(apart @ matrices[k] @ apart) / (1 / sizes[i] + 1 / sizes[j]) / 3
            square += float(gradients[i] @ matrices[k] @ gradients[j]) / 3
        found.append((trace, square))
        optimizer.zero_grad()
        batches = [(x[s : s + n], y[s : s + n]) for s, n in zip(starts, (6, 8), strict=True)]
        (sum(loss(model, batch) for batch in batches) / 2).backward()
        optimizer.step()
    return found


@pytest.mark.parametrize(("case", "tolerance", "method"), [("ddp", 1e-9, "double"), ("fsdp", 1e-4, "finite")])
def test_pieces_are_the_union_of_the_pieces_of_all_processes(found, problem, dense, case, tolerance, method):
    values, ways = found[0][case]["values"], found[0][case]["ways"]
    for step, (trace, square) in enumerate(expected(problem, dense)):
        assert values["noise_trace_hessian"][step] == pytest.approx(trace, rel=tolerance)
        assert values["grad_hessian_grad"][step] == pytest.approx(square, rel=tolerance, abs=tolerance)
    assert all(way.startswith(method) for way in ways["grad_hessian_grad"].values())


def test_a_step_at_which_one_process_has_too_few_examples_is_left_out_by_all(found):
    assert sorted(found[0]["small"]["values"]["noise_trace_hessian"]) == [0, 2]


@pytest.mark.parametrize("case", ["ddp", "fsdp", "small"])
def test_the_training_is_as_without(found, case):
    for result in found:
        assert result[case]["state"] == result[case]["plain"]
