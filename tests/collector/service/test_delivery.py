"""The two ends together: the probes' outbox delivers to a real collector."""

import pytest

from learnmech import wire
from learnmech.collector.service.server import Service
from learnmech.collector.service.settings import Settings
from learnmech.probes.delivery import Outbox


@pytest.fixture
def info(run_info):
    return run_info("delivered")


@pytest.fixture
def outbox(request, tmp_path, info):
    """Make an outbox with a spool of its own."""

    def make(url: str) -> Outbox:
        box = Outbox(info, sink=url, spool=tmp_path / "spool")
        box.start()
        request.addfinalizer(lambda: box.close(1))
        return box

    return make


def test_an_outage_in_mid_run_loses_and_doubles_nothing(store, outbox, info):
    with Service(Settings(port=0), store) as service:
        box = outbox(service.url)
        for step in range(100):
            box.put(step, [wire.Measurement("loss", step + 0.5)])
        assert box.flush(20)
    for step in range(100, 200):
        box.put(step, [wire.Measurement("loss", step + 0.5)])
    assert not box.flush(0.1), "nobody is there to take it"
    with Service(Settings(port=service.port), store):
        assert box.flush(40)
        box.close(5)
    columns = store.observations(info.id, "loss")
    assert columns["step"] == list(range(200))
    assert columns["value"] == [step + 0.5 for step in range(200)]


def test_a_wrong_token_loses_nothing(store, outbox, token, caplog):
    with Service(Settings(port=0, token=token), store) as service:
        box = outbox(service.url.replace("//", "//not-the-token-at-all@"))
        box.put(0, [wire.Measurement("loss", 1.0)])
        assert not box.flush(1)
        assert not store.runs()
    assert "token" in caplog.text


def test_the_right_token_delivers(store, outbox, info, token, monkeypatch):
    monkeypatch.setenv("LEARNMECH_TOKEN", token)
    with Service(Settings(port=0, token=token), store) as service:
        box = outbox(service.url)
        box.put(0, [wire.Measurement("loss", 1.0), wire.Measurement("no_such_thing", 1.0)])
        assert box.flush(20)
        box.close(5)
    assert store.observations(info.id, "loss")["value"] == [1.0]
