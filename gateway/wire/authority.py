"""The grammar of a host, as it stands in a Host field, an origin, a URL and our allow-lists."""

from __future__ import annotations

__all__ = ["HOST"]

HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)"
"""
A pattern for one (RFC 9110 section 7.2, RFC 3986 section 3.2.2), without percent-encoding and
future IP literals: a host we serve or ask needs neither.
"""
