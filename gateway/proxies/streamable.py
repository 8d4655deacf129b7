"""
The streamable proxy: Streamable HTTP in front of any server.

The gateway's streams are its own here: the relay decides which message goes to which, and their
events are numbered and kept for a while, so that a client that was cut off misses nothing.
"""

from __future__ import annotations

from attrs import define

from gateway.proxies.admitted import Admitted
from gateway.proxies.channel import Channel
from gateway.proxies.endpoint import StreamableEndpoint
from gateway.relay.relay import Relay
from gateway.wire import refusals
from gateway.wire.revisions import opensAtOnce

__all__ = ["StreamableProxy"]


@define(eq=False)
class StreamableProxy(StreamableEndpoint):
    """Streamable HTTP in front of one server."""

    def get(self, admitted: Admitted, relay: Relay) -> None:
        """Open a stream, or resume the one that a Last-Event-ID names, and no other."""
        exchange = admitted.exchange
        last = exchange.head.header(b"last-event-id")
        if last is None:
            channel = Channel(self.shared, self.server.name, relay.events)
            self.openGet(exchange, relay, channel)
            if opensAtOnce(relay.session.record.revision):
                channel.prime()
            return
        found = None
        if relay.events is not None:
            found = relay.events.find(last, self.shared.clock.seconds())
        if found is None or relay.events is None or relay.events.exhausted(*found):
            refusal = refusals.noStream(b"POST, DELETE, OPTIONS")
            self.ladder.refuse(exchange, refusal, "link")
            return
        cut = found[0].owner
        assert isinstance(cut, Channel)
        assert cut.owner is not None
        if cut.stream is not None:
            # Its client came back before its old connection was seen to be gone.
            cut.stream.abort()
        cut.owner.connect(exchange, cut, found[1])
