"""The probe in a plain loop: what it finds, what it records, what it leaves alone."""

import gc
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes import Recorder, every
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetries import Symmetries
from learnmech.probes.symmetry import Kind, certified, scale_invariant


def relu():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)
    ).double()


def train(model, optimizer, probe, spool, examples, steps=8, *, each=None, before=None, batch=None, **settings):
    with Recorder(model, optimizer, examples.loss, [probe], sink=spool.url, strict=True, **settings) as recorder:
        for step in range(steps):
            one = batch(step) if batch else examples.batch(32, 6, seed=step)
            optimizer.zero_grad()
            loss = examples.loss(model, one)
            loss.backward()
            if before is not None:
                recorder.after_backward(one)
                before(model)
            optimizer.step()
            recorder.after_step(one, loss)
            if each is not None:
                each(step)
    return spool()


def test_what_is_recorded_and_when(spool, examples):
    model, probe = relu(), Symmetries(every(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    charges = []
    balance = lambda: (
        sum(
            float(p.detach().square().sum()) * sign
            for layer, sign in ((model[1], 1), (model[3], -1))
            for p in ([layer.weight, layer.bias] if sign > 0 else [layer.weight])
        )
        + sum(
            float(p.detach().square().sum()) * sign
            for p, sign in ((model[3].weight, 1), (model[3].bias, 1), (model[5].weight, -1))
        )
    )
    charges.append(balance())
    run = train(model, optimizer, probe, spool, examples, each=lambda _: charges.append(balance()))
    assert run.values("symmetry_groups") == {0: 0, 4: 5}, "five looks, and then only changes"
    assert run.values("symmetry_groups", "symmetry:rescale") == {4: 2}
    assert run.values("symmetry_groups", "symmetry:scale") == {4: 1}
    assert run.values("symmetry_groups", "symmetry:shift") == {4: 2}
    assert max(run.values("symmetry_residual", "symmetry:rescale").values()) < 1e-14
    assert max(run.values("symmetry_residual", "symmetry:scale").values()) < 1e-4
    for step in (5, 6, 7):
        assert run.values("charge", "symmetry:rescale")[step] == pytest.approx(charges[step], rel=1e-12)
        drift = charges[step + 1] - charges[step]
        assert run.values("charge_drift", "symmetry:rescale")[step] == pytest.approx(drift, rel=1e-9)
        assert run.values("charge_drift_predicted", "symmetry:rescale")[step] == pytest.approx(drift, rel=1e-9)
        assert run.values("charge_drift_error", "symmetry:rescale")[step] < 1e-9
        norm = (
            run.values("charge_drift", "symmetry:scale")[step],
            run.values("charge_drift_predicted", "symmetry:scale"),
        )
        assert norm[1][step] == pytest.approx(norm[0], rel=1e-2)
    ((_, first), *_) = run.all("charge_drift_predicted", "symmetry:scale")
    assert first.method == "heavy_ball"
    assert first.stderr < 1e-2 * abs(first.value), "what the epsilon of BatchNorm leaves"
    assert not [m for frame in run.frames for m in frame.measurements if m.scope.count("/")]


def test_other_probes_ask_for_certificates(spool, examples):
    model, asked = relu(), []
    view = TrainingView(8, model, [], dict(model.named_parameters()), None, None, None)
    assert not certified(view)
    probe = Symmetries(every(1))
    train(model, torch.optim.AdamW(model.parameters()), probe, spool, examples)
    asked = certified(view)
    assert {group.label for group in certified(view, Kind.RESCALE)} == {"1, 3", "3, 5"}
    assert len(asked) == 5
    assert scale_invariant(view) == {"0.weight": 16}
    del probe
    gc.collect()
    assert not certified(view), "nobody vouches for them any longer"


def test_adam_conserves_nothing_but_is_accounted_for(spool, examples):
    model = relu()
    run = train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), Symmetries(every(1)), spool, examples)
    assert run.values("charge_drift", "symmetry:rescale")[6] != 0.0
    told = run.all("charge_drift_predicted", "symmetry:rescale")
    assert [(m.value, m.status) for _, m in told] == [(None, "unsupported")], "said once"
    assert "AdamW" in told[0][1].reason
    assert max(run.values("symmetry_residual", "symmetry:rescale").values()) < 1e-14, "it holds for any optimizer"


