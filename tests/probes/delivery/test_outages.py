"""Outages over real sockets: a collector that goes and comes back, and a network that cuts, stalls and storms."""

import logging
import time

from learnmech.probes.delivery import Outbox
from learnmech.wire import Measurement
from learnmech.wire.spool import batches


def test_a_collector_that_goes_and_comes_back_costs_nothing(serve, store, run, quick, spool, caplog):
    collector = serve()
    port = collector.server_address[1]
    box = Outbox(run, sink=collector.url)
    for step in range(10):
        box.put(step, [Measurement("loss", 1.0)])
    assert box.flush(20)
    collector.stop()
    for step in range(10, 30):
        box.put(step, [Measurement("loss", 1.0)])
    assert not box.flush(0.3)
    assert [frame.step for batch in batches(spool) for frame in batch.frames][-20:] == list(range(10, 30))
    collector = serve(port)
    assert box.flush(20)
    box.close()
    assert store.order[next(iter(store.order))] == list(range(30))
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1


def test_a_network_that_cuts_stalls_and_storms_costs_nothing(serve, store, run, quick):
    collector = serve()
    count = 0

    def answer(request, batch):
        nonlocal count
        count += 1
        match count % 6:
            case 0:
                return "hang up"
            case 1:
                store.deliver(batch)  # committed, and the answer is lost
                return "hang up"
            case 2:
                return 503, {"error": "storm"}, {"Retry-After": "0.01"}
            case 3:
                return 429, b"", {}
            case 4:
                return 500, b"oops", {}
        return None

    collector.answer = answer
    box = Outbox(run, sink=collector.url)
    for step in range(120):
        box.put(step, [Measurement("loss", float(step))] * 100)
        if step % 10 == 0:
            time.sleep(0.02)
    assert box.flush(30)
    box.close()
    assert store.order[next(iter(store.order))] == list(range(120))
