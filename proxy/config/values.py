"""What the text of a setting may be: keys, ids, URLs, hosts, names.

Each check returns the value, or raises a ValueError that says in plain words what is wrong with it
and what to do. No message holds the value of a key.
"""

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

import httpx

MAX_KEY_LENGTH = 4096
MIN_ADMIN_KEY_LENGTH = 20
MAX_NAME_LENGTH = 200
MIN_SECRET_LENGTH = 32
BLANKS = " \t\r\n"
"""What files and shells leave around a value. Other blanks, such as U+00A0, are mistakes."""

_QUOTES = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_ID = re.compile(r"(?!xn--)[A-Za-z0-9_-]{1,63}", re.IGNORECASE)
"""Also a label of a host, where `xn--` begins what is no plain ASCII."""
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_-]{1,63})*\.?")
"""A name whose labels DNS can carry; Python's resolver raises UnicodeError for longer ones."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def trimmed(value: object) -> object:
    """The value without blanks around it; refused if quotation marks came along."""
    if not isinstance(value, str):
        return value
    value = value.strip(BLANKS)
    if value and (value[0] in _QUOTES or value[-1] in _QUOTES):
        raise ValueError(
            "quotation marks are part of the value; write it without them "
            "(Docker's --env-file hands them on as they stand)"
        )
    return value


def check_key(key: str) -> str:
    """A key as a header can carry it: visible characters of ASCII."""
    if (odd := odd_character(key)) is not None:
        hint = ", without the word Bearer" if key[:6].lower() == "bearer" else ""
        raise ValueError(f"the key holds {odd}, which no key has; copy it again{hint}")
    if len(key) > MAX_KEY_LENGTH:
        raise ValueError(f"no key is longer than {MAX_KEY_LENGTH} characters; copy it again")
    trimmed(key)
    return key


def check_admin_key(key: str) -> str:
    """One that may administer: it must not be guessed, by whoever knows its SHA-256 either."""
    if len(check_key(key)) < MIN_ADMIN_KEY_LENGTH:
        raise ValueError(
            f"a key that may administer has {MIN_ADMIN_KEY_LENGTH} characters or more; make one "
            "with `openssl rand -hex 24`"
        )
    return key


def check_seal_secret(value: str) -> str:
    """A secret to seal jobs with: a key is made of it, so it has to be beyond guessing."""
    if (odd := odd_character(value)) is not None:
        raise ValueError(f"the secret holds {odd}; make one with: openssl rand -base64 32")
    if not MIN_SECRET_LENGTH <= len(value) <= MAX_KEY_LENGTH:
        raise ValueError(
            f"a secret of at least {MIN_SECRET_LENGTH} characters is needed; make one with: "
            "openssl rand -base64 32"
        )
    return value


def check_id(value: str) -> str:
    """RunPod's id of an endpoint."""
    if value and _ID.fullmatch(value) is None:
        odd = odd_character(value)
        reason = f"it holds {odd}" if odd else "it holds more than that"
        raise ValueError(
            "the endpoint's id alone is needed, letters and digits as in abc123def456 "
            f"(its page in RunPod's console shows it); {reason}"
        )
    return value


def check_name(name: str) -> str:
    """A model's name, as a client may send it."""
    if not name.isprintable():
        raise ValueError(f"the name holds {_described(_first_unprintable(name))}; write it again")
    if trimmed(name) != name:
        raise ValueError("the name begins or ends with a blank")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a name has 1 to {MAX_NAME_LENGTH} characters")
    return name


def check_base_url(value: str) -> str:
    """An HTTP URL without user, query and fragment, and without a slash at its end."""
    if (odd := odd_character(value)) is not None:
        raise ValueError(f"the URL holds {odd}")
    try:
        parts = urlsplit(value)
        port = parts.port
        host = parts.hostname
        _ = httpx.URL(value).host  # decodes labels that begin with xn--
    except (ValueError, httpx.InvalidURL) as exc:  # a port that is none, a bracket that is open
        raise ValueError(f"not a URL: {exc}") from None
    if parts.scheme not in ("http", "https") or not value.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("a URL that begins with https:// or http:// is needed")
    if "@" in parts.netloc:
        raise ValueError("the URL holds a user name or a password; a key belongs in its variable")
    if not host or not is_host(host):
        raise ValueError("the URL has no host, as in https://api.runpod.ai/v2")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("the URL's port is a number from 1 to 65535")
    if "?" in value or "#" in value:
        raise ValueError("the URL goes no further than its path: leave out what follows ? or #")
    return value.rstrip("/")


def check_listen_host(value: str) -> str:
    """An address or a name of this machine to listen on; `[::1]` is written as `::1`."""
    host = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if is_host(host.partition("%")[0] if ":" in host else host):
        return host
    raise ValueError(
        "the address of this machine alone is needed, without scheme, port and path: "
        "127.0.0.1 for this machine only, 0.0.0.0 for all that reach it, or :: with IPv6"
    )


def check_variable(name: str) -> str:
    """The name of an environment variable."""
    if "=" in name or odd_character(name) is not None:
        raise ValueError("the name of an environment variable is needed")
    return name


def shown_variable(name: str) -> str:
    """The variable's name for a message; not what may be a key, written in place of the name."""
    return name if _VARIABLE.fullmatch(name) else "named here"


def printable(text: str) -> str:
    """The text as one line, which shows characters that have no look of their own as numbers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def odd_character(text: str) -> str | None:
    """The first character that is not visible ASCII, in words; None if there is none."""
    for character in text:
        if not "!" <= character <= "~":
            return _described(character)
    return None


def _described(character: str) -> str:
    match character:
        case " ":
            return "a blank"
        case "\n" | "\r":
            return "a line end"
        case "\t":
            return "a tab"
    number = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "").lower()
    return f"the character {number} ({name})" if name else f"the character {number}"


def _first_unprintable(text: str) -> str:
    return next(character for character in text if not character.isprintable())


def is_host(host: str) -> bool:
    """Whether it is an address, or a name that a resolver takes."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
        return True
    return _HOST.fullmatch(host) is not None and len(host) <= 253
