"""`DistributedDataParallel`: every process has its own data; together they must find what one finds on all of it."""

import pytest
import torch

CASES = {
    "even": lambda size: 8 * size,
    "uneven": lambda size: sum(3 + 5 * rank for rank in range(size)),
    "empty": lambda size: 7 * (size - 1),
    "without": lambda size: 7 * (size - 1),
    "micro": lambda size: 8 * size,
}


@pytest.fixture
def found(group, size):
    return group("ddp", size)


def _alike(results, tol=0.0):
    """All processes say the same, to the last bit."""
    first, *others = results
    for other in others:
        assert other.keys() == first.keys()
        for key in first:
            if torch.is_tensor(first[key]):
                assert torch.equal(first[key], other[key]) or bool(first[key].isnan().all()), key
            else:
                assert other[key] == first[key] or other[key] != other[key], key
    return first


def both(cases, few):
    """Cases with two processes, and those with four that depend on their number."""
    return pytest.mark.parametrize(("size", "case"), [(2, case) for case in cases] + [(4, case) for case in few])


@both(CASES, ["uneven", "without", "micro"])
def test_the_eigenvalues_are_those_of_all_data(found, size, problem, dense, case):
    # dense Hessian of the mean loss over the union of the data: averaging, weights and solver are not in it
    model, loss, data = problem()
    examples = CASES[case](size)
    batch = tuple(t[:examples] for t in data)
    expected = torch.linalg.eigvalsh(dense(model, loss, batch)).flip(0)
    result = _alike([process[case] for process in found])
    assert result["status"] == "ok"
    k = len(result["values"])
    assert torch.allclose(result["values"], expected[:k], rtol=1e-9, atol=1e-12)
    assert result["loss"] == pytest.approx(loss(model, batch).item(), rel=1e-12)


@pytest.mark.parametrize("size", [2])
def test_differences_of_gradients_are_averaged_too(found, size, problem, dense):
    model, loss, data = problem()
    expected = torch.linalg.eigvalsh(dense(model, loss, tuple(t[: 8 * size] for t in data)))[-1]
    result = _alike([process["differences"] for process in found])
    assert result["status"] == "ok"
    assert float(result["values"][0]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("size", [2])
def test_the_preconditioned_eigenvalue(found, size, problem, dense):
    # after one step of Adam with default betas P = (1 - 0.9) (|g| + eps), with the gradient on all 48 examples
    model, loss, data = problem()
    loss(model, data).backward()
    root = torch.cat([(0.1 * (p.grad.abs() + 1e-8)).rsqrt().reshape(-1) for p in model.parameters()])
    matrix = dense(model, loss, tuple(t[: 8 * size] for t in data))
    expected = torch.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    result = _alike([process["scaled"] for process in found])
    assert float(result["values"][0]) == pytest.approx(float(expected), rel=1e-8)


FAILURES = ["raises at once", "raises in the middle", "solver", "first", "vote", "memory"]


@both(FAILURES, ["raises in the middle", "solver", "vote"])
def test_a_failure_in_one_process_is_the_same_failure_in_all(found, size, case):
    result = _alike([process[case] for process in found])
    kind = {"memory": "OutOfMemoryError", "vote": "ValueError"}.get(case, "PeerFailed")
    assert result["error"] == kind
    assert f"process {0 if case == 'vote' else size - 1} of {size}" in result["message"]


@both(["nan", "nan in the middle"], ["nan in the middle"])
def test_a_loss_that_is_not_finite_in_one_process_is_not_finite_in_all(found, size, case):
    assert _alike([process[case] for process in found])["status"] == "non_finite"


def test_a_process_that_takes_another_path_is_told(found):
    result = _alike([process["paths"] for process in found])
    assert "different paths" in result["message"]


def test_a_measurement_after_all_those_failures_is_right_and_nothing_was_touched(found):
    for process in found:
        assert process["untouched"]
        assert torch.equal(process["again"]["values"], process["micro"]["values"]) or torch.allclose(
            process["again"]["values"], process["micro"]["values"], rtol=1e-9
        )
