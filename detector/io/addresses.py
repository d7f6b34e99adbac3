"""Addresses of remote files as paths and texts; nothing is opened here."""

from __future__ import annotations

import re
from pathlib import Path

from detector.errors import ConfigError

# Schemes that can list a folder, and the package of each; https cannot.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
WEB = "https"
_LOGIN = re.compile(r"([A-Za-z][\w+.-]+:/{1,2})[^/\s'\"]*@")
_QUERY = re.compile(r"([A-Za-z][\w+.-]+:/{1,2}[^?#\s'\"]*)[?#][^\s'\"]*")


def address_of(path: str | Path) -> str | None:
    """Return the address that a path stands for, such as s3://bucket/a.jpg; None for any other path."""
    scheme, colon, rest = Path(path).as_posix().partition(":/")
    is_address = colon and scheme in (*PACKAGES, WEB) and rest.strip("/")
    return f"{scheme}://{rest.lstrip('/')}" if is_address else None


def without_secrets(text: str) -> str:
    """Return a text without the names, passwords and queries of addresses in it, for messages."""
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))


def require_plain_address(text: str) -> None:
    """Reject an address with a name, a password, a query or a way up.

    Raises:
        ConfigError: it has one; the message does not repeat it.
    """
    _, _, rest = text.partition(":/")
    if "@" in rest.lstrip("/").partition("/")[0] or set("?#") & set(rest) or ".." in rest.split("/"):
        raise ConfigError(
            f"{without_secrets(text)}: expected an address without user, password, query and '..', got one with; give "
            "credentials by the environment variables or files of the storage"
        )
