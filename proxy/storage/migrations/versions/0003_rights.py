"""Rights of keys: to name tenants, and to administer."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; no key that there is may do either."""
    for right in ("may_name_tenants", "may_administer"):
        column = sa.Column(right, sa.Boolean, nullable=False, server_default=sa.false())
        op.add_column("keys", column)
