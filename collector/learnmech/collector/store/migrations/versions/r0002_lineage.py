"""Attempts that were resumed from one checkpoint are told apart; views show the path to the newest of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("attempt") as attempt:
        attempt.add_column(sa.Column("claimed", sa.Integer))
        attempt.add_column(sa.Column("identity", sa.Text))
        attempt.add_column(sa.Column("begun", sa.Double))
        attempt.add_column(sa.Column("parent", sa.Text))
    op.execute("UPDATE attempt SET claimed = attempt")
    with op.batch_alter_table("attempt") as attempt:
        attempt.alter_column("claimed", existing_type=sa.Integer, nullable=False)
        attempt.create_unique_constraint("attempt_run_id_identity_key", ["run_id", "identity"])
