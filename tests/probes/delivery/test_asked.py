"""Acknowledgements say that somebody asked for a measurement; the listener hears it once, in a thread of its own."""

import copy
import pickle
import threading
import time

import msgspec
import pytest

from learnmech.probes.delivery import Outbox
from learnmech.probes.delivery import courier as courier_module
from learnmech.sinks import Unavailable


@pytest.fixture
def asking(store):
    """Answers with the number that was asked for last: `asking.number = 3`."""
    deliver = store.deliver

    class Asking:
        number = 0

    store.deliver = lambda batch: msgspec.structs.replace(deliver(batch), asked=Asking.number)
    return Asking


def test_a_request_is_passed_on_once(outbox, asking, quick):
    heard = []
    box = outbox(answer=lambda: heard.append(threading.current_thread().name))
    for number, expected in ((0, 0), (1, 1), (1, 1), (3, 2), (0, 2), (3, 2), (4, 3), (1, 4)):
        asking.number = number
        box.put(number)
        assert box.flush(20)
        assert len(heard) == expected, number
    assert set(heard) == {"learnmech-courier"}


def test_a_request_made_before_the_first_acknowledgement_is_heard(outbox, asking, quick):
    asking.number = 1
    heard = []
    box = outbox(answer=lambda: heard.append(1))
    box.put(0)
    assert box.flush(20)
    assert heard == [1]


def test_a_request_that_comes_when_the_training_has_ended_is_not_passed_on(outbox, asking, quick):
    """Whoever measured it would be another run."""
    heard = []
    box = outbox(answer=lambda: heard.append(1))
    box.put(0)
    assert box.flush(20)
    asking.number = 1
    box.put(1)
    box.close(20)
    assert heard == []


def test_a_request_survives_a_lost_answer(outbox, asking, store, quick):
    def lost(delivery, batch):
        if delivery == 1:
            raise Unavailable("the answer is lost")

    store.after = lost
    asking.number = 1
    heard = []
    box = outbox(answer=lambda: heard.append(1))
    box.put(0)
    assert box.flush(20)
    assert heard == [1]


def test_a_listener_that_raises_does_no_harm(outbox, asking, store, quick, caplog):
    def answer():
        raise ZeroDivisionError("not now")

    box = outbox(answer=answer)
    for step in range(3):
        asking.number = step
        box.put(step)
        assert box.flush(20)
    assert sorted(store.steps) == [0, 1, 2]
    assert box.report().error == ""
    box.close()
    said = [record.message for record in caplog.records if "not now" in record.message]
    assert len(said) == 1
    assert "passing that on failed" in said[0]
    assert len(store.deliveries) == 3, "what was taken is not sent again"


def test_what_a_dead_process_left_brings_no_request(outbox, asking, store, run, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox()
    box.put(0)
    box.close(0.05)
    store.plan = lambda delivery, batch: None
    deliver = store.deliver
    store.deliver = lambda batch: msgspec.structs.replace(deliver(batch), asked=5 if batch.attempt == 0 else 0)
    heard = []
    again = outbox(attempt=1, answer=lambda: heard.append(1))
    again.put(1)
    store.wait(2)
    again.close()
    assert heard == []


def test_a_listener_stays_behind_when_an_outbox_is_pickled(run):
    box = Outbox(run, sink="spool:kept", answer=lambda: None)
    assert pickle.loads(pickle.dumps(box))._answer is None


def test_a_copy_listens_for_nobody(outbox, asking, quick):
    asking.number = 1
    heard = []
    box = outbox(answer=lambda: heard.append(1))
    made = copy.deepcopy(box)
    made.put(0)
    assert made.flush(20)
    made.close()
    assert heard == []


def test_a_silent_run_that_listens_hears_sooner(outbox, asking, store, monkeypatch):
    monkeypatch.setattr(courier_module, "LISTEN", 0.05)
    monkeypatch.setattr(courier_module, "TICK", 0.01)
    heard = threading.Event()
    deaf, box = outbox(), outbox(answer=heard.set)
    for each in (deaf, box):
        each.put(0)
        assert each.flush(20)
    asking.number = 1
    assert heard.wait(20)
    time.sleep(0.1)
    assert {beat.writer for beat in store.heartbeats} == {box._courier.spool.header.writer}
