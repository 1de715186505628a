"""`fully_shard`: every process has shards of the parameters and its own data."""

import pytest
import torch


@pytest.fixture
def found(group, size):
    return group("fsdp", size)


KINDS = [(2, "blocks"), (2, "root"), (4, "blocks")]
CASES = [
    (2, "blocks", "even"),
    (2, "root", "even"),
    (2, "blocks", "uneven"),
    (2, "root", "uneven"),
    (4, "blocks", "uneven"),
]
"""Sharded block by block, or at the root alone. Sizes 7 and 3 divide by neither 2 nor 4: of 4 shards one is empty."""


def _same(results):
    """All processes came to the same numbers, to the last bit."""
    for result in results:
        assert result["status"] == results[0]["status"] == "ok", result["reason"]
        assert torch.equal(result["values"], results[0]["values"])
        assert result["products"] == results[0]["products"]
    return results[0]


def _moved(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


@pytest.mark.parametrize(("size", "kind", "case"), CASES)
def test_the_eigenvalues_are_those_of_all_data(found, size, problem, dense, kind, case):
    # dense Hessian of the whole model on the union of the data, in one process
    model, loss, data = problem()
    examples = 8 * size if case == "even" else sum(3 + 5 * rank for rank in range(size))
    batch = tuple(t[:examples] for t in data)
    expected = torch.linalg.eigvalsh(dense(model, loss, batch)).flip(0)
    result = _same([process[f"{kind} {case}"] for process in found])
    k = len(result["values"])
    assert torch.allclose(result["values"], expected[:k], rtol=1e-6)
    assert result["loss"] == pytest.approx(loss(model, batch).item(), rel=1e-12)


@pytest.mark.parametrize("size", [2])
def test_the_shards_of_the_vector_make_the_eigenvector(found, size, problem, dense):
    model, loss, data = problem()
    matrix = dense(model, loss, tuple(t[: 8 * size] for t in data))
    vector = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    pieces = [process["blocks even"]["vectors"][0] for process in found]
    assert sum(float(piece.square().sum()) for piece in pieces) == pytest.approx(1.0, rel=1e-9)
    assert len({len(piece) for piece in pieces}) > 1
    # the largest component of the whole vector is in one of the shards
    assert max(float(piece.abs().max()) for piece in pieces if len(piece)) == pytest.approx(
        float(vector.abs().max()), rel=1e-4
    )


@pytest.mark.parametrize(("size", "kind"), KINDS[:2])
def test_weights_that_moved_since_they_were_gathered_are_seen(found, size, problem, dense, kind):
    model, loss, data = problem()
    _moved(model)
    expected = torch.linalg.eigvalsh(dense(model, loss, tuple(t[: 8 * size] for t in data)))[-1]
    assert float(_same([process[f"{kind} moved"] for process in found])["values"][0]) == pytest.approx(
        float(expected), rel=1e-6
    )


@pytest.mark.parametrize(("size", "kind"), KINDS[:2])
def test_the_preconditioned_eigenvalue(found, size, problem, dense, kind):
    model, loss, data = problem()
    _moved(model)
    batch = tuple(t[: 8 * size] for t in data)
    loss(model, batch).backward()
    root = torch.cat([(0.1 * (p.grad.abs() + 1e-8)).rsqrt().reshape(-1) for p in model.parameters()])
    expected = torch.linalg.eigvalsh(root[:, None] * dense(model, loss, batch) * root)[-1]
    result = _same([process[f"{kind} scaled"] for process in found])
    assert float(result["values"][0]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("size", [4])
def test_shards_that_two_processes_hold_count_once(found, size, problem, dense):
    model, loss, data = problem()
    expected = torch.linalg.eigvalsh(dense(model, loss, tuple(t[: 8 * size] for t in data)))[-1]
    result = _same([process["hybrid"] for process in found])
    assert float(result["values"][0]) == pytest.approx(float(expected), rel=1e-6)
    pieces = [process["hybrid"]["vectors"][0] for process in found]
    assert sum(float(piece.square().sum()) for piece in pieces) == pytest.approx(2.0, rel=1e-9)
    assert all(process["hybrid untouched"] for process in found)
    exact = _same([process["hybrid gathered"] for process in found])
    assert float(exact["values"][0]) == pytest.approx(float(expected), rel=1e-10)


def test_processes_may_have_different_numbers_of_batches(found, size, problem, dense):
    model, loss, data = problem()
    _moved(model)
    expected = torch.linalg.eigvalsh(dense(model, loss, tuple(t[: 8 * size] for t in data)))[-1]
    result = _same([process["micro"] for process in found])
    assert float(result["values"][0]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("size", "kind"), KINDS)
def test_nothing_is_touched(found, size, kind):
    for process in found:
        assert process[f"{kind} untouched"]
        assert process[f"{kind} same gradients"]
        assert process[f"{kind} versions"]


def test_training_with_and_without_measuring_is_the_same_bit_for_bit(found):
    assert all(process["training"] for process in found)


def test_failures_are_the_same_in_all_processes(found, size):
    for process in found:
        assert f"process {size - 1} of {size}" in process["forward"]["message"]
        assert process["nan"]["status"] == "non_finite"
        assert process["no batch"]["error"] == "ValueError"


def test_training_survives_failures(found):
    for process in found:
        assert process["survived"]
        assert process["trains on"]
        assert process["again"]["status"] == "ok"


# products past the hooks of `fully_shard`, with parameters gathered whole: `method="double_backward"`


@pytest.fixture
def two(group):
    return group("fsdp", 2)


@pytest.mark.parametrize("kind", ["blocks", "root", "frozen", "kinked", "checkpointed"])
def test_gathered_products_are_exact_and_touch_nothing(two, problem, dense, kind):
    model, loss, data = problem()
    if kind == "kinked":
        model[1] = torch.nn.ReLU()
    batch = tuple(t[:11] for t in data)  # 3 and 8 examples
    matrix = dense(model, loss, batch)
    if kind == "frozen":
        matrix = matrix[model[0].weight.numel() :, model[0].weight.numel() :]
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:2]
    result = _same([process[f"gathered {kind}"] for process in two])
    assert torch.allclose(result["values"], expected, rtol=1e-10)
    assert result["loss"] == pytest.approx(loss(model, batch).item(), rel=1e-12)
    assert all(process[f"gathered {kind}"]["same"] for process in two)
    for process, (a, b) in zip(two, [(0, 3), (3, 11)], strict=True):
        own = loss(model, tuple(t[a:b] for t in data)).item()
        assert process[f"gathered {kind}"]["trains on"] == pytest.approx(own, rel=1e-12)


def test_gathered_products_that_fail_in_one_process_fail_in_all(two):
    for process in two:
        assert "process 1 of 2" in process["gathered fails"]["message"]
        assert process["gathered nan"]["status"] == "non_finite"
        assert process["gathered survived"]
        assert process["gathered again"]["status"] == "ok"


def test_gathered_products_of_another_function_are_refused(two):
    # fully_shard casts to bfloat16 on the way to training's own loss
    for process in two:
        told = process["gathered half"]
        assert told.get("status") == "unsupported" or told["error"] in ("NotTwiceDifferentiable", "Unmeasurable")
        assert "another precision" in told.get("reason", "") + told.get("message", "")
