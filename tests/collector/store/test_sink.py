"""The store as a sink in the training process."""

import logging

import pytest

from learnmech.collector.judging import Judge
from learnmech.collector.store import InvalidBatch, Store
from learnmech.collector.store.sink import open_sink
from learnmech.sinks import Refused, SinkError, SinkMissing, Unavailable
from learnmech.wire import Measurement


def hyperparameters(**values: float) -> list[Measurement]:
    return [Measurement(name, value) for name, value in values.items()]


def test_it_stores_and_judges(empty_url, writer, new_run):
    someone = writer(new_run(context={"optimizer": "SGD"}))
    sink = open_sink(empty_url)
    known = hyperparameters(learning_rate=0.1, full_batch=1, deterministic_loss=1, weight_decay=0)
    ack = sink.deliver(someone.batch(someone.frame(0, *known, sharpness=5.0)))
    assert ack.accepted == 5
    sink.close()
    with Store.open(empty_url, create=False) as store:
        [law] = store.laws(someone.run.id)
        assert (law.law, law.predicted, law.ratio) == ("edge_of_stability", 20.0, 0.25)


def test_it_opens_nothing_before_the_first_delivery(tmp_path):
    open_sink(f"sqlite:///{tmp_path / 'store.db'}").close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_person_must_put_right_is_retried_slowly(tmp_path, writer):
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    someone = writer()
    sink = open_sink(f"sqlite:///{path}")
    with pytest.raises(Unavailable, match="no SQLite database") as caught:
        sink.deliver(someone.batch())
    assert caught.value.retry_after == 30.0
    path.unlink()
    assert sink.deliver(someone.batch(someone.frame(0, loss=1.0))).accepted == 1
    sink.close()


def test_a_batch_that_never_fits_is_refused(empty_url, writer, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise InvalidBatch("value out of range")

    sink = open_sink(empty_url)
    monkeypatch.setattr(Store, "ingest", refuse)
    with pytest.raises(Refused, match="out of range"):
        sink.deliver(writer().batch())
    sink.close()


@pytest.mark.parametrize("lost", ["store.db-wal", "store.db"])
def test_what_went_into_a_deleted_file_is_not_acknowledged_and_comes_again(tmp_path, writer, lost):
    """Somebody clears the folder in mid-run: SQLite itself would go on writing into the deleted file."""
    path = tmp_path / "store.db"
    someone = writer()
    sink = open_sink(f"sqlite:///{path}")
    assert sink.deliver(someone.batch(someone.frame(0, loss=1.0))).accepted == 1
    for file in tmp_path.glob(f"{lost}*"):
        file.unlink()
    again = someone.batch(someone.frame(1, loss=2.0))
    with pytest.raises(Unavailable, match=r"deleted or replaced"):
        sink.deliver(again)
    sink.deliver(again)
    sink.close()
    with Store.open(f"sqlite:///{path}", create=False) as store:
        assert 2.0 in store.observations(someone.run.id, "loss")["value"]


def test_a_relative_address_means_the_folder_of_its_time(tmp_path, writer, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = open_sink("sqlite:///store.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    someone = writer()
    sink.deliver(someone.batch(someone.frame(0, loss=1.0)))
    sink.close()
    assert (tmp_path / "store.db").is_file()


def test_a_judge_that_breaks_does_not_break_delivery(empty_url, writer, monkeypatch, caplog):
    def explode(*_args, **_kwargs):
        raise ZeroDivisionError("in the judge")

    monkeypatch.setattr(Judge, "judge", explode)
    sink = open_sink(empty_url)
    someone = writer()
    with caplog.at_level(logging.ERROR):
        assert sink.deliver(someone.batch(someone.frame(0, loss=1.0))).accepted == 1
    assert "in the judge" in caplog.text
    sink.close()


def test_malformed_addresses_and_missing_drivers(monkeypatch):
    with pytest.raises(SinkError, match="in memory"):
        open_sink("sqlite://")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SinkMissing, match=r"learnmech\[postgres\]"):
        open_sink("postgresql://host/db")
