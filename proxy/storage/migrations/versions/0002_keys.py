"""Keys that clients may use."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table, and the number that counts its changes."""
    op.create_table(
        "keys",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
        sa.Column("revoked", sa.BigInteger),
        sa.Column("models", sa.JSON(none_as_null=True)),
        sa.Column("may_warm", sa.Boolean, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
    )
    op.execute("INSERT INTO revisions (subject, number) VALUES ('keys', 0)")
