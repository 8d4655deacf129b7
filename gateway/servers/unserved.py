"""A configured server of a kind that is not served yet: it says so, and harms no other."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from gateway.links.interfaces import Health, Hello, ILink, ILinkListener, IServer, LinkFailed
from gateway.settings import ServerSettings
from gateway.wire.context import CallContext
from gateway.wire.refusals import Reason

__all__ = ["UnservedServer"]


@implementer(IServer)
@define(eq=False)
class UnservedServer:
    """Fails every handshake; why: a sentence for the client."""

    settings: ServerSettings
    why: str
    generation: int = 1
    name: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.name = self.settings.name

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """Fails with LinkFailed."""
        return fail(LinkFailed(Reason.UPSTREAM_UNREACHABLE, self.why))

    def health(self) -> Health:
        """It cannot be up."""
        return Health.DOWN

    def drain(self) -> Deferred[None]:
        """There is nothing to close."""
        return succeed(None)