def test_clipping_between_the_look_and_the_update_is_taken_into_account(spool, examples):
    model = relu()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clip = lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    run = train(model, optimizer, Symmetries(every(1)), spool, examples, before=clip)
    assert max(run.values("charge_drift_error", "symmetry:rescale").values()) < 1e-6


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.01}, {"maximize": True}])
def test_nesterov_that_is_written_over_the_gradient(foreach, settings, spool, examples):
    """Without decay the foreach form leaves g + mu v' in `.grad`; clipping is still told from it."""
    optimizer = torch.optim.SGD(
        (model := relu()).parameters(), lr=0.02, momentum=0.9, nesterov=True, foreach=foreach, **settings
    )
    clip = lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    run = train(model, optimizer, Symmetries(every(1)), spool, examples, before=clip)
    errors = run.values("charge_drift_error", "symmetry:rescale")
    assert set(errors) == {5, 6, 7}
    assert max(errors.values()) < 1e-6


def test_clipping_by_value_is_not_guessed(spool, examples):
    model = relu()
    clip = lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    run = train(model, torch.optim.SGD(model.parameters(), lr=0.1), Symmetries(every(1)), spool, examples, before=clip)
    ((_, told),) = run.all("charge_drift_predicted", "symmetry:rescale")
    assert told.status == "unsupported"
    assert "more than one factor" in told.reason


def test_scopes_of_blocks(spool, examples):
    model = relu()
    run = train(
        model, torch.optim.SGD(model.parameters(), lr=0.1), Symmetries(every(1), per_block=True), spool, examples
    )
    whole, parts = (
        run.values("charge", "symmetry:rescale"),
        [run.values("charge", f"symmetry:rescale/{b}") for b in "13"],
    )
    assert whole[6] == pytest.approx(parts[0][6] + parts[1][6], rel=1e-12)


def test_a_symmetry_that_breaks_loses_its_certificate_and_is_seen_to(spool, examples):
    """In the middle of the run ReLU is exchanged for GELU: the balance ends."""
    model, probe = relu(), Symmetries(every(1))

    def exchange(step):
        if step == 6:
            model[4] = nn.GELU()

    run = train(model, torch.optim.SGD(model.parameters(), lr=0.1), probe, spool, examples, steps=12, each=exchange)
    assert run.values("symmetry_groups", "symmetry:rescale") == {4: 2, 9: 1}, "three looks above the floor"
    residual = run.values("symmetry_residual", "symmetry:rescale")
    assert residual[6] < 1e-14
    assert residual[7] > 1e-3


def test_the_test_by_rescaling_in_a_run(spool, examples):
    model, probe = relu(), Symmetries(every(1), rescale=True)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), probe, spool, examples, steps=12)
    assert len(probe.rescaled) == 5
    assert all(found.invariant for found in probe.rescaled.values())


def test_a_loss_that_cannot_be_evaluated_again_costs_that_test_only(examples):
    model, probe, waiting = relu(), Symmetries(rescale=True, looks=1), []

    def refuse(work, *, twice=True):
        raise Refusal("The training step cannot be replayed.")

    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    view = TrainingView(0, model, [optimizer], parameters, refuse, lambda v, build: waiting.append((v, build)), None)
    for _ in range(2):
        examples.loss(model, examples.batch(32, 6)).backward()
        view.gradients = {name: p.grad for name, p in parameters.items()}
        probe.prepare(view)
        optimizer.step()
        probe.measure(view)
        values, build = waiting.pop()
        assert build([float(x) for value in values for x in value.reshape(-1)])
    assert not probe.rescaled
    assert probe.notice() == "no test by rescaling (The training step cannot be replayed.)"
    assert not probe.replays
    probe.reset()
    assert probe.replays


