"""The ledger: what each request has used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "ledger",
        sa.Column("id", sa.String(500), primary_key=True),
        sa.Column("ended", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("job_id", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("endpoint", sa.String(200), nullable=False),
        sa.Column("route", sa.String(200), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(100), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("tokens_in", sa.BigInteger),
        sa.Column("tokens_out", sa.BigInteger),
        sa.Column("queue_seconds", sa.Float),
        sa.Column("execution_seconds", sa.Float),
        sa.Column("is_execution_told", sa.Boolean),
        sa.Column("was_cold", sa.Boolean),
        sa.Column("dollars", sa.Float),
    )
    op.create_index("ledger_by_end", "ledger", ["ended"])
    op.create_index("ledger_by_key", "ledger", ["key", "ended"])
