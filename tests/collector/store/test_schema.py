"""The tables are what the migrations make, and the views are what was promised."""

import hashlib

import pytest

from learnmech.collector.store import REVISION, VIEWS, Store, codes, migrate
from learnmech.laws import Verdict
from learnmech.observables import Status

OBSERVATIONS = "run run_id step time observable scope value stderr status nonfinite"
PROMISED = {
    "runs": "run run_id project status since created last_seen last_step points attempts tags context revision",
    "observations": OBSERVATIONS,
    "latest": OBSERVATIONS,
    "residuals": "run run_id step time law scope measured measured_stderr predicted lower upper ratio verdict reason",
    "events": "run run_id event_id attempt step time received kind severity message data",
    "ticks": "run run_id step time samples tokens",
    "measurements": (
        "run run_id attempt step time received samples tokens observable scope value stderr status reason method cost "
        "nonfinite superseded"
    ),
}

# The views of a database are made anew by an upgrade, and by nothing else. So: whoever changes a view adds a revision
# (it may be empty), raises REVISION, and then puts both new values here.
VIEWS_AT_REVISION = ("0003", "3711138da71c")


def test_the_views_have_the_promised_columns(store):
    assert set(VIEWS) == set(PROMISED)
    for name, columns in PROMISED.items():
        with store.database.reading() as connection:
            found = connection.exec_driver_sql(f"SELECT * FROM {name}").keys()
        assert " ".join(found) == columns == " ".join(VIEWS[name].columns)
        assert VIEWS[name].description.endswith(".")


def test_a_change_of_a_view_comes_with_a_revision():
    text = " ".join(f"{name}: {' '.join(view.select.split())}" for name, view in sorted(VIEWS.items()))
    assert (REVISION, hashlib.sha256(text.encode()).hexdigest()[:12]) == VIEWS_AT_REVISION


def test_the_head_of_the_migrations_is_what_the_code_declares(store):
    assert migrate.scripts().get_heads() == [REVISION]
    assert migrate.differences(store.database) == []


def test_differences_are_seen(url):
    """The comparison above can fail."""
    with Store.open(url) as store:
        with store.database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE run ADD COLUMN colour TEXT")
            connection.exec_driver_sql("CREATE INDEX extra ON tick (time)")
        assert len(migrate.differences(store.database)) == 2


@pytest.mark.postgres
def test_views_say_what_they_are(postgres):
    url = postgres.learnmech()
    with Store.open(url) as store, store.database.reading() as connection:
        for name, view in VIEWS.items():
            comment = connection.exec_driver_sql("SELECT obj_description(%(n)s::regclass)", {"n": name}).scalar()
            assert comment == view.description
    postgres.drop(url)


@pytest.mark.postgres
def test_the_key_of_a_point_is_sixteen_bytes_and_its_only_index(postgres):
    url = postgres.learnmech()
    with Store.open(url) as store, store.database.reading() as connection:
        indices = (
            connection.exec_driver_sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'point'").scalars().all()
        )
        sizes = connection.exec_driver_sql(
            "SELECT sum(t.typlen) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
            "WHERE a.attrelid = 'point_pkey'::regclass"
        ).scalar()
    postgres.drop(url)
    assert len(indices) == 1
    assert sizes == 16


def test_every_word_has_a_code_and_no_code_two_words():
    assert set(codes.STATUS) == set(Status)
    assert set(codes.VERDICT) == set(Verdict)
    for words in (codes.STATUS, codes.VERDICT, codes.NON_FINITE, codes.SEVERITY, codes.ATTEMPT):
        assert len(set(words.values())) == len(words)
