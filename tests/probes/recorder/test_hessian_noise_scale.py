"""The Hessian-weighted noise scale in a plain loop: right against dense Hessians, honest, and nobody's trouble.

The oracle is every example's gradient and the Hessian as a matrix, by torch itself.
"""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, vmap

from learnmech.probes import HessianNoiseScale, Recorder, every, is_probing

NAMES = ("noise_trace_hessian", "grad_hessian_grad", "noise_scale_hessian")


def flat_loss(model, loss_fn):
    """The loss of a batch as a function of all weights in one vector, and these."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(flat, batch):
        pieces = flat.split([shape.numel() for shape in shapes])
        tensors = {n: piece.view(shape) for n, piece, shape in zip(names, pieces, shapes, strict=True)}
        return loss_fn(lambda x: functional_call(model, tensors, (x,)), batch)

    return loss, flat


def by_hand(model, loss_fn, batch, sizes):
    """The estimates of one batch: (tr(H Sigma), G'HG)."""
    loss, flat = flat_loss(model, loss_fn)
    pieces = list(zip(*(t.split(sizes) for t in batch), strict=True))
    gradients = [grad(loss)(flat, piece) for piece in pieces]
    matrices = [hessian(lambda w, piece=piece: loss(w, piece), flat) for piece in pieces]
    trace = square = 0.0
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        apart = gradients[i] - gradients[j]
        trace += float(apart @ matrices[k] @ apart) / (1 / sizes[i] + 1 / sizes[j]) / 3
        square += float(gradients[i] @ matrices[k] @ gradients[j]) / 3
    return trace, square


def trained(model, loss_fn, batches, probes, url, lr=0.0, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Recorder(model, optimizer, loss_fn, probes, sink=url, **settings) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)


def last(run, name="noise_scale_hessian"):
    return run.all(name)[-1][1]


def test_agrees_with_all_per_example_gradients_and_the_dense_hessian(noisy, spool):
    """120 batches of 49 of 2000 examples, at weights that do not move."""
    model, x, y = noisy.task(dtype=torch.float64)
    loss, flat = flat_loss(model, noisy.loss)
    rows = vmap(grad(lambda w, x, y: loss(w, (x[None], y[None]))), (None, 0, 0))(flat, x, y)
    matrix, mean = hessian(lambda w: loss(w, (x, y)), flat), rows.mean(dim=0)
    exact = {NAMES[0]: float((matrix * torch.cov(rows.T)).sum()), NAMES[1]: float(mean @ matrix @ mean)}
    generator = torch.Generator().manual_seed(2)
    chosen = torch.randint(0, len(x), (120, 49), generator=generator)
    trained(model, noisy.loss, [(x[i], y[i]) for i in chosen], [HessianNoiseScale(every(1))], spool.url)
    run = spool()
    for name, truth in exact.items():
        values = torch.tensor(list(run.values(name).values()), dtype=torch.float64)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - truth) < 3 * error
        assert error < 0.25 * abs(truth)
        assert last(run, name).stderr == pytest.approx(float(values.std()), rel=0.3)
    found = last(run)
    assert abs(found.value - exact[NAMES[0]] / exact[NAMES[1]]) < 3 * found.stderr
    assert found.method == "double_backward_in_thirds_window_of_67"
    assert run.all("probe_cost", "hessian_noise_scale")


def test_measures_at_the_weights_that_have_not_seen_the_batch(noisy, spool):
    """Every step is a large one; pieces are as equal as can be, 3 + 2 + 2."""
    model, x, y = noisy.task(dtype=torch.float64)
    batches = [(x[7 * k :][:7], y[7 * k :][:7]) for k in range(4)]
    expected, optimizer = [], torch.optim.SGD(model.parameters(), lr=0.2)
    for batch in batches:
        expected.append(by_hand(model, noisy.loss, batch, [3, 2, 2]))
        optimizer.zero_grad()
        noisy.loss(model, batch).backward()
        optimizer.step()
    model, _, _ = noisy.task(dtype=torch.float64)
    trained(model, noisy.loss, batches, [HessianNoiseScale(every(1))], spool.url, lr=0.2)
    run = spool()
    for step, (trace, square) in enumerate(expected):
        assert run.values(NAMES[0])[step] == pytest.approx(trace, rel=1e-9)
        assert run.values(NAMES[1])[step] == pytest.approx(square, rel=1e-9)


