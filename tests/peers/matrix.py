"""
The matrix of real clients, proxies and servers: what its cells are, and what a client is to see.

A cell is a client (an SDK, in clients/), a route (a proxy, and the transport behind it) and a
server. What the client saw, step by step, is held to three things: what SEEN says outright; what
the same client saw directly at that server, over the same transport; and DIFFERENCES, which has
each step that may differ from that, and why. docs/peers.md tells it in prose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
CLIENTS = ("mcp1", "mcp2", "sdk1", "client2")
"""PyPI `mcp` 1.x and 2.x, npm `@modelcontextprotocol/sdk` 1.x and `client` 2.x."""
PYTHON = ("mcp1", "mcp2")
JAVASCRIPT = ("sdk1", "client2")
SERVERS = ("fixture", "everything")
STEPS = (
    "initialize", "lists", "read", "call", "together", "progress", "sampling", "elicitation",
    "update", "cancel", "errors", "delete", "loss", "fresh", "large",
)  # fmt: skip


@dataclass(frozen=True)
class Route:
    """
    A proxy and what is behind it.

    transport: what the client speaks. entry: which of a server's entries in the gateway's
    configuration it asks. path: of that entry.
    """

    transport: str
    entry: str

    @property
    def path(self) -> str:
        return "mcp" if self.transport == "http" else "sse"


ROUTES = {
    "streamable-stdio": Route("http", "stdio"),
    "streamable-http": Route("http", "gathered"),
    "streamable-sse": Route("http", "sse"),
    "transparent-http": Route("http", "http"),
    "sse-stdio": Route("sse", "stdio"),
    "sse-http": Route("sse", "http"),
    "sse-sse": Route("sse", "sse"),
}


@dataclass(frozen=True)
class Cell:
    client: str
    route: str
    server: str

    def __str__(self) -> str:
        return f"{self.client}-{self.route}-{self.server}"

    @property
    def transport(self) -> str:
        return ROUTES[self.route].transport


CELLS = tuple(
    Cell(client, route, server) for client in CLIENTS for server in SERVERS for route in ROUTES
)


# --- what is not done, or differs ---

NOT_DONE = {
    "loss over HTTP+SSE": "such a session lives as long as its stream, nothing else can end it; "
    "`delete` has what a message to it is answered afterwards",
    "whether server-everything saw the cancellation": "its long operation takes no notice and "
    "nothing tells; the fixture writes it down",
    "cancelling with mcp1": "it has no call for it: the program sends the notification, with the "
    "id that the SDK's counter has, and its call stays open until it is answered",
    "DELETE with mcp1 and mcp2": "they send it themselves as they close; the npm SDKs are asked to",
    "mcp2's limit": "by default it takes no SSE event over 1 MiB, whoever sends it; over "
    "Streamable HTTP the program lifts that, over HTTP+SSE there is no such setting",
}
"""What a client or server cannot do, or is helped with."""


@dataclass(frozen=True)
class Difference:
    """
    A step in which a client sees something else through the gateway than directly.

    always: whether it must differ; otherwise it is a matter of time.
    """

    step: str
    applies: Callable[[Cell], bool]
    reason: str
    always: bool = True


def _answersCancelled(cell: Cell) -> bool:
    """Whether a cancelled call is answered behind a route: by the fixture's own HTTP transport."""
    return cell.server == "fixture" and cell.route.endswith("-http")


DIFFERENCES = (
    Difference(
        "delete",
        lambda cell: True,
        "the gateway has one answer for a session that is gone, 404 -32001; the fixture says 404 "
        "-32600 or plain text, server-everything 400 -32000 or nothing at all",
    ),
    Difference(
        "loss",
        # mcp1 makes one error of any 404, and loses its connection over a 400.
        lambda cell: cell.transport == "http" and (cell.client, cell.server) != ("mcp1", "fixture"),
        "the client passes on what it was answered, see `delete`",
    ),
    Difference(
        "cancel",
        lambda cell: (
            cell.client == "mcp1" and not (cell.transport == "http" and _answersCancelled(cell))
        ),
        "the gateway answers a cancelled call after a second, so that it ends; of the servers only "
        "the fixture over Streamable HTTP answers one (-32800), and that is passed on. The other "
        "clients end the call themselves",
    ),
    Difference(
        "progress",
        lambda cell: cell.client in JAVASCRIPT and cell.transport == "sse",
        "over HTTP+SSE the npm SDKs lose progress that they read together with the answer: the "
        "answer is handled first. How the two are read is a matter of time; the gateway sends "
        "them in order, and together where the server did",
        always=False,
    ),
)


def differences(cell: Cell) -> dict[str, Difference]:
    """By step, what differs in a cell."""
    return {one.step: one for one in DIFFERENCES if one.applies(cell)}


