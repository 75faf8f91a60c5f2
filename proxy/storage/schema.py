"""The tables. Who adds one, or a column, adds a migration in `migrations/versions/` as well."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
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

LEDGER: Final = Table(
    "ledger",
    METADATA,
    Column("id", String(500), primary_key=True),
    Column("ended", BigInteger, nullable=False),
    Column("request_id", String(200), nullable=False),
    Column("job_id", String(200), nullable=False),
    Column("key", String(200), nullable=False),
    Column("model", String(200), nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("route", String(200), nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", String(100), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("tokens_in", BigInteger),
    Column("tokens_out", BigInteger),
    Column("are_tokens_told", Boolean),
    Column("queue_seconds", Float),
    Column("execution_seconds", Float),
    Column("is_execution_told", Boolean),
    Column("was_cold", Boolean),
    Column("dollars", Float),
    Index("ledger_by_end", "ended"),
    Index("ledger_by_key", "key", "ended"),
)
"""What requests have used, without a word of theirs; `ended` is a Unix time in seconds."""
