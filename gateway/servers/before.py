"""What stands before a configured server is that server to everybody but for its links."""

from __future__ import annotations

from attrs import define
from twisted.internet.defer import Deferred

from gateway.links.interfaces import Health, IServer
from gateway.settings import ServerSettings

__all__ = ["Before"]


@define(eq=False, repr=False)
class Before:
    """
    The part of IServer that is the server's behind; who stands before it adds `link`.

    inner: the server behind; drained with this one.
    """

    inner: IServer

    @property
    def name(self) -> str:
        """See IServer."""
        return self.inner.name

    @property
    def settings(self) -> ServerSettings:
        """See IServer."""
        return self.inner.settings

    @property
    def generation(self) -> int:
        """See IServer."""
        return self.inner.generation

    def health(self) -> Health:
        """See IServer."""
        return self.inner.health()

    def drain(self) -> Deferred[None]:
        """See IServer."""
        return self.inner.drain()
