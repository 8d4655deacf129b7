"""
The matrix of real clients, proxies and servers: what its cells are, and what a client is to see.

A cell is a client (an SDK, in clients/, in one of its modes), a route (what is asked of the
gateway, and the transport and the eras of the server behind it) and a server. What the client saw,
step by step, is held to three things: what `wanted` says outright; what the same client saw
directly, over the same transport, at that server or, where client and server are of different
eras, at the fixture of the client's own (at other servers it sees nothing directly then); and
DIFFERENCES, which has each step that may differ from that, and why. docs/peers.md tells it in
prose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
PYTHON = ("mcp1", "mcp2")
JAVASCRIPT = ("sdk1", "client2")
SERVERS = {"fixture": None, "everything": "legacy", "server2": "modern"}
"""The one era that a server speaks; the fixture is told by the route."""
STEPS = (
    "initialize", "lists", "read", "call", "headers", "together", "progress", "sampling",
    "elicitation", "rounds", "prompt", "update", "changed", "cancel", "errors", "delete", "loss",
    "fresh", "large",
)  # fmt: skip


@dataclass(frozen=True)
class Client:
    """
    An SDK and how it is set.

    mode: the era it is told to speak; `auto` speaks the modern one where that is served, and that
        is everywhere behind the gateway.
    """

    program: str
    mode: str = "legacy"

    @property
    def era(self) -> str:
        return "legacy" if self.mode == "legacy" else "modern"


CLIENTS = {
    "mcp1": Client("mcp1"),
    "mcp2": Client("mcp2"),
    "mcp2-modern": Client("mcp2", "modern"),
    "mcp2-auto": Client("mcp2", "auto"),
    "sdk1": Client("sdk1"),
    "client2": Client("client2"),
    "client2-modern": Client("client2", "modern"),
    "client2-auto": Client("client2", "auto"),
}
"""PyPI `mcp` 1.x and 2.x, npm `@modelcontextprotocol/sdk` 1.x and `client` 2.x."""


@dataclass(frozen=True)
class Route:
    """
    What is asked of the gateway, and what is behind it.

    transport: what the client speaks. entry: which of a server's entries in the gateway's
    configuration it asks. eras: those that the fixture there speaks.
    """

    transport: str
    entry: str
    eras: str

    @property
    def path(self) -> str:
        return "mcp" if self.transport == "http" else "sse"


ROUTES = {
    "streamable-stdio": Route("http", "stdio", "both"),
    "streamable-http": Route("http", "gathered", "both"),
    "streamable-sse": Route("http", "sse", "legacy"),
    "transparent-http": Route("http", "http", "both"),
    "sse-stdio": Route("sse", "stdio", "both"),
    "sse-http": Route("sse", "http", "both"),
    "sse-sse": Route("sse", "sse", "legacy"),
    # Each server of one era; HTTP+SSE is such a one already.
    "mcp-legacy-stdio": Route("http", "legacy-stdio", "legacy"),
    "mcp-modern-stdio": Route("http", "modern-stdio", "modern"),
    "mcp-legacy-http": Route("http", "legacy-http", "legacy"),
    "mcp-modern-http": Route("http", "modern-http", "modern"),
    "sse-legacy-stdio": Route("sse", "legacy-stdio", "legacy"),
    "sse-modern-stdio": Route("sse", "modern-stdio", "modern"),
    "sse-legacy-http": Route("sse", "legacy-http", "legacy"),
    "sse-modern-http": Route("sse", "modern-http", "modern"),
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

    @property
    def program(self) -> str:
        return CLIENTS[self.client].program

    @property
    def mode(self) -> str:
        return CLIENTS[self.client].mode

    @property
    def era(self) -> str:
        """What the client speaks through the gateway."""
        return CLIENTS[self.client].era

    @property
    def eras(self) -> str:
        """What the server speaks."""
        return SERVERS[self.server] or ROUTES[self.route].eras

    @property
    def crosses(self) -> bool:
        """Whether client and server speak different eras."""
        return self.eras not in ("both", self.era)

    @property
    def direct(self) -> tuple[str, str, str] | None:
        """Where the client looks directly: server, transport, eras; None: it can not."""
        if self.crosses and self.server != "fixture":
            return None
        if self.transport == "sse":
            return self.server, "sse", "legacy"
        return self.server, "http", self.era if self.crosses else self.eras


_ENTRIES = {
    "fixture": {route.entry for route in ROUTES.values()},
    # These speak one era, so they need no entries of their own for that.
    "everything": {"stdio", "http", "gathered", "sse"},
    "server2": {"modern-stdio", "modern-http"},
}


def _possible(client: Client, server: str, route: Route) -> bool:
    return route.entry in _ENTRIES[server] and (client.era == "legacy" or route.transport == "http")


CELLS = tuple(
    Cell(name, path, server)
    for name, client in CLIENTS.items()
    for server in SERVERS
    for path, route in ROUTES.items()
    if _possible(client, server, route)
)


# --- what is not done, or differs ---

NOT_DONE = {
    "delete and loss with a modern client": "it has no session; what it ends is a stream, see "
    "`cancel` and `update`",
    "HTTP+SSE with a modern client": "that transport is of the legacy era alone",
    "unsubscribing at server2": "nothing tells who is subscribed there; the fixture writes it down",
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
    """Whether a cancelled call is answered behind a route: by the fixture's HTTP transport."""
    legacy = ("http", "gathered", "legacy-http")
    return cell.server == "fixture" and ROUTES[cell.route].entry in legacy


