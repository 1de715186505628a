"""The whole way of 'measure now': a request, a collector, an answer to a batch, a probe that measures once."""

import threading
import time

import httpx
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnmech.collector.service.server import Service
from learnmech.collector.service.settings import Settings
from learnmech.collector.store import Store, requests
from learnmech.probes import Recorder, Sharpness, Vitals, WeightDynamics, every, on_demand
from learnmech.probes.lightning import MechanicsMonitor

TOKEN = "a-token-of-thirty-two-characters"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """A second request a moment after the first is one of its own."""
    monkeypatch.setattr(requests, "PAUSE", 0.0)


class Reader:
    """Somebody at a screen: asks, and looks at what comes."""

    def __init__(self, http, store, url):
        self._http, self._store, self.url = http, store, url

    def running(self):
        return next((run for run in self._store.runs() if run.status == "running" and run.points), None)

    def ask(self):
        return self._http.post(f"/v1/runs/{self.running().id}/measure")

    def steps(self, observable):
        return self._store.observations(self._store.runs()[0].id, observable)["step"]

    def events(self, kind):
        return [event for event in self._store.events(self._store.runs()[0].id) if event.kind == kind]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader of a collector that runs."""
    monkeypatch.setenv("LEARNMECH_TOKEN", TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        Store.open(f"sqlite:///{tmp_path / 'service.db'}") as store,
        Service(Settings(port=0, token=TOKEN), store) as service,
        httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=20) as http,
    ):
        yield Reader(http, store, service.url)


class Watching:
    """Called after every step; asks when it is time, and ends the training a while after the answer."""

    def __init__(self, reader, requests=1):
        self.reader, self.left, self.asked, self.done_at = reader, requests, [], 0.0
        self.began = time.monotonic()

    def over(self, step):
        time.sleep(0.005)
        assert time.monotonic() - self.began < 60
        measured = len(self.reader.steps("weight_norm")) if self.asked else 0
        if self.left and len(self.asked) == measured and self.reader.running() is not None:
            self.left -= 1
            answer = self.reader.ask()
            assert answer.status_code == 200, answer.text
            self.asked.append(step)
        elif not self.left and measured == len(self.asked) and not self.done_at:
            self.done_at = time.monotonic()
        # Longer than the courier needs for a few more answers with the same number.
        return bool(self.done_at) and time.monotonic() - self.done_at > 1.5


def mean_square(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def train(recorder, model, optimizer, over):
    batch = (torch.ones(8, 2), torch.ones(8, 1))
    with recorder:
        step = 0
        while not over(step):
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
            step += 1


def test_a_request_is_measured_within_seconds_and_once(reader):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ask = on_demand()
    probes = [Vitals(every(10)), WeightDynamics(ask), Sharpness(ask, name="sharpness_now")]
    recorder = Recorder(model, optimizer, mean_square, probes, sink=reader.url, run="asked", strict=True)
    watching = Watching(reader, requests=2)
    train(recorder, model, optimizer, watching.over)
    first, second = watching.asked
    measured = reader.steps("weight_norm")
    assert len(measured) == 2, "each request once, however many answers said it"
    assert measured == reader.steps("sharpness"), "every probe that listens, at the same step"
    assert first < measured[0] <= second < measured[1]
    assert [event.data for event in reader.events("measure_requested")] == [{"request": 1}, {"request": 2}]
    assert reader._http.post(f"/v1/runs/{reader._store.runs()[0].id}/measure").status_code == 409, "it has ended"

    # The same run goes on as another attempt, with the same schedules: what was answered is not measured again.
    again = Watching(reader, requests=0)
    again.done_at = time.monotonic()
    resumed = Recorder(model, optimizer, mean_square, probes, sink=reader.url, run="asked", strict=True)
    resumed.load_state_dict(recorder.state_dict())
    train(resumed, model, optimizer, again.over)
    assert reader._store.runs()[0].attempts == 2
    assert reader.steps("weight_norm") == measured


def test_a_run_without_a_listener_cannot_be_asked(reader):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    recorder = Recorder(model, optimizer, mean_square, [Vitals(every(1))], sink=reader.url, strict=True)
    answers = []

    def over(step):
        time.sleep(0.005)
        if reader.running() is not None:
            answers.append(reader.ask())
        return bool(answers)

    train(recorder, model, optimizer, over)
    assert answers[0].status_code == 409
    assert "no probe" in answers[0].json()["error"]


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, index):
        return mean_square(self.layer, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Reading(Callback):
    def __init__(self, watching):
        self.watching = watching

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        trainer.should_stop = self.watching.over(trainer.global_step)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_under_lightning(reader):
    before = set(threading.enumerate())
    watching = Watching(reader)
    monitor = MechanicsMonitor([Vitals(every(10)), WeightDynamics(on_demand())], sink=reader.url, strict=True)
    trainer = Trainer(
        max_epochs=-1, callbacks=[monitor, Reading(watching)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.ones(800, 2), torch.ones(800, 1)), batch_size=8)
    trainer.fit(Regression(), data)
    assert len(reader.steps("weight_norm")) == 1
    for thread in {thread for thread in threading.enumerate() if thread.name == "learnmech-courier"} - before:
        thread.join(20)
        assert not thread.is_alive()