def leftOut(cell: Cell) -> tuple[str, ...]:
    """The steps that are not done in a cell, see NOT_DONE."""
    return ("loss",) if cell.transport == "sse" else ()


# --- what is to be seen outright ---


class OneOf:
    """Matches what one of several matches."""

    def __init__(self, *alternatives: Any) -> None:
        self.alternatives = alternatives

    def __repr__(self) -> str:
        return " or ".join(map(repr, self.alternatives))


def matches(wanted: Any, seen: Any) -> bool:
    """Whether something has what is wanted: of a dict the members that are named, else all."""
    if isinstance(wanted, OneOf):
        return any(matches(one, seen) for one in wanted.alternatives)
    if isinstance(wanted, dict):
        return isinstance(seen, dict) and all(matches(wanted[key], seen.get(key)) for key in wanted)
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(seen, list) and len(seen) == len(wanted) and all(map(matches, wanted, seen))
        )
    return bool(wanted == seen)


def _text(text: str) -> list[Any]:
    return [len(text), hashlib.sha256(text.encode()).hexdigest()[:16]]


SAMPLED, EMAIL = "a model's words \U0001f600", "me@example.org"
TOGETHER = 10
PROFILES: JSON = json.loads(
    Path(__file__).with_name("clients").joinpath("profiles.json").read_text()
)
"""With which tools of a server each step is done; the clients read it, too."""

_FIXTURE: JSON = {
    "initialize": {
        "revision": "2025-11-25",
        "capabilities": {
            "logging": {},
            "prompts": {"listChanged": False},
            "resources": {"subscribe": True, "listChanged": False},
            "tools": {"listChanged": False},
            "completions": {},
        },
    },
    "lists": {
        "tools": [
            "json_schema_2020_12_tool",
            "test_audio_content",
            "test_echo",
            "test_elicitation",
            "test_elicitation_sep1034_defaults",
            "test_elicitation_sep1330_enums",
            "test_embedded_resource",
            "test_error_handling",
            "test_image_content",
            "test_large",
            "test_multiple_content_types",
            "test_reconnection",
            "test_sampling",
            "test_simple_text",
            "test_tool_with_logging",
            "test_tool_with_progress",
            "test_touch",
            "test_wait",
            "test_was_cancelled",
        ],
        "resources": ["test://static-binary", "test://static-text", "test://watched-resource"],
        "prompts": [
            "test_prompt_with_arguments",
            "test_prompt_with_embedded_resource",
            "test_prompt_with_image",
            "test_simple_prompt",
        ],
    },
    "read": {"begins": "This is the content of the static text resource."},
    "call": "This is a simple text response for testing.",
    "errors": {"tool": {"code": -32602}, "resource": {"code": -32002}},
    "progress": {
        "said": "Reported progress three times.",
        "seen": [[0, 100], [50, 100], [100, 100]],
    },
    "sampling": {
        "said": f"LLM response: {SAMPLED}",
        "asked": [
            {
                "messages": [{"role": "user", "content": {"type": "text", "text": "say it"}}],
                "maxTokens": 100,
            }
        ],
    },
    "elicitation": {
        "said": f'User response: action=accept, content={{"username": "me", "email": "{EMAIL}"}}',
        "asked": [{"message": "well?"}],
    },
    "update": {"updated": ["test://watched/{unique}"], "said": ["told", "nobody subscribed"]},
    "cancel": {"seen": "cancelled", "after": "This is a simple text response for testing."},
    "fresh": "This is a simple text response for testing.",
    "large": [
        _text(call["arguments"]["pattern"] * call["arguments"]["times"])
        for call in PROFILES["fixture"]["large"]
    ],
}
_EVERYTHING: JSON = {
    "initialize": {
        "revision": "2025-11-25",
        "capabilities": {
            "logging": {},
            "prompts": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "tools": {"listChanged": True},
            "completions": {},
        },
    },
    "lists": {
        "tools": [
            "echo",
            "get-annotated-message",
            "get-env",
            "get-resource-links",
            "get-resource-reference",
            "get-structured-content",
            "get-sum",
            "get-tiny-image",
            "gzip-file-as-resource",
            "simulate-research-query",
            "toggle-simulated-logging",
            "toggle-subscriber-updates",
            "trigger-elicitation-request",
            "trigger-long-running-operation",
            "trigger-sampling-request",
            "trigger-url-elicitation",
        ],
        "prompts": [
            "args-prompt",
            "completable-prompt",
            "resource-prompt",
            "simple-prompt",
        ],
    },
    "read": {"begins": "# Everything Server - Features"},
    "call": "Echo: grün \U0001f600",
    "errors": {
        "tool": "failed: MCP error -32602: Tool no such tool not found",
        "resource": {"code": -32602},
    },
    "progress": {
        "said": "Long running operation completed. Duration: 0.15 seconds, Steps: 3.",
        "seen": [[1, 3], [2, 3], [3, 3]],
    },
    "sampling": {
        "said": 'LLM sampling result: \n{\n  "model": "m",\n  "role": "assistant",\n'
        f'  "content": {{\n    "type": "text",\n    "text": "{SAMPLED}"\n  }}\n}}',
        "asked": [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": {
                            "type": "text",
                            "text": "Resource trigger-sampling-request context: say it",
                        },
                    }
                ],
                "systemPrompt": "You are a helpful test server.",
                "temperature": 0.7,
                "maxTokens": 100,
            }
        ],
    },
    "elicitation": {
        "said": "✅ User provided the requested information!\nUser inputs:\n- Name: me\n"
        f'- Email: {EMAIL}\n\nRaw result: {{\n  "action": "accept",\n  "content": {{\n'
        f'    "username": "me",\n    "email": "{EMAIL}",\n    "name": "me"\n  }}\n}}',
        "asked": [{"message": "Please provide inputs for the following fields:"}],
    },
    "update": {"updated": ["demo://resource/dynamic/text/1"], "said": []},
    "cancel": {"seen": None, "after": "Echo: grün \U0001f600"},
    "fresh": "Echo: grün \U0001f600",
    "large": [_text("Echo: " + "x" * call["size"]) for call in PROFILES["everything"]["large"]],
}
SEEN = {"fixture": _FIXTURE, "everything": _EVERYTHING}
"""What every client is to see of a server, through the gateway and directly."""

