"""Arrays and objects taken apart and put together again, each part as it was spelled."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from gateway.wire.strictjson import NotJSON, parsed, unmasked

__all__ = ["items", "spelled"]

_decodeItems = msgspec.json.Decoder(list[Raw]).decode


def items(array: Raw | bytes | None) -> list[bytes]:
    """The items of an accepted array; [] for anything else."""
    data = b"" if array is None else bytes(array)
    if data[:1] != b"[":
        return []
    try:
        found, _ = parsed(_decodeItems, data)
    except NotJSON:
        return []
    return [unmasked(item) for item in found]


def spelled(value: object) -> bytes:
    """As JSON; what is Raw in it stays as it was, names with half a surrogate pair, too."""
    return unmasked(msgspec.json.encode(value))
