"""
Which calls may be sent once more when their link was lost, or their answer, and they may have run
(`replay` of a server's settings). Pure.

 1. "none": no call. "safe": the methods of SAFE, which change nothing. "annotated": `tools/call`,
    too, of tools whose annotations say that they change nothing, or nothing more when called again.
 2. Once; within the call's own deadline; never a call that was cancelled, that nobody waits for,
    or that its client can resume by itself.
 3. What provably did not run is none of this: it is sent again under every setting.
"""

from __future__ import annotations

from attrs import define, field

from gateway.relay.effects import Call
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason
from gateway.wire.tool_hints import ToolHints

__all__ = ["MAY_HAVE_RUN", "NONE", "SAFE", "Replays", "replaysOf", "told"]

SAFE = frozenset(
    {
        "ping",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "server/discover",
        "tools/list",
    }
)
"""The methods that change nothing."""

MAY_HAVE_RUN = (Reason.SERVER_EXITED, Reason.OUTCOME_UNKNOWN)
"""Why a call may be sent once more; after a malformed answer, say, it would fail the same way."""

_NOT_RUN = (Reason.UPSTREAM_UNREACHABLE, Reason.OVERLOADED, Reason.SHUTTING_DOWN)


@define(eq=False)
class Replays:
    """
    The rules for one server, and what is known of its tools.

    mode: `replay` of its settings. hints: what the lists of tools said that passed here.
    """

    mode: str
    hints: ToolHints = field(factory=lambda: ToolHints(0))
    learns: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.learns = self.mode == "annotated"

    def allows(self, message: Message) -> bool:
        """Rule 1."""
        if self.mode == "none":
            return False
        if message.method in SAFE:
            return True
        if not self.learns or message.method != "tools/call":
            return False
        return self.hints.allows(message.paramText("name"))

    def mayRepeat(self, call: Call, reason: Reason, now: float) -> bool:
        """Whether a call that ended for this reason is sent once more."""
        return (
            reason in MAY_HAVE_RUN
            and call.ran is None
            and call.present
            and call.cancelling is None
            and call.target is not None
            and not call.numbered
            and now < min(call.deadline, call.cap)
            and self.allows(call.request)
        )

    def learn(self, request: Message, answer: Message) -> bool:
        """
        An answer passed: see whether it is a list of tools. Returns whether there was room for
        every name.
        """
        result = answer.fields.get("result")
        if request.method != "tools/list" or result is None:
            return True
        return self.hints.learn(bytes(result), first=request.param("cursor") is None)


NONE = Replays("none")
_SHARED = {"none": NONE, "safe": Replays("safe")}
"""What learns nothing may be everybody's."""


def replaysOf(mode: str, hints: ToolHints | None, most: int) -> Replays:
    """
    The rules for a session; hints: where to learn what its server's tools are, a place of its own
    for `most` names without.
    """
    return _SHARED.get(mode) or Replays(mode, hints or ToolHints(most))


def told(call: Call, reason: Reason) -> Reason:
    """Why a call failed, as its client is told: one that may have run is never said not to."""
    return call.ran if call.ran is not None and reason in _NOT_RUN else reason
