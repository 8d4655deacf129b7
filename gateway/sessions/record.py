"""What is known of a session and can be written down: it imports nothing above it."""

from __future__ import annotations

import msgspec
from attrs import define, field

from gateway.wire.context import Principal

__all__ = ["SCHEMA", "SessionRecord"]

SCHEMA = 1
"""The version of the written form; a record of another version is treated as absent."""


@define(kw_only=True)
class SessionRecord:
    """
    A session, without the streams and the link that serve it now.

    id: the session id the client holds.
    server, generation: the configured server it belongs to.
    principal: whose it is.
    transport: "streamable" or "sse", by which its client speaks.
    revision: what was negotiated; "" until `initialize` was answered.
    initialize: the `params` of the client's `initialize`, as spelled.
    capabilities: the `capabilities` the server declared, as spelled.
    initialized: whether the client sent `notifications/initialized`.
    log_level: the JSON text of the level of the last `logging/setLevel`; b"" without one.
    subscriptions: the URIs of `resources/subscribe`, in order.
    upstream: the server's own session id, where it has one; stays inside.
    """

    id: str
    server: str
    generation: int
    principal: Principal
    transport: str = "streamable"
    revision: str = ""
    initialize: bytes = b""
    capabilities: bytes = b""
    initialized: bool = False
    log_level: bytes = b""
    subscriptions: list[str] = field(factory=list)
    upstream: str = ""

    def serialize(self) -> bytes:
        """The record as JSON."""
        return msgspec.json.encode(
            {
                "schema": SCHEMA,
                "id": self.id,
                "server": self.server,
                "generation": self.generation,
                "principal": [
                    self.principal.issuer,
                    self.principal.subject,
                    self.principal.audience,
                ],
                "transport": self.transport,
                "revision": self.revision,
                "initialize": self.initialize,
                "capabilities": self.capabilities,
                "initialized": self.initialized,
                "log_level": self.log_level,
                "subscriptions": self.subscriptions,
                "upstream": self.upstream,
            }
        )

    @classmethod
    def deserialize(cls, data: bytes) -> SessionRecord | None:
        """A record from its JSON; None for anything else (garbage counts as absent)."""
        try:
            written = msgspec.json.decode(data, type=_Written)
        except (msgspec.DecodeError, RecursionError):
            return None
        if written.schema != SCHEMA:
            return None
        members = {name: getattr(written, name) for name in written.__struct_fields__}
        del members["schema"]
        members["principal"] = Principal(*written.principal)
        return cls(**members)


class _Written(msgspec.Struct):
    schema: int
    id: str
    server: str
    generation: int
    principal: tuple[str, str, str]
    transport: str
    revision: str
    initialize: bytes
    capabilities: bytes
    initialized: bool
    log_level: bytes
    subscriptions: list[str]
    upstream: str
