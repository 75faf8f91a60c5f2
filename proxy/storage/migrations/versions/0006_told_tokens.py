"""Whether the tokens of a row of the ledger were told, or counted as far as they came."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; it stays empty in the rows that there are, whose tokens were told."""
    op.add_column("ledger", sa.Column("are_tokens_told", sa.Boolean))
