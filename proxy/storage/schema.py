"""The tables. Who adds one, or a column, adds a migration in `migrations/versions/` as well."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
)

METADATA: Final = MetaData()

REVISIONS: Final = Table(
    "revisions",
    METADATA,
    Column("subject", String(40), primary_key=True),
    Column("number", Integer, nullable=False),
)
"""How often each subject, such as `keys`, has changed: what running proxies ask for."""

KEYS: Final = Table(
    "keys",
    METADATA,
    Column("name", String(200), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("models", JSON(none_as_null=True)),
    Column("may_warm", Boolean, nullable=False),
    Column("may_name_tenants", Boolean, nullable=False, server_default=false()),
    Column("may_administer", Boolean, nullable=False, server_default=false()),
    Column("limits", JSON, nullable=False),
)
"""Keys that clients may use; times are Unix times in seconds."""

SESSIONS: Final = Table(
    "sessions",
    METADATA,
    Column("token", LargeBinary(32), primary_key=True),
    Column("key", LargeBinary(32), nullable=False),
    Column("began", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
)
"""Sessions of admins: the SHA-256 of each one's token, and of the key that began it."""
