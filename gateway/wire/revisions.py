"""
The revisions of MCP, what differs between them, and the era of a message.

The era is decided by the body first: a message whose `params._meta` claims a protocol version is
modern (MCP 2026-07-28, basic/versioning); everything else is legacy.
"""

from __future__ import annotations

from gateway.wire.envelope import NOTIFICATION, Message, text

__all__ = [
    "LEGACY",
    "MODERN",
    "VERSION_CLAIM",
    "allowsBatches",
    "claimedVersion",
    "opensAtOnce",
    "versionIsTolerable",
]

LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""The revisions with `initialize` and a session, newest first."""

MODERN = ("2026-07-28",)
"""The stateless revisions."""

VERSION_CLAIM = "io.modelcontextprotocol/protocolVersion"
"""The `_meta` member by which a modern message names its revision."""


def claimedVersion(message: Message, header: str | None = None) -> str | None:
    """
    The modern revision a message claims, or None for a legacy message.

    header: the MCP-Protocol-Version it came with; a notification is modern by that alone,
        for its `_meta` is optional.
    """
    if not message.method:
        return None
    claim = message.meta(VERSION_CLAIM)
    if claim is not None:
        return text(claim) or ""
    if message.kind is NOTIFICATION and header in MODERN:
        return header
    return None


def versionIsTolerable(header: str | None, negotiated: str) -> bool:
    """
    Whether an MCP-Protocol-Version may stand in a legacy session.

    A known revision other than the negotiated one is tolerated: clients in the field send it.
    """
    return header is None or header in LEGACY or header == negotiated


def allowsBatches(revision: str) -> bool:
    """Whether a session may send JSON-RPC batches (MCP 2025-03-26 alone)."""
    return revision == "2025-03-26"


def opensAtOnce(revision: str) -> bool:
    """Whether an event stream is opened before its first message (MCP 2025-11-25, SEP-1699)."""
    return revision == "2025-11-25"
