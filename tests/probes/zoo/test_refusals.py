"""Modules that cannot be isolated are refused with a remedy, and unharmed."""

from learnmech.probes.lightning import MechanicsMonitor


def test_manual_optimization_is_refused(monitored, zoo, refused):
    class Manual(zoo.Base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss_of(*batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

    refused(monitored(Manual), "by hand", "loss=")


def test_scheduler_stepped_in_the_step_is_refused(monitored, zoo, refused):
    class Scheduler(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.lr_schedulers().step()
            return loss

    refused(monitored(Scheduler), "schedulers", "loss=")


def test_own_batches_are_refused(monitored, zoo, refused):
    class Iterates(zoo.Base):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.loss_of(*batch)

    refused(monitored(Iterates), "dataloader_iter", "loss=")


def test_gradient_hooks_are_refused(monitored, zoo, refused):
    """The hooked gradient is not the gradient of any loss."""

    class Hooked(zoo.Base):
        def __init__(self):
            super().__init__()
            self.net[0].weight.register_hook(lambda g: 1.1 * g)

    refused(monitored(Hooked), "replayed gradient differs", "loss=")


_everything_seen: list[float] = []


def test_state_outside_the_module_is_found_out(train, zoo, eager_probes, recorded, tmp_path, refused):
    """A module-global list that drives the loss cannot be put back, but the self-test sees that the gradient is off."""

    class Global(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = self.loss_of(*batch)
            _everything_seen.append(1.0)
            return loss * (1 + 0.01 * len(_everything_seen))

    _everything_seen.clear()
    trial = train(Global, MechanicsMonitor(eager_probes(), sink=f"spool:{tmp_path}/spool"))
    assert trial.error is None
    run = recorded(tmp_path / "spool")
    refused(run, "replayed gradient differs", "loss=")
    assert len(_everything_seen) == 13, "12 steps and the one replay of the self-test"
    (event,) = run.of_kind("self_test")
    assert event.data["error"] > 1e-3


def test_a_loss_function_is_the_way_out(monitored, zoo, eager_probes, tmp_path):
    class Manual(zoo.Base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss_of(*batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

    monitor = MechanicsMonitor(
        eager_probes(), sink=f"spool:{tmp_path}/spool", loss=lambda model, batch: model.loss_of(*batch)
    )
    run = monitored(Manual, monitor=monitor)
    assert len(run.all("sharpness")) >= 10
    assert {m.status for _, m in run.all("sharpness")} <= {"ok", "not_converged"}