DIFFERENCES = (
    Difference(
        "delete",
        lambda cell: cell.era == "legacy",
        "the gateway has one answer for a session that is gone, 404 -32001; the fixture says 404 "
        "-32600 or plain text, server-everything 400 -32000 or nothing at all",
    ),
    Difference(
        "loss",
        # mcp1 makes one error of any 404, and loses its connection over a 400.
        lambda cell: (
            cell.era == "legacy"
            and cell.transport == "http"
            and (cell.client, cell.server) != ("mcp1", "fixture")
        ),
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
        lambda cell: cell.program in JAVASCRIPT and cell.transport == "sse",
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
    if cell.era == "modern":
        return ("delete", "loss")
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

_WITHOUT: JSON = {"rounds": None, "prompt": None, "headers": None, "changed": None}
"""The steps for which only the fixture has tools."""

_ERRORS: JSON = {
    "legacy": {"tool": {"code": -32602}, "resource": {"code": -32002}},
    "modern": {"tool": {"code": -32602}, "resource": {"code": -32602}},
}
_FIXTURE: JSON = {
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
            "greet",
            "json_schema_2020_12_tool",
            "test_audio_content",
            "test_custom_headers",
            "test_echo",
            "test_elicitation",
            "test_elicitation_sep1034_defaults",
            "test_elicitation_sep1330_enums",
            "test_embedded_resource",
            "test_error_handling",
            "test_image_content",
            "test_input_required_result_capabilities",
            "test_input_required_result_elicitation",
            "test_input_required_result_list_roots",
            "test_input_required_result_multi_round",
            "test_input_required_result_multiple_inputs",
            "test_input_required_result_request_state",
            "test_input_required_result_sampling",
            "test_input_required_result_tampered_state",
            "test_large",
            "test_logging_tool",
            "test_missing_capability",
            "test_multiple_content_types",
            "test_reconnection",
            "test_sampling",
            "test_simple_text",
            "test_streaming_elicitation",
            "test_tool_with_logging",
            "test_tool_with_progress",
            "test_touch",
            "test_trigger_prompt_change",
            "test_trigger_tool_change",
            "test_unwatched",
            "test_wait",
            "test_was_cancelled",
        ],
        "resources": ["test://static-binary", "test://static-text", "test://watched-resource"],
        "prompts": [
            "test_input_required_result_prompt",
            "test_prompt_with_arguments",
            "test_prompt_with_embedded_resource",
            "test_prompt_with_image",
            "test_simple_prompt",
        ],
    },
    "read": {"begins": "This is the content of the static text resource."},
    "call": "This is a simple text response for testing.",
    "errors": _ERRORS["legacy"],
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
    "rounds": {
        "said": "me likes grün",
        "asked": [
            {"message": "Step 1: What is your name?"},
            {"message": "Step 2: What is your favorite color?"},
        ],
    },
    "prompt": {
        "said": "In the context of tests:",
        "asked": [{"message": "What context should the prompt use?"}],
    },
    "headers": "Got {'region': 'grün \U0001f600'}",
    "changed": "changed",
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
    **_WITHOUT,
    "update": {"updated": ["demo://resource/dynamic/text/1"], "said": []},
    "cancel": {"seen": None, "after": "Echo: grün \U0001f600"},
    "fresh": "Echo: grün \U0001f600",
    "large": [_text("Echo: " + "x" * call["size"]) for call in PROFILES["everything"]["large"]],
}


