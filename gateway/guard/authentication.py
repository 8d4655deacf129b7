"""Who a request comes from."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Interface, implementer

from gateway.wire.context import ANONYMOUS, Principal
from gateway.wire.exchange import RequestHead

__all__ = ["AnonymousAuthenticator", "IAuthenticator", "NotAuthenticated"]


class NotAuthenticated(Exception):
    """
    The request's credentials do not do.

    challenge: the value of WWW-Authenticate.
    """

    def __init__(self, challenge: bytes) -> None:
        super().__init__("not authenticated")
        self.challenge = challenge


class IAuthenticator(Interface):
    """Tells who a request comes from, by its head alone."""

    def authenticate(head: RequestHead) -> Principal | Deferred[Principal]:
        """The principal. Raises, or fails with, NotAuthenticated."""


@implementer(IAuthenticator)
class AnonymousAuthenticator:
    """Lets everybody in as the one anonymous principal."""

    def authenticate(self, head: RequestHead) -> Principal:
        return ANONYMOUS
