"""The tables. Nothing outside the store reads them: people and dashboards read `views`.

Every key starts with `run_id`, every unique constraint contains it, and nothing refers across runs except `run` itself:
one run is one shard, should the store ever be distributed. No triggers and no extensions, for the same reason.

`point` is the hot table: 16 bytes of key and no other index. Times are seconds since the epoch.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

REVISION = "0003"
"""Newest revision in `migrations/`: what this code reads and writes."""

VERSION_TABLE = "learnmech_version"
"""Where the revision of the schema is kept; also what tells our databases from others."""

FOREVER = 2**63 - 1
"""`attempt.keep_to` of the newest attempt, which nothing has superseded."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def _column(name: str, kind: Any, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


def _key(name: str, kind: Any) -> sa.Column[Any]:
    # The store numbers rows itself, within a run: identities would be per table.
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


project = sa.Table(
    "project",
    metadata,
    sa.Column("project_id", sa.Integer, sa.Identity(), primary_key=True),
    _column("name", sa.Text),
    sa.UniqueConstraint("name"),
)

run = sa.Table(
    "run",
    metadata,
    sa.Column("run_id", sa.Integer, sa.Identity(), primary_key=True),
    _column("uuid", sa.Text),
    _column("project_id", sa.Integer),
    _column("name", sa.Text),
    _column("created", sa.Double),
    _column("last_seen", sa.Double),
    _column("attempt", sa.Integer),  # the newest
    _column("points", sa.BigInteger),
    _column("revision", sa.BigInteger),  # grows with every commit that concerns the run
    _column("judge_from", sa.BigInteger, null=True),  # first step not judged yet; NULL when all is judged
    _column("judgements", sa.BigInteger),  # commits of the judge: tells a judge whether another one was here
    _column(
        "asked", sa.Integer, null=True
    ),  # requests to measure now, of all attempts; these three NULL before the first
    _column("asked_of", sa.Integer, null=True),  # attempt that the last one was made of
    _column("told", sa.Integer, null=True),  # last one that an answer to that attempt has carried
    sa.UniqueConstraint("uuid"),
)

attempt = sa.Table(
    "attempt",
    metadata,
    _key("run_id", sa.Integer),
    _key("attempt", sa.Integer),
    _column("start_step", sa.BigInteger),
    _column("keep_to", sa.BigInteger),  # last step that counts: `lineage`
    _column("last_step", sa.BigInteger, null=True),
    _column("started", sa.Double),
    _column("status", sa.SmallInteger),
    _column("status_time", sa.Double, null=True),  # of the event that decided the status
    _column("rank", sa.Integer),  # of whoever described the attempt
    _column("tags", _JSON),
    _column("context", _JSON),
    _column("claimed", sa.Integer),  # the number in its checkpoint: `attempt` too, unless another had it before
    _column("identity", sa.Text, null=True),  # these three are NULL for an attempt of a client that did not tell
    _column("begun", sa.Double, null=True),  # on the trainer's clock
    _column("parent", sa.Text, null=True),  # identity of the attempt that it goes on from, whether that is here or not
    sa.UniqueConstraint("run_id", "identity"),
)

writer = sa.Table(
    "writer",
    metadata,
    _key("run_id", sa.Integer),
    _key("writer_id", sa.Integer),
    _column("uuid", sa.Text),
    _column("attempt", sa.Integer),
    _column("rank", sa.Integer),
    _column("first_seen", sa.Double),
    _column("last_seen", sa.Double),
    _column("clock_offset", sa.Double),  # least (received - sent): server clock minus client clock, plus the way
    _column("conflicts", sa.BigInteger),  # measurements that somebody else had already recorded
    sa.UniqueConstraint("run_id", "attempt", "uuid"),
)

# The frames that are stored, as runs of sequences without a gap: one row per writer, unless frames are missing.
ledger = sa.Table(
    "ledger",
    metadata,
    _key("run_id", sa.Integer),
    _key("writer_id", sa.Integer),
    _key("first_sequence", sa.BigInteger),
    _column("last_sequence", sa.BigInteger),
    sqlite_with_rowid=False,
)

series = sa.Table(
    "series",
    metadata,
    _key("run_id", sa.Integer),
    _key("series_id", sa.Integer),
    _column("attempt", sa.Integer),
    _column("observable", sa.Text),
    _column("scope", sa.Text),
    _column("points", sa.BigInteger),
    _column("first_step", sa.BigInteger),
    _column("last_step", sa.BigInteger),
    sa.UniqueConstraint("run_id", "observable", "scope", "attempt"),
)

method = sa.Table(
    "method",
    metadata,
    _key("run_id", sa.Integer),
    _key("method_id", sa.Integer),
    _column("name", sa.Text),
)

point = sa.Table(
    "point",
    metadata,
    _key("run_id", sa.Integer),
    _key("series_id", sa.Integer),
    _key("step", sa.BigInteger),
    _column("value", sa.Double, null=True),  # NULL when there is none, and when it is not finite
    _column("stderr", sa.Double, null=True),
    _column("status", sa.SmallInteger),
    _column("nonfinite", sa.SmallInteger, null=True),
    _column("method_id", sa.Integer, null=True),
    _column("cost", sa.Double, null=True),
    _column("reason", sa.Text, null=True),
    sqlite_with_rowid=False,
)

tick = sa.Table(
    "tick",
    metadata,
    _key("run_id", sa.Integer),
    _key("attempt", sa.Integer),
    _key("step", sa.BigInteger),
    _column("time", sa.Double),  # on the trainer's clock
    _column("received", sa.Double),  # on the store's clock
    _column("samples", sa.BigInteger, null=True),
    _column("tokens", sa.BigInteger, null=True),
    sqlite_with_rowid=False,
)

event = sa.Table(
    "event",
    metadata,
    _key("run_id", sa.Integer),
    _key("event_id", sa.Integer),
    _column("attempt", sa.Integer),
    _column("step", sa.BigInteger),
    _column("time", sa.Double),
    _column("received", sa.Double),
    _column("kind", sa.Text),
    _column("severity", sa.SmallInteger),
    _column("message", sa.Text),
    _column("data", _JSON),
)

law_series = sa.Table(
    "law_series",
    metadata,
    _key("run_id", sa.Integer),
    _key("law_series_id", sa.Integer),
    _column("attempt", sa.Integer),
    _column("law", sa.Text),
    _column("scope", sa.Text),
    sa.UniqueConstraint("run_id", "law", "scope", "attempt"),
)

law_point = sa.Table(
    "law_point",
    metadata,
    _key("run_id", sa.Integer),
    _key("law_series_id", sa.Integer),
    _key("step", sa.BigInteger),
    _column("measured", sa.Double, null=True),
    _column("measured_stderr", sa.Double, null=True),
    _column("predicted", sa.Double, null=True),
    _column("predicted_stderr", sa.Double, null=True),
    _column("lower", sa.Double, null=True),
    _column("upper", sa.Double, null=True),
    _column("ratio", sa.Double, null=True),
    _column("status", sa.SmallInteger),
    _column("verdict", sa.SmallInteger),
    _column("version", sa.SmallInteger),  # of the law
    _column("since_step", sa.BigInteger),  # where this verdict began: equal to step in the rows that change it
    _column("reason", sa.Text),
    sqlite_with_rowid=False,
)
# The verdict changes of a run, without reading every residual.
sa.Index(
    "law_point_change_idx",
    law_point.c.run_id,
    law_point.c.law_series_id,
    law_point.c.step,
    sqlite_where=law_point.c.since_step == law_point.c.step,
    postgresql_where=law_point.c.since_step == law_point.c.step,
)