def test_training_is_bit_identical(mean_square, digest, training_state, spool):
    def run(url=None):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        probes = [HessianNoiseScale(every(1))]
        recorder = None if url is None else Recorder(model, optimizer, mean_square, probes, sink=url).__enter__()
        seen = []
        for _ in range(4):
            batch = (torch.randn(12, 6), torch.randn(12, 2))
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.after_step(batch, loss)
            seen.append(digest([training_state(model, [optimizer]), batch, loss]))
        if recorder is not None:
            recorder.close()
        return seen

    assert run() == run(spool.url)
    found = spool()
    assert [m.status for _, m in found.all(NAMES[0])] == ["ok"] * 4
    assert {m.method for _, m in found.all(NAMES[1])} == {"double_backward_in_thirds"}


def test_masks_of_dropout_are_others_in_each_piece(mean_square, spool):
    """All examples are alike, so that masks are all the noise there is; with the same masks there would be none."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1)).double()
    ones = torch.ones(12, 6, dtype=torch.float64)
    batches = [((1 + 0.01 * k) * ones, ones[:, :1]) for k in range(3)]
    trained(model, mean_square, batches, [HessianNoiseScale(every(1))], spool.url, lr=1e-6)
    traces = list(spool().values(NAMES[0]).values())
    assert min(traces) > 0.1
    assert len(set(traces)) == 3


class Point(nn.Module):
    """Per-example loss s |w - x|^2 / 2 with H = s: G = s (w - mean x), tr(H Sigma) = s^3 tr Cov(x)."""

    def __init__(self, at, s):
        super().__init__()
        self.w = nn.Parameter(torch.full((5,), at, dtype=torch.float64))
        self.register_buffer("s", torch.tensor(s, dtype=torch.float64))

    def forward(self, x):
        return (self.s * (self.w - x).square()).sum(dim=1).mean() / 2


@pytest.mark.parametrize(
    ("at", "s", "said"),
    [
        (1.0, [-2.0] * 5, "G'HG is negative beyond its error"),  # both parts are, so that the ratio is positive
        (1.0, [3.0, 3.0, 3.0, -1.0, -3.6], "tr(H Sigma) is negative beyond its error"),
        (0.0, [1.0] * 5, "G'HG is not resolved from zero over 40 measurements: B_noise is at least"),
        (0.07, [1.0] * 5, "more than a factor of 4 apart"),
    ],
)
def test_what_is_no_batch_size_is_undetermined(at, s, said, spool):
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0] if "Sigma" in said else [1.0] * 5, dtype=torch.float64)
    x = scale * torch.randn(40, 30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if "tr(H" in said:
        x[..., 4] += at  # no gradient where the noise is largest
    trained(Point(at, s), lambda m, b: m(b), list(x), [HessianNoiseScale(every(1))], spool.url)
    run = spool()
    assert [m.status for _, m in run.all(NAMES[0])] == ["ok"] * 40
    found = last(run)
    assert (found.status, found.value) == ("undetermined", None)
    assert said in found.reason


def test_on_a_parabola_it_is_the_simple_noise_scale(spool):
    """H = 2, x of variance 1: B_noise = tr Sigma / |G|^2 = 5 / (5 * 0.5^2) = 4."""
    x = torch.randn(40, 30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trained(Point(0.5, [2.0] * 5), lambda m, b: m(b), list(x), [HessianNoiseScale(every(1))], spool.url)
    found = last(spool())
    assert found.status == "ok"
    assert abs(found.value - 4.0) < 3 * found.stderr < 3.0


def test_small_and_odd_batches(mean_square, spool):
    sizes = (9, 2, 4, 1, 1, 3, 2, 2, 1)
    batches = [(torch.randn(size, 2), torch.randn(size, 1)) for size in sizes]
    trained(nn.Linear(2, 1), mean_square, batches, [HessianNoiseScale(every(1))], spool.url)
    run = spool()
    assert [step for step, m in run.all(NAMES[0]) if m.status == "ok"] == [0, 2, 5]
    step, refusal = run.all(NAMES[0])[-1]
    assert (step, refusal.status) == (8, "unsupported")
    assert "A batch of 1 examples cannot be cut into 3 pieces. Use larger batches" in refusal.reason


def test_gradients_of_zero(spool):
    batches = list(torch.randn(2, 6, 5, dtype=torch.float64))
    trained(Point(1.0, [0.0] * 5), lambda m, b: m(b), batches, [HessianNoiseScale(every(1))], spool.url)
    run = spool()
    assert list(run.values(NAMES[1]).values()) == [0.0, 0.0]
    assert (last(run).status, last(run).reason) == ("undetermined", "gradients or curvature are zero")


def test_a_loss_that_is_nan_is_data(mean_square, spool):
    def broken(model, batch):
        return mean_square(model, batch) * (math.nan if is_probing() else 1.0)

    batches = [(torch.randn(6, 2), torch.randn(6, 1)) for _ in range(2)]
    trained(nn.Linear(2, 1), broken, batches, [HessianNoiseScale(every(1))], spool.url)
    run = spool()
    for name in NAMES:
        assert [m.status for _, m in run.all(name)] == ["non_finite", "non_finite"]


def test_in_full_batch_training_there_is_nothing_to_measure(mean_square, spool):
    batch = (torch.randn(12, 2), torch.randn(12, 1))
    trained(nn.Linear(2, 1), mean_square, [batch] * 4, [HessianNoiseScale(every(1))], spool.url, dataset_size=12)
    found = last(spool(), NAMES[1])
    assert (found.status, found.value) == ("undetermined", None)
    assert "every step sees the whole data set" in found.reason


def test_products_that_are_off_are_no_numbers(mean_square, spool):
    """Differences of gradients that were insisted on, across the kinks of a ReLU network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    batches = [(torch.randn(240, 4), torch.randn(240, 1)) for _ in range(3)]
    trained(model, mean_square, batches, [HessianNoiseScale(every(1), method="finite_differences")], spool.url)
    found = last(spool(), NAMES[0])
    assert found.status == "undetermined"
    assert "of the Hessian" in found.reason


