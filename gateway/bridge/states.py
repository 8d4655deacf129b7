"""
`requestState`: what a client gives back with the retry of a call that waits for its input
(MCP 2026-07-28, basic/patterns/mrtr).

A state names a call that is parked in this process; all else that it is good for is bound by its
authenticator and not written in it: who asked (principal and caller), which server, which method,
which parameters. So another principal's, another request's and a forged one look the same.

Form: base64url without padding, of

  version      1 byte
  call         8 bytes, random
  round        4 bytes
  expiry       8 bytes, milliseconds on the gateway's clock
  HMAC-SHA256  32 bytes, over all of these and the binding

The key is made with the process; a state of another process is not valid.
"""

from __future__ import annotations

import binascii
import hmac
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256

from attrs import define, field, frozen

from gateway.wire.context import Principal
from gateway.wire.envelope import Message, members

__all__ = ["NOT_SALIENT", "Named", "States", "bindingOf", "newCall"]

NOT_SALIENT = frozenset({"_meta", "inputResponses", "requestState", "task"})
"""The params that differ between a request and its retry, or that the server never gets."""

_VERSION = 1
_HEAD = struct.Struct(">B8sIQ")
_MAC = 32
_LONGEST = 128


@frozen
class Named:
    """What a valid state names: a parked call, and the round of its questions."""

    call: bytes
    round: int


def newCall() -> bytes:
    """A name for a call that no other has."""
    return secrets.token_bytes(8)


def bindingOf(principal: Principal, caller: str, server: str, request: Message) -> bytes:
    """
    What a state is bound to: who asks whom for what.

    Members of `params` are compared as spelled, in any order.
    """
    whole = sha256()
    params = members(request.fields.get("params"))
    parts = [principal.issuer, principal.subject, principal.audience, caller, server]
    spelled = [part.encode("utf-8", "surrogatepass") for part in (*parts, request.method)]
    for name in sorted(params.keys() - NOT_SALIENT):
        spelled += (name.encode("utf-8", "surrogatepass"), bytes(params[name]))
    for part in spelled:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.digest()


@define(eq=False)
class States:
    """Makes the states of one process, and judges what comes back. Nobody else knows its key."""

    _key: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)

    def seal(self, named: Named, binding: bytes, until: float) -> str:
        """A state for this call; until: when it expires, in seconds on the gateway's clock."""
        head = _HEAD.pack(_VERSION, named.call, named.round, int(until * 1000))
        return urlsafe_b64encode(head + self._mac(head, binding)).rstrip(b"=").decode()

    def open(self, state: str | None, binding: bytes, now: float) -> Named | None:
        """What a state names; None for one that is not valid for this request now."""
        if state is None or len(state) > _LONGEST:
            return None
        try:
            data = urlsafe_b64decode(state.encode("ascii") + b"=" * (-len(state) % 4))
        except (UnicodeEncodeError, binascii.Error):
            return None
        # A lax decoder passes over what it does not know: one state has one spelling.
        if len(data) != _HEAD.size + _MAC or urlsafe_b64encode(data).rstrip(b"=") != state.encode():
            return None
        head, mac = data[: _HEAD.size], data[_HEAD.size :]
        if not hmac.compare_digest(mac, self._mac(head, binding)):
            return None
        version, call, round, until = _HEAD.unpack(head)
        if version != _VERSION or until <= now * 1000:
            return None
        return Named(call, round)

    def _mac(self, head: bytes, binding: bytes) -> bytes:
        return hmac.digest(self._key, head + binding, "sha256")
