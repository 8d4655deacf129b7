"""The URLs of a server: the one it is configured with, and those it names itself (RFC 3986)."""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import re
from urllib.parse import urljoin

from attrs import frozen
from twisted.web.client import URI

from gateway.wire.authority import HOST

__all__ = ["Target", "parseURL", "sameOrigin"]

_NETLOC = re.compile(rf"{HOST}(?::[0-9]{{1,5}})?".encode("ascii"))
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


@frozen
class Target:
    """
    Where a request goes.

    url: its URL. line: how the head of a request goes on after its method, up to and with the
        line of Host (RFC 9112 section 3.2).
    """

    url: bytes
    line: bytes

    @classmethod
    def at(cls, url: bytes) -> Target:
        """The target of a URL that `parseURL` or `sameOrigin` passed."""
        return cls.of(URI.fromBytes(url))

    @classmethod
    def of(cls, uri: URI) -> Target:
        """The target of a parsed URL."""
        path, host = uri.originForm, uri.netloc.removesuffix(_DEFAULT_PORTS[uri.scheme])
        if not path.startswith(b"/"):
            path = b"/" + path
        return cls(uri.toBytes(), b" %b HTTP/1.1\r\nHost: %b\r\n" % (path, host))


def parseURL(url: str) -> URI:
    """
    The URL of a server, as the configuration spells it.

    Raises: ValueError, without showing the URL, where it is not absolute http or https, has
        userinfo or a fragment, or characters that do not stand in a URL (RFC 3986).
    """
    if not url.isascii() or any(not "!" <= char <= "~" for char in url):
        raise ValueError("the URL has a character that must be percent-encoded")
    uri = URI.fromBytes(url.encode("ascii"))
    if uri.scheme not in (b"http", b"https"):
        raise ValueError("the URL must start with http:// or https://")
    if not _NETLOC.fullmatch(uri.netloc) or not 0 < uri.port < 65536 or uri.fragment:
        raise ValueError("the URL must have a host, perhaps a port, no user and no fragment")
    return uri  # type: ignore[no-any-return]  # URI has no annotations


def sameOrigin(base: bytes, reference: bytes) -> bytes:
    """
    The URL that a reference of a server means; a fragment is left out.

    base: the URL it is relative to (RFC 3986 section 5.2).
    Raises: ValueError where it is none, or has another origin than the base.
    """
    joined = urljoin(base.decode("ascii"), reference.decode("ascii"))
    uri, ours = parseURL(joined.partition("#")[0]), URI.fromBytes(base)
    if (uri.scheme, uri.host.lower(), uri.port) != (ours.scheme, ours.host.lower(), ours.port):
        raise ValueError("the URL has another origin")
    return bytes(uri.toBytes())
