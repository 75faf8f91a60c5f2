"""The tables. Who adds one, or a column, adds a migration in `migrations/versions/` as well."""

from typing import Final

from sqlalchemy import Column, Integer, MetaData, String, Table

METADATA: Final = MetaData()

REVISIONS: Final = Table(
    "revisions",
    METADATA,
    Column("subject", String(40), primary_key=True),
    Column("number", Integer, nullable=False),
)
"""How often each subject, such as `keys`, has changed: what running proxies ask for."""
