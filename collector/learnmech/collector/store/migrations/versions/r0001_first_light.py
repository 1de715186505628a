"""First light: runs, attempts, points, events and residuals."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def _column(name: str, kind: Any, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    _identity()
    _delivery()
    _measurements()
    _residuals()


def _identity() -> None:
    op.create_table(
        "project",
        sa.Column("project_id", sa.Integer, sa.Identity(), nullable=False),
        _column("name", sa.Text),
        sa.PrimaryKeyConstraint("project_id", name="project_pkey"),
        sa.UniqueConstraint("name", name="project_name_key"),
    )
    op.create_table(
        "run",
        sa.Column("run_id", sa.Integer, sa.Identity(), nullable=False),
        _column("uuid", sa.Text),
        _column("project_id", sa.Integer),
        _column("name", sa.Text),
        _column("created", sa.Double),
        _column("last_seen", sa.Double),
        _column("attempt", sa.Integer),
        _column("points", sa.BigInteger),
        _column("revision", sa.BigInteger),
        _column("judge_from", sa.BigInteger, null=True),
        _column("judgements", sa.BigInteger),
        sa.PrimaryKeyConstraint("run_id", name="run_pkey"),
        sa.UniqueConstraint("uuid", name="run_uuid_key"),
    )
    op.create_table(
        "attempt",
        _column("run_id", sa.Integer),
        _column("attempt", sa.Integer),
        _column("start_step", sa.BigInteger),
        _column("keep_to", sa.BigInteger),
        _column("last_step", sa.BigInteger, null=True),
        _column("started", sa.Double),
        _column("status", sa.SmallInteger),
        _column("status_time", sa.Double, null=True),
        _column("rank", sa.Integer),
        _column("tags", _JSON),
        _column("context", _JSON),
        sa.PrimaryKeyConstraint("run_id", "attempt", name="attempt_pkey"),
    )


def _delivery() -> None:
    op.create_table(
        "writer",
        _column("run_id", sa.Integer),
        _column("writer_id", sa.Integer),
        _column("uuid", sa.Text),
        _column("attempt", sa.Integer),
        _column("rank", sa.Integer),
        _column("first_seen", sa.Double),
        _column("last_seen", sa.Double),
        _column("clock_offset", sa.Double),
        _column("conflicts", sa.BigInteger),
        sa.PrimaryKeyConstraint("run_id", "writer_id", name="writer_pkey"),
        sa.UniqueConstraint("run_id", "attempt", "uuid", name="writer_run_id_attempt_uuid_key"),
    )
    op.create_table(
        "ledger",
        _column("run_id", sa.Integer),
        _column("writer_id", sa.Integer),
        _column("first_sequence", sa.BigInteger),
        _column("last_sequence", sa.BigInteger),
        sa.PrimaryKeyConstraint("run_id", "writer_id", "first_sequence", name="ledger_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "event",
        _column("run_id", sa.Integer),
        _column("event_id", sa.Integer),
        _column("attempt", sa.Integer),
        _column("step", sa.BigInteger),
        _column("time", sa.Double),
        _column("received", sa.Double),
        _column("kind", sa.Text),
        _column("severity", sa.SmallInteger),
        _column("message", sa.Text),
        _column("data", _JSON),
        sa.PrimaryKeyConstraint("run_id", "event_id", name="event_pkey"),
    )


def _measurements() -> None:
    op.create_table(
        "series",
        _column("run_id", sa.Integer),
        _column("series_id", sa.Integer),
        _column("attempt", sa.Integer),
        _column("observable", sa.Text),
        _column("scope", sa.Text),
        _column("points", sa.BigInteger),
        _column("first_step", sa.BigInteger),
        _column("last_step", sa.BigInteger),
        sa.PrimaryKeyConstraint("run_id", "series_id", name="series_pkey"),
        sa.UniqueConstraint(
            "run_id", "observable", "scope", "attempt", name="series_run_id_observable_scope_attempt_key"
        ),
    )
    op.create_table(
        "method",
        _column("run_id", sa.Integer),
        _column("method_id", sa.Integer),
        _column("name", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "method_id", name="method_pkey"),
    )
    op.create_table(
        "point",
        _column("run_id", sa.Integer),
        _column("series_id", sa.Integer),
        _column("step", sa.BigInteger),
        _column("value", sa.Double, null=True),
        _column("stderr", sa.Double, null=True),
        _column("status", sa.SmallInteger),
        _column("nonfinite", sa.SmallInteger, null=True),
        _column("method_id", sa.Integer, null=True),
        _column("cost", sa.Double, null=True),
        _column("reason", sa.Text, null=True),
        sa.PrimaryKeyConstraint("run_id", "series_id", "step", name="point_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tick",
        _column("run_id", sa.Integer),
        _column("attempt", sa.Integer),
        _column("step", sa.BigInteger),
        _column("time", sa.Double),
        _column("received", sa.Double),
        _column("samples", sa.BigInteger, null=True),
        _column("tokens", sa.BigInteger, null=True),
        sa.PrimaryKeyConstraint("run_id", "attempt", "step", name="tick_pkey"),
        sqlite_with_rowid=False,
    )


def _residuals() -> None:
    op.create_table(
        "law_series",
        _column("run_id", sa.Integer),
        _column("law_series_id", sa.Integer),
        _column("attempt", sa.Integer),
        _column("law", sa.Text),
        _column("scope", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "law_series_id", name="law_series_pkey"),
        sa.UniqueConstraint("run_id", "law", "scope", "attempt", name="law_series_run_id_law_scope_attempt_key"),
    )
    op.create_table(
        "law_point",
        _column("run_id", sa.Integer),
        _column("law_series_id", sa.Integer),
        _column("step", sa.BigInteger),
        _column("measured", sa.Double, null=True),
        _column("measured_stderr", sa.Double, null=True),
        _column("predicted", sa.Double, null=True),
        _column("predicted_stderr", sa.Double, null=True),
        _column("lower", sa.Double, null=True),
        _column("upper", sa.Double, null=True),
        _column("ratio", sa.Double, null=True),
        _column("status", sa.SmallInteger),
        _column("verdict", sa.SmallInteger),
        _column("version", sa.SmallInteger),
        _column("since_step", sa.BigInteger),
        _column("reason", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "law_series_id", "step", name="law_point_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "law_point_change_idx",
        "law_point",
        ["run_id", "law_series_id", "step"],
        sqlite_where=sa.text("since_step = step"),
        postgresql_where=sa.text("since_step = step"),
    )
