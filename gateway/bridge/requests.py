"""
A legacy request as a modern one (MCP 2026-07-28, basic/index, `_meta`; changelog).

What becomes of each method:

| legacy | modern |
|---|---|
| `tools/*`, `prompts/*`, `resources/list`, `resources/templates/list`, `resources/read`, `completion/complete`, and methods nobody knows | the same, stamped |
| `ping`, `logging/setLevel`, `resources/subscribe`, `resources/unsubscribe` | none: answered by the gateway |
| `tasks/*` | none: -32601, for tasks of 2025-11-25 are another thing than the extension of 2026-07-28 |
| `server/discover`, `subscriptions/listen`, `initialize` again | none: -32601, no legacy server has them |

`task` in the parameters of a request is taken out: the client was not told that the server has
tasks, and then a server MUST carry the request out as any other (MCP 2025-11-25,
basic/utilities/tasks, Behavior Requirements). So are `inputResponses` and `requestState`, which
mean nothing in a legacy request and would in a modern one.
"""  # noqa: E501 - a table

from __future__ import annotations

from msgspec import Raw

from gateway.bridge.capabilities import Greeting
from gateway.bridge.spelling import spelled
from gateway.wire.envelope import Message, text
from gateway.wire.modern import (
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    LISTEN,
    LOG_LEVEL,
    MAY_ASK,
    OWN_META,
    withMetas,
    withoutMetas,
)
from gateway.wire.refusals import errorMessage
from gateway.wire.revisions import MODERN, VERSION_CLAIM
from gateway.wire.strictjson import quote

__all__ = ["LEVELS", "isLevel", "refused", "retried", "stamped"]

LEVELS = frozenset(
    {"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}
)
"""The levels of `logging/setLevel`, the same in both eras."""

_NOT_LEGACY = ("server/discover", LISTEN, "initialize")
_VERSION = quote(MODERN[0])
_FOREIGN = ("task", "inputResponses", "requestState")


def isLevel(level: bytes | None) -> bool:
    """Whether this is a log level, as spelled."""
    return text(level) in LEVELS


def refused(message: Message) -> Message | None:
    """The answer to a request that cannot be said in the modern era; None where it can."""
    method = message.method
    if method.startswith("tasks/"):
        why = (
            f"{method} of revision 2025-11-25 cannot be carried to a server of revision "
            f"{MODERN[0]}, where tasks are an extension"
        )
        return errorMessage(message.id, -32601, why)
    if method in _NOT_LEGACY:
        return errorMessage(message.id, -32601, "Method not found")
    params = message.fields.get("params")
    if params is not None and bytes(params)[:1] == b"[":
        why = f"Invalid params: revision {MODERN[0]} takes an object, not an array"
        return errorMessage(message.id, -32602, why)
    return None


def stamped(message: Message, greeting: Greeting, level: bytes | None) -> Message:
    """
    A request as a modern server takes it: with what the handshake said before in its `_meta`.

    level: that of `logging/setLevel`, as spelled; None where it was not said.
    """
    if message.method in MAY_ASK:
        for name in _FOREIGN:
            message = message.withoutParam(name)
    metas = [(VERSION_CLAIM, _VERSION), (CLIENT_CAPABILITIES, greeting.capabilities)]
    if greeting.info is not None:
        metas.append((CLIENT_INFO, greeting.info))
    if level is not None:
        metas.append((LOG_LEVEL, level))
    given = {name for name, _ in metas}
    return withMetas(withoutMetas(message, [name for name in OWN_META if name not in given]), metas)


def retried(message: Message, responses: dict[str, Raw] | None, state: bytes | None) -> Message:
    """
    A stamped request once more, with what its server asked for (basic/patterns/mrtr).

    responses: the client's results by the server's keys; None where it asked for nothing.
    state: its `requestState` as spelled; None where it gave none.
    """
    if responses is not None:
        message = message.withParam("inputResponses", spelled(responses))
    if state is not None:
        message = message.withParam("requestState", state)
    return message
