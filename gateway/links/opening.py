"""
How a link begins: what is asked first, and what the answer, or its absence, says of the server.

    Initialize   a legacy handshake (MCP 2025-11-25, basic/lifecycle)
    Discover     a modern one (MCP 2026-07-28, server/discover), in the gateway's own name

What a server's word on `server/discover` says of its era (basic/versioning, Backward
Compatibility; the transports' pages, the same):

 1. A DiscoverResult: modern. It must name a revision of ours.
 2. A modern error, -32020 to -32022: modern, but there is no link.
    In either, revisions of which only legacy ones are ours: not modern, for that is how it can be
    spoken to.
 3. Any other error, what is no DiscoverResult, what is no message: not modern (NotModern).
 4. From a child: silence and an exit, too. Over HTTP: a refusal below 500. There silence, 401, 403,
    408, 429 and 5xx say nothing of the era.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

import msgspec
from attrs import frozen
from msgspec import Raw

import gateway
from gateway.links.hello import initialize, negotiated
from gateway.links.interfaces import LinkFailed, NotModern, Reason
from gateway.wire.envelope import Message, members, text
from gateway.wire.modern import CLIENT_CAPABILITIES, CLIENT_INFO, errorCode
from gateway.wire.revisions import LEGACY, MODERN, VERSION_CLAIM

__all__ = ["SAYS_NOTHING", "Discover", "HTTPInitialize", "Initialize", "Opening", "saysModern"]

MODERN_ERRORS = frozenset({-32020, -32021, -32022})
SAYS_NOTHING = frozenset({401, 403, 408, 429})
"""The HTTP statuses below 500 that come from who would not say what the server speaks."""

_REVISION = re.compile(r"[0-9A-Za-z._-]{1,32}")
_NAMED = 8
"""Revisions that a message names at most."""
_META = msgspec.json.encode(
    {
        VERSION_CLAIM: MODERN[0],
        CLIENT_INFO: {"name": "mcp-gateway", "version": gateway.__version__},
        CLIENT_CAPABILITIES: {},
    }
)
_DISCOVER = b'{"jsonrpc":"2.0","id":0,"method":"server/discover","params":{"_meta":' + _META + b"}}"

_decodeItems = msgspec.json.Decoder(list[Raw]).decode


class Opening(Protocol):
    """
    The first request of a link.

    request: its bytes; its id is 0. what: its method, for messages.
    modern: whether it opens a link of the modern era: the server may ask nothing on it, and keeps
        no session of it.
    """

    request: bytes
    what: str
    modern: bool

    def judged(self, answer: Message) -> str:
        """
        The revision that the server's answer settles.

        Raises: LinkFailed.
        """

    def failed(self, failed: LinkFailed) -> LinkFailed:
        """What it means that there was no answer to judge."""


class Initialize:
    """
    `initialize` with these `params`, as spelled.

    Any string is a revision, for a child is never told it in a header.
    """

    what = "initialize"
    modern = False

    def __init__(self, params: bytes) -> None:
        self.request = initialize(params)

    def judged(self, answer: Message) -> str:
        """See Opening."""
        if answer.isError:
            raise LinkFailed(Reason.BAD_ANSWER, "the server refused the handshake", answer=answer)
        version = text(bytes(members(answer.fields["result"]).get("protocolVersion", b"")))
        if version is None:
            raise LinkFailed(Reason.BAD_ANSWER, "the server's handshake is malformed")
        return version

    def failed(self, failed: LinkFailed) -> LinkFailed:
        """See Opening."""
        return failed


class HTTPInitialize(Initialize):
    """The same to an HTTP server, where the revision stands in a header from then on."""

    def judged(self, answer: Message) -> str:
        """See Opening."""
        return negotiated(answer)


@frozen
class Discover:
    """
    `server/discover`; see the module.

    http: whether it goes to an HTTP server. patient: whether the server is known to be modern, so
        that its silence says nothing.
    """

    http: bool
    patient: bool = False
    request = _DISCOVER
    what = "server/discover"
    modern = True

    def judged(self, answer: Message) -> str:
        """See Opening. Fails with NotModern where no modern server answers so."""
        if answer.isError:
            raise _refused(answer)
        supported = _strings(members(answer.fields["result"]).get("supportedVersions"))
        if supported is None:
            raise NotModern(Reason.BAD_ANSWER, "the server does not know server/discover")
        for version in MODERN:
            if version in supported:
                return version
        kind = NotModern if _namesLegacy(supported) else LinkFailed
        raise kind(Reason.BAD_ANSWER, _speaksOnly(supported))

    def failed(self, failed: LinkFailed) -> LinkFailed:
        """See Opening."""
        if failed.answer is not None and saysModern(failed):
            return _refused(failed.answer, failed.status)
        told: tuple[Reason, ...] = (Reason.BAD_ANSWER,)
        if failed.status in SAYS_NOTHING or failed.status >= 500:
            told = ()
        elif not self.http:
            told = (Reason.BAD_ANSWER, Reason.SERVER_EXITED, Reason.TIMEOUT)
            if self.patient:
                told = (Reason.BAD_ANSWER,)
        if failed.reason not in told:
            return failed
        return NotModern(failed.reason, failed.message, failed.answer, failed.status)


def saysModern(failed: LinkFailed) -> bool:
    """Whether a handshake of either era failed with an error that only a modern server gives."""
    answer = failed.answer
    if answer is None or errorCode(answer) not in MODERN_ERRORS:
        return False
    return not _namesLegacy(_supportedIn(answer))


def _refused(answer: Message, status: int = 0) -> LinkFailed:
    supported = _supportedIn(answer)
    if errorCode(answer) not in MODERN_ERRORS or _namesLegacy(supported):
        why = "the server refused server/discover"
        return NotModern(Reason.BAD_ANSWER, why, answer, status)
    if errorCode(answer) == -32022 and not any(version in MODERN for version in supported):
        return LinkFailed(Reason.BAD_ANSWER, _speaksOnly(supported), answer, status)
    why = "the server refused server/discover with an error of the modern era"
    return LinkFailed(Reason.BAD_ANSWER, why, answer, status)


def _supportedIn(answer: Message) -> list[str]:
    """The revisions that an UnsupportedProtocolVersionError names."""
    data = members(answer.fields["error"]).get("data")
    return _strings(members(data).get("supported")) or []


def _namesLegacy(supported: list[str]) -> bool:
    """Whether a server can be spoken to in the legacy era, and not in a modern revision of ours."""
    return any(version in LEGACY for version in supported) and not any(
        version in MODERN for version in supported
    )


def _strings(raw: Raw | None) -> list[str] | None:
    """The strings of a JSON array; None for what is none."""
    if raw is None or bytes(raw)[:1] != b"[":
        return None
    try:
        items = _decodeItems(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return [value for item in items if (value := text(bytes(item))) is not None]


def _speaksOnly(supported: Iterable[str]) -> str:
    named = [version for version in supported if _REVISION.fullmatch(version)][:_NAMED]
    speaks = ", ".join(named) or "none that it names"
    return f"the server speaks no revision of the gateway's modern ones ({speaks})"
