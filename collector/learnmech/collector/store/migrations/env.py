"""Alembic's way in: runs the revisions on the connection that `migrate` opened, inside its transaction."""

from alembic import context

from learnmech.collector.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite alters tables by copying them
)
context.run_migrations()
