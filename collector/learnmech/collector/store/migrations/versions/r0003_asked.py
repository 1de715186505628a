"""A run can be asked to measure now."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '10s'")  # behind one long reader every writer would queue
    # Nullable, so that a collector of the revision before, which names no such column, goes on until it is replaced.
    for name in ("asked", "asked_of", "told"):
        op.add_column("run", sa.Column(name, sa.Integer))