@pytest.mark.parametrize("settings", [{}, {"rope": "", "bias": True, "shared": 2}])
def test_the_drift_of_every_form_in_a_transformer(settings, spool, transformer, tokens):
    model, loss = transformer(**settings), tokens.loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    with Recorder(model, optimizer, loss, [Symmetries(every(1))], sink=spool.url, budget=0, strict=True) as recorder:
        for step in range(8):
            batch = tokens.batch(step)
            optimizer.zero_grad()
            loss(model, batch).backward()
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    for kind in ("gated", "value_output", "query_key" if settings else "query_key_pair", "rescale", "residual_stream"):
        errors = run.values("charge_drift_error", f"symmetry:{kind}")
        assert set(errors) >= {5, 6, 7}, kind
        assert max(errors.values()) < (1e-5 if kind == "residual_stream" else 1e-9), "RMSNorm's epsilon, or rounding"
        assert all(run.values("charge_drift", f"symmetry:{kind}").values()), "there is something to predict"


class NoWaiting(TorchDispatchMode):
    """Raises where the device would be waited for: a number read, or a shape that depends on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "aten.equal", "is_nonzero")):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("certify", [False, True])
def test_the_device_is_not_waited_for_and_nothing_is_changed(certify, spool, examples, training_state, digest):
    """A fake asynchronous device: numbers are only handed over afterwards, and reading one in between raises."""
    model, probe, waiting = relu(), Symmetries(every(1)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if certify:
        train(model, optimizer, probe, spool, examples)
    examples.loss(model, examples.batch(32, 6)).backward()
    parameters = dict(model.named_parameters())
    view = TrainingView(0, model, [optimizer], parameters, None, lambda v, build: waiting.append((v, build)), None)
    view.gradients, view.gradient_scale = {name: p.grad for name, p in parameters.items()}, torch.ones(())
    before = digest(training_state(model, [optimizer]))
    with NoWaiting():
        probe.prepare(view)
    assert digest(training_state(model, [optimizer])) == before
    optimizer.step()
    after = digest(training_state(model, [optimizer]))
    with NoWaiting():
        assert probe.measure(view) == []
    assert digest(training_state(model, [optimizer])) == after
    ((values, build),) = waiting
    found = build([float(x) for value in values for x in value.reshape(-1)])
    assert bool([m for m in found if m.observable == "charge_drift"]) == certify
    assert all(m.value is None or math.isfinite(m.value) for m in found)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("settings", [None, {}, {"rope": "", "bias": True, "shared": 2}])
def test_nothing_is_read_where_there_are_no_numbers(settings, momentum, examples, tokens, transformer):
    """On the meta device any way to read a number raises; the first look certifies whatever is told to hold."""
    model, batch = (relu(), examples.batch(32, 6)[0]) if settings is None else (transformer(**settings), tokens.batch())
    model, batch, probe, waiting = model.to("meta"), batch.to("meta"), Symmetries(every(1), looks=1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    parameters = dict(model.named_parameters())
    view = TrainingView(0, model, [optimizer], parameters, None, lambda v, build: waiting.append((v, build)), None)
    view.gradient_scale, counts = torch.ones((), device="meta"), []
    for clipped in (False, False, True):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        view.gradients = {name: p.grad for name, p in parameters.items()}
        probe.prepare(view)
        if clipped:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert probe.measure(view) == []
        ((values, build),) = waiting
        assert {value.device.type for value in values} == {"meta"}
        counts.append(len(values))
        groups = sum(value.numel() == 3 for value in values)
        build([0.0, 1.0, 1.0] * groups + [1.0] * 8 * (len(values) - groups))
        waiting.clear()
    assert len(probe.certificates.certified()) >= 5
    assert counts[2] == counts[1] > counts[0], "charges of what is certified"


def test_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"looks=0"):
        Symmetries(looks=0)
