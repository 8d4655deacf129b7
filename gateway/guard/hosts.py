"""
Which Host and which Origin may talk to us: the defence against DNS rebinding
(MCP 2025-11-25, basic/transports, Security Warning).

By default the loopback names at the port the connection came to, and origins on them. An entry
of the allow-list `name` is that name without a port (or at the scheme's own), `name:port` that
port, `name:*` any port.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import define, field

from gateway.wire.authority import HOST
from gateway.wire.exchange import RequestHead
from gateway.wire.refusals import Refusal, malformedHead, notAllowedHere

__all__ = ["HostGuard"]

_HOST = re.compile(rf"({HOST})(?::([0-9]{{1,5}}))?\Z".encode("ascii"))
_ORIGIN = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@]+)\Z")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MOST_PASSED = 256
_DEFAULT_PORTS = {"http": 80, "https": 443}


def _split(value: bytes) -> tuple[str, int | None] | None:
    match = _HOST.match(value)
    if match is None:
        return None
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        return None
    return match[1].decode("ascii").lower(), port


@define(eq=False)
class HostGuard:
    """
    Judges the Host and Origin fields of a request.

    hosts: allow-list entries beside the loopback names.
    origins: allowed origins beside those of allowed hosts, `scheme://host[:port]`.
    loopback: whether the loopback names are allowed at the connection's own port.
    """

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    loopback: bool = True
    _names: dict[str, set[int | None]] = field(init=False)
    _origins: frozenset[str] = field(init=False)
    _passed: set[tuple[bytes | None, bytes | None, int, bool]] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self._names = {}
        for entry in self.hosts:
            name, colon, port = entry.rpartition(":")
            if not colon or entry.endswith("]"):
                name, port = entry, ""
            ports = self._names.setdefault(name.lower(), set())
            ports.update({0} if port == "*" else {int(port)} if port else {None})
        self._origins = frozenset(origin.lower().rstrip("/") for origin in self.origins)

    def judge(self, head: RequestHead) -> Refusal | None:
        """None if the request may come in; else its refusal: 400 for a Host that is none."""
        # Clients send the same again and again.
        known = (head.header(b"host"), head.header(b"origin"), head.port, head.tls)
        single = head.distinct
        if single and known in self._passed:
            return None
        refusal = self._judged(head)
        if refusal is None and single and len(self._passed) < _MOST_PASSED:
            self._passed.add(known)
        return refusal

    def _judged(self, head: RequestHead) -> Refusal | None:
        hosts = head.headerValues(b"host")
        if len(hosts) != 1:
            return malformedHead("exactly one Host is required")
        host = _split(hosts[0])
        if host is None:
            return malformedHead("Host is malformed")
        if not self._allows(*host, head.port, "https" if head.tls else "http"):
            return notAllowedHere("Host")
        origins = head.headerValues(b"origin")
        if not origins:
            return None
        if len(origins) > 1 or not self._allowsOrigin(origins[0], head.port):
            return notAllowedHere("Origin")
        return None

    def _allows(self, name: str, port: int | None, own: int, scheme: str) -> bool:
        default = _DEFAULT_PORTS.get(scheme)
        effective = default if port is None else port
        if self.loopback and name in _LOOPBACK and effective == (own or default):
            return True
        ports = self._names.get(name)
        if ports is None:
            return False
        return 0 in ports or effective in ports or (None in ports and effective == default)

    def _allowsOrigin(self, origin: bytes, own: int) -> bool:
        match = _ORIGIN.match(origin)
        if match is None:
            return False
        if origin.decode("latin-1").lower() in self._origins:
            return True
        host = _split(match[2])
        scheme = match[1].decode("ascii").lower()
        return host is not None and scheme in _DEFAULT_PORTS and self._allows(*host, own, scheme)
