"""A number for each subject that running proxies keep in memory."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "revisions",
        sa.Column("subject", sa.String(40), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
    )
