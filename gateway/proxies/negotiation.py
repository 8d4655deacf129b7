"""What a request's Accept and Content-Type allow (RFC 9110 sections 8.3 and 12.5.1)."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["accepts", "isJSON"]

_PARAMETER = re.compile(
    rb"""[ \t]*;[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("[^"]*"|[^;, \t"]*)[ \t]*"""
)


@lru_cache(maxsize=256)
def accepts(value: bytes) -> tuple[bool, bool]:
    """
    Whether an Accept allows JSON, and whether it allows an event stream.

    value: the field's value, its lines joined by commas; b"" where there is none, which
        allows both. The most specific range with its weight decides.
    """
    if not value.strip():
        return True, True
    ranges: dict[bytes, bool] = {}
    for item in value.split(b","):
        name, _, parameters = item.partition(b";")
        weight = 1.0
        for key, quality in _PARAMETER.findall(b";" + parameters):
            if key.lower() == b"q":
                weight = _weight(quality)
        ranges[name.strip().lower()] = weight > 0
    return (
        _allowed(ranges, b"application/json", b"application/*"),
        _allowed(ranges, b"text/event-stream", b"text/*"),
    )


def _weight(quality: bytes) -> float:
    try:
        return float(quality)
    except ValueError:
        return 1.0


def _allowed(ranges: dict[bytes, bool], exact: bytes, family: bytes) -> bool:
    for name in (exact, family, b"*/*"):
        if name in ranges:
            return ranges[name]
    return False


@lru_cache(maxsize=256)
def isJSON(value: bytes) -> bool:
    """Whether a Content-Type is application/json in UTF-8 (its default, RFC 8259 section 8.1)."""
    name, semicolon, parameters = value.partition(b";")
    if name.strip().lower() != b"application/json":
        return False
    for key, charset in _PARAMETER.findall(semicolon + parameters):
        if key.lower() == b"charset" and charset.strip(b'"').lower() not in (b"utf-8", b"utf8"):
            return False
    return True
