"""The members of a JSON-RPC batch, parted by what becomes of them (MCP 2025-03-26)."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.wire import refusals
from gateway.wire.envelope import Kind, Message, NotAMessage

__all__ = ["parted"]


def parted(
    batch: Iterable[Message | NotAMessage],
) -> tuple[list[Message], list[Message], list[bytes]]:
    """
    Part a batch.

    Returns: its requests; its notifications and responses; and the encoded answers to its bad
        members, each of which fails itself alone.
    """
    requests: list[Message] = []
    others: list[Message] = []
    bad: list[bytes] = []
    for item in batch:
        if isinstance(item, NotAMessage):
            bad.append(refusals.notAMessage(str(item)).body(item.id))
        else:
            (requests if item.kind is Kind.REQUEST else others).append(item)
    return requests, others, bad
