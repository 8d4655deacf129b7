"""Where session records are kept beside the process: the interface, and one in memory."""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed
from zope.interface import Interface, implementer

from gateway.sessions.record import SessionRecord

__all__ = ["Gone", "ISessionStore", "Local", "MemoryStore", "Remote", "StoreRefused"]


class StoreRefused(Exception):
    """The store did not take a record."""


@frozen
class Local:
    """The session is this process's own."""


@frozen
class Remote:
    """Another process holds the session; owner: how to reach it."""

    owner: str


@frozen
class Gone:
    """Nobody holds the session."""


class ISessionStore(Interface):
    """
    Keeps session records, so that others may find who serves a session.

    A registry is asked for a session synchronously; the store hears of changes and is asked only
    about sessions the registry does not know.
    """

    def put(record: SessionRecord) -> Deferred[None]:
        """Write a new or changed record. Fails with StoreRefused."""

    def remove(id: str) -> Deferred[None]:
        """Forget a record; one that is not there is fine."""

    def locate(id: str) -> Deferred[Remote | Gone]:
        """Who else holds a session."""


@implementer(ISessionStore)
@define(eq=False)
class MemoryStore:
    """
    Keeps the records in this process: nothing outlives it, and nobody else reads it, so that none
    is written down before somebody asks for it.
    """

    _kept: dict[str, SessionRecord] = field(factory=dict)

    @property
    def records(self) -> dict[str, bytes]:
        """The records, written."""
        return {id: record.serialize() for id, record in self._kept.items()}

    def put(self, record: SessionRecord) -> Deferred[None]:
        self._kept[record.id] = record
        return succeed(None)

    def remove(self, id: str) -> Deferred[None]:
        self._kept.pop(id, None)
        return succeed(None)

    def locate(self, id: str) -> Deferred[Remote | Gone]:
        return succeed(Gone())
