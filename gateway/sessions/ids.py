"""Session ids: 256 bits from the operating system, as 43 visible ASCII characters."""

from __future__ import annotations

import hashlib
import re
import secrets

__all__ = ["looksLikeSessionID", "newSessionID", "tagOf"]

_FORM = re.compile(r"[A-Za-z0-9_-]{43}\Z", re.ASCII)
_TAG_KEY = secrets.token_bytes(32)


def newSessionID() -> str:
    """A fresh, unguessable session id (base64url of 32 random bytes)."""
    return secrets.token_urlsafe(32)


def looksLikeSessionID(text: str) -> bool:
    """Whether a text has the form of our ids; anything else need not be looked up."""
    return _FORM.match(text) is not None


def tagOf(id: str) -> str:
    """Eight hex digits that stand for a session in logs; keyed, so they tell nothing of the id."""
    return hashlib.blake2b(id.encode(), key=_TAG_KEY, digest_size=4).hexdigest()
