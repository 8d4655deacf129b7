"""
The streamable proxy: Streamable HTTP in front of any server.

The gateway's streams are its own here: the relay decides which message goes to which.
"""

from __future__ import annotations

from attrs import define

from gateway.proxies.endpoint import StreamableEndpoint
from gateway.proxies.ladder import Admitted
from gateway.relay.relay import Relay
from gateway.wire import refusals

__all__ = ["StreamableProxy"]


@define(eq=False)
class StreamableProxy(StreamableEndpoint):
    """Streamable HTTP in front of one server."""

    def get(self, admitted: Admitted, relay: Relay) -> None:
        """Open a stream; there is none to resume, since no event of ours has an id."""
        if admitted.exchange.head.header(b"last-event-id") is not None:
            refusal = refusals.noStream(b"POST, DELETE, OPTIONS")
            self.ladder.refuse(admitted.exchange, refusal, "link")
        else:
            self.openGet(admitted, relay)