LOST = {
    "mcp1": {"error": "McpError", "code": 32600, "message": "Session terminated"},
    "mcp2": {"error": "MCPError", "code": -32001, "message": "Session not found"},
    "sdk1": {
        "error": "StreamableHTTPError",
        "code": 404,
        "message": "Streamable HTTP error: Error POSTing to endpoint: "
        '{"jsonrpc":"2.0","id":2,"error":{"code":-32001,"message":"Session not found"}}',
    },
    "client2": {
        "error": "SdkHttpError",
        "code": "CLIENT_HTTP_NOT_IMPLEMENTED",
        "message": "Error POSTing to endpoint: "
        '{"jsonrpc":"2.0","id":2,"error":{"code":-32001,"message":"Session not found"}}',
    },
}
"""How each client tells its user that the gateway lost its session."""


def wanted(cell: Cell) -> JSON:
    """By step, what is to be seen in a cell."""
    steps = {**SEEN[cell.server], "together": TOGETHER, "delete": [404, -32001]}
    if cell.client == "mcp1":
        answered = _answersCancelled(cell)
        ended: Any = {"code": -32800} if answered else {"code": -32000}
    else:
        ended = "cancelled"
    steps["cancel"] = {**steps["cancel"], "ended": ended}
    if cell.client == "client2":
        # It has an error of its own for this, with a code of its own.
        steps["errors"] = {**steps["errors"], "resource": {"code": -32602}}
    if cell.transport == "http":
        steps["loss"] = {"deleted": True, "then": LOST[cell.client]}
    if "progress" in differences(cell):
        whole = steps["progress"]
        # That there is progress at all is seen in `cancel`, which waits for it.
        starts = [whole["seen"][:n] for n in range(len(whole["seen"]), -1, -1)]
        steps["progress"] = OneOf(*({**whole, "seen": start} for start in starts))
    if cell.client == "mcp2" and cell.transport == "sse":
        steps["large"] = {"error": "SSEError"}
    return steps


def complaints(cell: Cell, direct: JSON, through: JSON) -> list[str]:
    """What is wrong with what a client saw; empty if nothing is."""
    found = []
    done = set(STEPS) - set(leftOut(cell))
    for seen, where in ((direct, "directly"), (through, "through the gateway")):
        if set(seen) != done:
            found.append(f"{where} these steps were done: {sorted(seen)}")
    differing = differences(cell)
    for step, want in wanted(cell).items():
        if not matches(want, through.get(step)):
            found.append(f"{step}: wanted {want!r}, saw {through.get(step)!r}")
        if step not in differing and not matches(want, direct.get(step)):
            found.append(f"{step}: wanted {want!r}, saw {direct.get(step)!r} directly")
    for step in sorted(done):
        here, there = through.get(step), direct.get(step)
        difference = differing.get(step)
        if difference is None and here != there:
            found.append(f"{step}: saw {here!r}, directly {there!r}")
        elif difference is not None and difference.always and here == there:
            found.append(f"{step}: saw what it sees directly, {here!r}; it is said to differ")
    return found
