"""Alembic's entry: migrations run on the connection that ``Database.migrate`` opened, in its transaction."""

from alembic import context

from everyformer.site.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
