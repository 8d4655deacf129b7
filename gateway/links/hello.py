"""The `initialize` that the gateway sends in its own name."""

from __future__ import annotations

import msgspec

import gateway
from gateway.links.interfaces import Hello

__all__ = ["ownHello"]


def ownHello(revision: str) -> Hello:
    """A handshake in the gateway's own name, which offers nothing; revision: what it asks for."""
    params = {
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": {"name": "mcp-gateway", "version": gateway.__version__},
    }
    return Hello(msgspec.json.encode(params))
