"""Run by Alembic: the migrations, in the transaction of the connection that we were given."""

from alembic import context

from proxy.storage.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
