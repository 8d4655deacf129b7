"""The words of a handshake: our `initialize`, and how the answer to one is judged."""

from __future__ import annotations

import re

import msgspec

import gateway
from gateway.links.interfaces import Hello, LinkFailed, Reason
from gateway.wire.envelope import Message, members, text

__all__ = ["INITIALIZE", "initialize", "negotiated", "ownHello"]

INITIALIZE = b"0"
"""The id of our `initialize`; those of the calls begin at 1."""

_REVISION = re.compile(r"[0-9A-Za-z._-]{1,64}")


def ownHello(revision: str) -> Hello:
    """A handshake in the gateway's own name, which offers nothing; revision: what it asks for."""
    params = {
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": {"name": "mcp-gateway", "version": gateway.__version__},
    }
    return Hello(msgspec.json.encode(params))


def initialize(params: bytes) -> bytes:
    """The request `initialize` with these `params`, as spelled."""
    return b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":%b}' % params


def negotiated(answer: Message) -> str:
    """
    The revision that an HTTP server's answer to `initialize` names; it may stand in a header.

    Raises: LinkFailed, where the server refused or named none.
    """
    if answer.isError:
        raise LinkFailed(Reason.BAD_ANSWER, "the server refused to initialize", answer)
    version = text(bytes(members(answer.fields["result"]).get("protocolVersion", b"")))
    if version is None or not _REVISION.fullmatch(version):
        why = "the server's answer to initialize names no protocol version"
        raise LinkFailed(Reason.BAD_ANSWER, why)
    return version