def _modern(seen: JSON, **other: Any) -> JSON:
    """What a modern client sees where a legacy one sees this."""
    return {**seen, "initialize": {**seen["initialize"], "revision": "2026-07-28"}, **other}


_SERVER_2: JSON = {
    **_FIXTURE,
    "initialize": {
        "revision": "2025-11-25",
        "capabilities": {
            "prompts": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "tools": {"listChanged": True},
        },
    },
    "lists": {
        "tools": [
            "test_echo",
            "test_elicitation",
            "test_large",
            "test_sampling",
            "test_simple_text",
            "test_tool_with_progress",
            "test_touch",
            "test_wait",
            "test_was_cancelled",
        ],
        "resources": ["test://static-text"],
        "prompts": ["test_simple_prompt"],
    },
    "elicitation": {
        "said": f'User response: action=accept, content={{"username":"me","email":"{EMAIL}"}}',
        "asked": [{"message": "well?"}],
    },
    **_WITHOUT,
    "update": {"updated": ["test://watched/{unique}"], "said": []},
}
SEEN = {
    ("fixture", "legacy"): _FIXTURE,
    ("fixture", "modern"): _modern(_FIXTURE, errors=_ERRORS["modern"]),
    ("everything", "legacy"): _EVERYTHING,
    ("everything", "modern"): _modern(_EVERYTHING),
    ("server2", "legacy"): _SERVER_2,
    ("server2", "modern"): _modern(_SERVER_2, errors=_ERRORS["modern"]),
}
"""What every client of an era is to see of a server, through the gateway and directly."""

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
    steps = {**SEEN[cell.server, cell.era], "together": TOGETHER}
    if cell.era == "legacy":
        steps["delete"] = [404, -32001]
    if cell.client == "mcp1":
        answered = _answersCancelled(cell)
        ended: Any = {"code": -32800} if answered else {"code": -32000}
    else:
        ended = "cancelled"
    steps["cancel"] = {**steps["cancel"], "ended": ended}
    if cell.program == "client2":
        # It has an error of its own for this, with a code of its own.
        steps["errors"] = {**steps["errors"], "resource": {"code": -32602}}
    if cell.era == "legacy" and cell.transport == "http":
        steps["loss"] = {"deleted": True, "then": LOST[cell.client]}
    if "progress" in differences(cell):
        whole = steps["progress"]
        # That there is progress at all is seen in `cancel`, which waits for it.
        starts = [whole["seen"][:n] for n in range(len(whole["seen"]), -1, -1)]
        steps["progress"] = OneOf(*({**whole, "seen": start} for start in starts))
    if cell.client == "mcp2" and cell.transport == "sse":
        steps["large"] = {"error": "SSEError"}
    return steps


def complaints(cell: Cell, direct: JSON | None, through: JSON) -> list[str]:
    """What is wrong with what a client saw, directly if it could; empty if nothing is."""
    found = []
    done = set(STEPS) - set(leftOut(cell))
    for seen, where in ((direct, "directly"), (through, "through the gateway")):
        if seen is not None and set(seen) != done:
            found.append(f"{where} these steps were done: {sorted(seen)}")
    differing = differences(cell)
    for step, want in wanted(cell).items():
        if not matches(want, through.get(step)):
            found.append(f"{step}: wanted {want!r}, saw {through.get(step)!r}")
        if direct is None or step in differing:
            continue
        if not matches(want, direct.get(step)):
            found.append(f"{step}: wanted {want!r}, saw {direct.get(step)!r} directly")
    if direct is None:
        return found
    for step in sorted(done):
        here, there = through.get(step), direct.get(step)
        difference = differing.get(step)
        if difference is None and here != there:
            found.append(f"{step}: saw {here!r}, directly {there!r}")
        elif difference is not None and difference.always and here == there:
            found.append(f"{step}: saw what it sees directly, {here!r}; it is said to differ")
    return found
