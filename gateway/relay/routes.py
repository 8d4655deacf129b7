"""To which stream a message for the client goes. Pure."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from gateway.relay.effects import Call

__all__ = ["Routes"]


@define(eq=False)
class Routes:
    """
    The streams of one session: those of its running calls, and the attached ones, which belong
    to no call.

    calls: the running calls, the oldest first; its router keeps them.
    strict: whether a message goes only where the link says it belongs.
    attached: the attached streams, the newest last.
    """

    calls: dict[bytes, Call]
    strict: bool
    attached: list[Any] = field(factory=list, init=False)

    def of(self, origin: object, toOnlyCall: bool) -> object:
        """
        The stream for a message of the server, or None.

        origin: the call or the attached stream it belongs to, as the link says; None where it
            does not. toOnlyCall: whether it belongs to the only running call, if there is one.
        """
        if isinstance(origin, Call):
            if origin.present and origin.streams:
                return origin.target
        elif origin in self.attached:
            return origin
        return None if self.strict else self.any(toOnlyCall)

    def ofCall(self, call: Call, origin: object) -> object:
        """The stream for what belongs to a call and came from `origin`, or None."""
        if call.present and call.streams:
            return call.target
        # The client vanished from the call's own stream and resumed it on this one.
        return origin if origin in self.attached else None

    def any(self, toOnlyCall: bool) -> object:
        """The stream for what belongs to no other, or None."""
        if toOnlyCall:
            running = [
                call for call in self.calls.values() if call.target is not None and not call.held
            ]
            if len(running) == 1 and running[0].present and running[0].streams:
                return running[0].target
        if self.attached:
            return self.attached[-1]
        for call in reversed(self.calls.values()):
            if call.present and call.streams and not call.held:
                return call.target
        return None

    def isOpen(self, target: object) -> bool:
        """Whether a stream is one of these still."""
        return target in self.attached or any(
            call.target is target and call.present for call in self.calls.values()
        )