class OnceDifferentiable(torch.autograd.Function):
    """x^2, with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize(("power", "noticed"), [(4, 1), (2, 6)], ids=["raises", "silently wrong"])
def test_a_method_that_stops_working_is_given_up_for_all_pieces(noisy, spool, power, noticed):
    """From the second measurement on, second derivatives do not exist, and then all pieces go by differences.

    Autograd says so where the gradient that comes in has a graph; otherwise a look at one of 20 operators tells, here
    at the third piece of the seventh measurement.
    """
    model, x, y = noisy.task(dtype=torch.float64)
    batches = [(x[9 * k :][:9], y[9 * k :][:9]) for k in range(8)]
    changed = []

    def loss_fn(model, batch):
        errors = model(batch[0]) - batch[1]
        squares = OnceDifferentiable.apply(errors) if changed else errors.square()
        return (squares.square() if power == 4 else squares).mean()

    expected = [by_hand(model, loss_fn, batch, [3, 3, 3]) for batch in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, loss_fn, [HessianNoiseScale(every(1))], sink=spool.url) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            changed.append(True)
    run = spool()
    ways = [m.method for _, m in run.all(NAMES[0])]
    assert ways == ["double_backward_in_thirds"] * noticed + ["finite_differences_in_thirds"] * (8 - noticed)
    for step in (0, *range(noticed, 8)):
        for name, exact in zip(NAMES, expected[step], strict=False):
            assert run.values(name)[step] == pytest.approx(exact, rel=1e-4)


def test_after_running_out_of_memory_pieces_are_taken_in_parts(mean_square, spool):
    """Examples one at a time at most: the same numbers."""

    def loss_fn(model, batch):
        if is_probing() and len(batch[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    model = nn.Linear(3, 1, bias=False).double()
    batches = [(torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)) for _ in range(2)]
    expected = by_hand(model, mean_square, batches[1], [4, 3, 3])
    trained(model, loss_fn, batches, [HessianNoiseScale(every(1))], spool.url)
    (_, first), (_, second) = spool().all(NAMES[0])
    assert first.status == "failed"
    assert second.value == pytest.approx(expected[0], rel=1e-9)
    assert second.method == "double_backward_in_4_parts_in_thirds"


def test_batches_that_torch_cannot_cut(mean_square, spools):
    """A batch whose tensors have other first dimensions: refused with what to pass, and measured with it."""

    def loss_fn(model, batch):
        return mean_square(model, (batch["x"], batch["y"][0]))

    def split(batch, pieces):
        cut = zip(batch["x"].tensor_split(pieces), batch["y"].tensor_split(pieces, dim=1), strict=True)
        return [{"x": x, "y": y} for x, y in cut]

    batches = [{"x": torch.randn(9, 2), "y": torch.randn(1, 9, 1)} for _ in range(3)]
    refused, cut = spools(), spools()
    trained(nn.Linear(2, 1), loss_fn, batches, [HessianNoiseScale(every(1))], refused.url)
    found = last(refused(), NAMES[0])
    assert found.status == "unsupported"
    assert "Pass HessianNoiseScale(split=...)" in found.reason
    trained(nn.Linear(2, 1), loss_fn, batches, [HessianNoiseScale(every(1), split=split)], cut.url)
    assert [m.status for _, m in cut().all(NAMES[0])] == ["ok"] * 3


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"half_life": 0.5}, ValueError, "half-life of 0.5"),
        ({"split": 3}, TypeError, "split=3"),
        ({"method": "gauss_newton"}, ValueError, "method='gauss_newton'"),
    ],
)
def test_bad_arguments_are_told_at_once(settings, error, said):
    with pytest.raises(error, match=said):
        HessianNoiseScale(every(5), **settings)


def test_means_over_tokens(spool):
    """Pieces are weighed by their tokens: tr(H Sigma) of a token, by definition, over the tokens of an example."""
    generator = torch.Generator().manual_seed(6)
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(4000, 1, generator=generator, dtype=torch.float64)

    def over_tokens(model, batch):
        return ((model(batch[0]) - batch[1]).square() * batch[2]).sum() / batch[2].sum()

    def draw():
        lengths = torch.where(torch.rand(12, generator=generator) < 0.5, 1, 16)
        chosen = torch.randint(4000, (12, 16), generator=generator)
        return x[chosen], y[chosen], (torch.arange(16) < lengths[:, None])[..., None].double()

    probe = HessianNoiseScale(every(1), units=lambda batch: batch[2].sum())
    trained(model, over_tokens, [draw() for _ in range(400)], [probe], spool.url)
    values = torch.tensor(list(spool().values(NAMES[0]).values()), dtype=torch.float64)
    rows = (2 * (model(x) - y) * x).detach()
    exact = float((2 * torch.cov(x.T, correction=0) * torch.cov(rows.T)).sum()) / 8.5
    error = float(values.std()) / math.sqrt(len(values))
    assert error < 0.1 * exact
    # 8.5 tokens make an example on average, and a batch of 12 examples tells that to some 10 % only
    assert abs(float(values.mean()) - exact) < 3 * error + 0.1 * exact
