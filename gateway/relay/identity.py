"""
Who makes a modern request to a legacy server, as far as sessions are concerned (docs/eras.md).

A caller is a principal; by the setting `callers` which of its callers, named in a header, or each
call; and the credentials of its client that are forwarded, for by those a server knows who asks.
"""

from __future__ import annotations

from collections.abc import Hashable

from attrs import frozen

from gateway.links.interfaces import IServer
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.headers import credentialsAmong

__all__ = ["Identity"]


@frozen
class Identity:
    """Tells the callers of one server apart. Pure."""

    server: IServer

    @property
    def eachCall(self) -> bool:
        """Whether each call is a caller of its own."""
        return self.server.settings.callers == "call"

    def of(self, context: CallContext) -> Hashable:
        """Whose sessions a request may use, where not each call is a caller of its own."""
        # An HTTP server knows its clients by credentials of theirs, where they are forwarded.
        return context.principal, self.nameOf(context), credentialsAmong(context.headers)

    def nameOf(self, context: CallContext) -> str:
        """What tells the callers of one principal apart."""
        name = context.caller if self.server.settings.callers.startswith("header:") else ""
        if context.principal == ANONYMOUS:
            # Nobody but the server knows whose its credentials are. Those of a known principal may
            # be renewed while a call is parked.
            name += f" {credentialsAmong(context.headers)!r}"
        return name
