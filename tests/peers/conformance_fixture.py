"""
The server that the official conformance suite and the matrix of real clients are run against, on
PyPI `mcp` 2.3.

It serves every name that the requirement set 2025-11-25 expects, and the tools of matrix_tools.py,
over stdio, Streamable HTTP or HTTP+SSE:

    python tests/peers/conformance_fixture.py --stdio
    python tests/peers/conformance_fixture.py --http 0      # prints "ready http://127.0.0.1:PORT/mcp"
    python tests/peers/conformance_fixture.py --sse 0       # prints "ready http://127.0.0.1:PORT/sse"

Over HTTP it has sessions, an event store for resumption, and protection against DNS rebinding.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import fixture_inputs
import fixture_state
import matrix_tools
import mcp_types as types
import uvicorn
from fixture_eras import ERAS, OneEraApp, oneEraStreams
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from starlette.applications import Starlette
from starlette.routing import Mount, Route

# Logging, sampling and roots are what this fixture is for, whatever the newest revision thinks.
warnings.simplefilter("ignore", MCPDeprecationWarning)

JSON = dict[str, Any]
Context = ServerRequestContext[Any, Any]
STEP_SECONDS = 0.05  # between the notifications of one tool call
PATIENCE_SECONDS = 10
"""How long the suite reads the stream of `test_reconnection`."""


def png() -> bytes:
    """A red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\0\0")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def wav() -> bytes:
    """Eight samples of silence."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    data = struct.pack("<4sI", b"data", 8) + b"\x80" * 8
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


PNG, WAV = base64.b64encode(png()).decode(), base64.b64encode(wav()).decode()


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": WAV, "mimeType": "audio/wav"}


def embedded(uri: str, mime: str, said: str) -> JSON:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": said}}


# --- tools ---


async def withLogging(ctx: Context, _: JSON) -> list[JSON]:
    steps = ["Tool execution started", "Tool processing data", "Tool execution completed"]
    for n, step in enumerate(steps):
        if n:
            await anyio.sleep(STEP_SECONDS)
        await ctx.session.send_log_message("info", step, related_request_id=ctx.request_id)
    return [text("Logged three times.")]


async def withProgress(ctx: Context, _: JSON) -> list[JSON]:
    for done in (0, 50, 100):
        if done:
            await anyio.sleep(STEP_SECONDS)
        await ctx.session.report_progress(done, 100)
    return [text("Reported progress three times.")]


async def sampling(ctx: Context, params: types.CallToolRequestParams) -> list[JSON]:
    asked = fixture_inputs.sample(str((params.arguments or {})["prompt"]))
    answer = (await fixture_inputs.ask(ctx, params, {"sample": asked}))["sample"]
    return [text(f"LLM response: {answer['content'].get('text', 'no text')}")]


async def elicit(
    ctx: Context,
    params: types.CallToolRequestParams,
    message: str,
    properties: JSON,
    required: list[str],
) -> str:
    schema = {"type": "object", "properties": properties, "required": required}
    asked = {"mode": "form", "message": message, "requestedSchema": schema}
    form = {"method": "elicitation/create", "params": asked}
    answer = (await fixture_inputs.ask(ctx, params, {"form": form}))["form"]
    return f"action={answer['action']}, content={json.dumps(answer.get('content'))}"


async def elicitation(ctx: Context, params: types.CallToolRequestParams) -> list[JSON]:
    properties = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    message = str((params.arguments or {})["message"])
    said = await elicit(ctx, params, message, properties, list(properties))
    return [text(f"User response: {said}")]


async def elicitationDefaults(ctx: Context, params: types.CallToolRequestParams) -> list[JSON]:
    statuses = ["active", "inactive", "pending"]
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": statuses, "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return [
        text(f"Elicitation completed: {await elicit(ctx, params, 'Defaults?', properties, [])}")
    ]


def titled(kind: str) -> list[JSON]:
    ordinals = enumerate(("First", "Second", "Third"), 1)
    return [{"const": f"value{n}", "title": f"{ordinal} {kind}"} for n, ordinal in ordinals]


async def elicitationEnums(ctx: Context, params: types.CallToolRequestParams) -> list[JSON]:
    options = ["option1", "option2", "option3"]
    properties = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled("Option")},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
    }
    return [text(f"Elicitation completed: {await elicit(ctx, params, 'Enums?', properties, [])}")]


async def reconnection(ctx: Context, _: JSON) -> list[JSON]:
    """
    Have the client come back for the answer.

    Where there is a stream to close it is closed. On stdio there is none: there the answer takes
    longer than the suite reads a stream, so that it is the suite that leaves and resumes.
    """
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
        await anyio.sleep(2 * STEP_SECONDS)
    else:
        await anyio.sleep(PATIENCE_SECONDS + 1)
    return [text("Reconnection test completed.")]


async def fails(_: Context, __: JSON) -> list[JSON]:
    raise ValueError("This tool intentionally returns an error for testing")


def fixed(*content: JSON) -> Callable[[Context, JSON], Awaitable[list[JSON]]]:
    async def answer(_: Context, __: JSON) -> list[JSON]:
        return list(content)

    return answer


def takes(*names: str) -> JSON:
    properties = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": properties, "required": list(names)}


SCHEMA_2020_12: JSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

EMBEDDED = embedded(
    "test://embedded-resource", "text/plain", "This is an embedded resource content."
)
MIXED = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')

TOOLS: dict[str, tuple[Callable[[Context, JSON], Awaitable[list[JSON]]], JSON]] = {
    "test_simple_text": (fixed(text("This is a simple text response for testing.")), takes()),
    "test_image_content": (fixed(IMAGE), takes()),
    "test_audio_content": (fixed(AUDIO), takes()),
    "test_embedded_resource": (fixed(EMBEDDED), takes()),
    "test_multiple_content_types": (fixed(text("Mixed content:"), IMAGE, MIXED), takes()),
    "test_tool_with_logging": (withLogging, takes()),
    "test_error_handling": (fails, takes()),
    "test_tool_with_progress": (withProgress, takes()),
    "test_reconnection": (reconnection, takes()),
    "json_schema_2020_12_tool": (fixed(text("Valid.")), SCHEMA_2020_12),
    **matrix_tools.TOOLS,
}
ASKING_TOOLS: dict[str, tuple[fixture_inputs.Tool, JSON]] = {
    "test_sampling": (sampling, takes("prompt")),
    "test_elicitation": (elicitation, takes("message")),
    "test_elicitation_sep1034_defaults": (elicitationDefaults, takes()),
    "test_elicitation_sep1330_enums": (elicitationEnums, takes()),
    **fixture_inputs.TOOLS,
}
"""Those that need more of a call than its arguments."""


async def listTools(_: Context, __: object) -> types.ListToolsResult:
    tools = [
        {"name": name, "description": f"Fixture {name}", "inputSchema": schema}
        for name, (_run, schema) in {**TOOLS, **ASKING_TOOLS}.items()
    ]
    return types.ListToolsResult.model_validate({"tools": tools})


async def callTool(
    ctx: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    try:
        if params.name in TOOLS:
            content, failed = await TOOLS[params.name][0](ctx, params.arguments or {}), False
        elif params.name in ASKING_TOOLS:
            content, failed = await ASKING_TOOLS[params.name][0](ctx, params), False
        else:
            raise MCPError(types.INVALID_PARAMS, "Unknown tool")
    except fixture_inputs.NeedsInput as needed:
        return needed.result
    except MCPError as error:
        if error.error.code in (types.INVALID_PARAMS, types.MISSING_REQUIRED_CLIENT_CAPABILITY):
            raise
        content, failed = [text(str(error))], True
    except (ValueError, KeyError) as error:
        content, failed = [text(str(error))], True
    return types.CallToolResult.model_validate({"content": content, "isError": failed})


# --- resources ---

RESOURCES: dict[str, JSON] = {
    "test://static-text": {
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched resource content"},
}
TEMPLATE = "test://template/{id}/data"


async def listResources(_: Context, __: object) -> types.ListResourcesResult:
    resources = [
        {"uri": uri, "name": uri.removeprefix("test://"), "mimeType": contents["mimeType"]}
        for uri, contents in RESOURCES.items()
    ]
    return types.ListResourcesResult.model_validate({"resources": resources})


async def listTemplates(_: Context, __: object) -> types.ListResourceTemplatesResult:
    template = {"uriTemplate": TEMPLATE, "name": "template", "mimeType": "application/json"}
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": [template]})


async def readResource(
    ctx: Context, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    uri = str(params.uri)
    before, after = TEMPLATE.split("{id}")
    id = uri.removeprefix(before).removesuffix(after)
    if uri in RESOURCES:
        contents = RESOURCES[uri]
    elif id and uri == before + id + after:
        data = {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}
        contents = {"mimeType": "application/json", "text": json.dumps(data)}
    else:
        code = types.INVALID_PARAMS if fixture_inputs.isModern(ctx) else -32002
        raise MCPError(code, "Resource not found", {"uri": uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": uri, **contents}]})


# --- prompts, completion, logging ---

PROMPTS: dict[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    fixture_inputs.PROMPT: (),
}


async def listPrompts(_: Context, __: object) -> types.ListPromptsResult:
    prompts = [
        {
            "name": name,
            "description": f"Fixture {name}",
            "arguments": [{"name": one, "description": one, "required": True} for one in arguments],
        }
        for name, arguments in PROMPTS.items()
    ]
    return types.ListPromptsResult.model_validate({"prompts": prompts})


async def getPrompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    if params.name not in PROMPTS:
        raise MCPError(types.INVALID_PARAMS, "Unknown prompt")
    given = params.arguments or {}
    if missing := [name for name in PROMPTS[params.name] if name not in given]:
        raise MCPError(types.INVALID_PARAMS, f"Missing arguments: {', '.join(missing)}")
    if params.name == "test_prompt_with_arguments":
        said = f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"
        content = [text(said)]
    elif params.name == "test_prompt_with_embedded_resource":
        resource = embedded(
            given["resourceUri"], "text/plain", "Embedded resource content for testing."
        )
        content = [resource, text("Please process the embedded resource above.")]
    elif params.name == "test_prompt_with_image":
        content = [IMAGE, text("Please analyze the image above.")]
    elif params.name == fixture_inputs.PROMPT:
        try:
            content = await fixture_inputs.prompt(ctx, params)
        except fixture_inputs.NeedsInput as needed:
            return needed.result
    else:
        content = [text("This is a simple prompt for testing.")]
    messages = [{"role": "user", "content": one} for one in content]
    return types.GetPromptResult.model_validate({"messages": messages})


async def complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    known = ["testValue1", "testValue2", "paris", "park", "party"]
    values = [one for one in known if one.startswith(params.argument.value)]
    completion = {"values": values, "total": len(values), "hasMore": False}
    return types.CompleteResult.model_validate({"completion": completion})


async def setLevel(_: Context, __: types.SetLevelRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


class Events(EventStore):
    """Every event of this process, numbered, for clients that resume a stream."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        if not last_event_id.isascii() or not last_event_id.isdigit():
            return None
        last = int(last_event_id)
        if not 1 <= last <= len(self._events):
            return None
        stream, _ = self._events[last - 1]
        for number, (of, message) in enumerate(self._events[last:], last + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Fixture(Server[Any]):
    """Its lists change, and it says so to legacy clients, too."""

    def create_initialization_options(
        self, notification_options: NotificationOptions | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        changing = notification_options or NotificationOptions(True, True, True)
        return super().create_initialization_options(changing, *args, **kwargs)


def makeServer() -> Server[Any]:
    return Fixture(
        "conformance-fixture",
        version="1.0.0",
        on_list_tools=listTools,
        on_call_tool=callTool,
        on_list_resources=listResources,
        on_list_resource_templates=listTemplates,
        on_read_resource=readResource,
        on_subscribe_resource=matrix_tools.subscribe,
        on_unsubscribe_resource=matrix_tools.unsubscribe,
        on_list_prompts=listPrompts,
        on_get_prompt=getPrompt,
        on_completion=complete,
        on_set_logging_level=setLevel,
        on_subscriptions_listen=matrix_tools.listen,
    )


async def serveStdio(era: str) -> None:
    server = makeServer()
    async with stdio_server() as streams, oneEraStreams(*streams, era) as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


async def serveHTTP(port: int, era: str) -> None:
    """Serve Streamable HTTP on loopback; port 0 takes a free one."""
    app = makeServer().streamable_http_app(
        host="127.0.0.1", event_store=Events(), retry_interval=500
    )
    await serve(OneEraApp(app, era), port, "/mcp")


async def serveSSE(port: int) -> None:
    """Serve HTTP+SSE on loopback."""
    server, sse = makeServer(), SseServerTransport("/messages/")

    class Stream:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with sse.connect_sse(scope, receive, send) as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())

    messages = Mount("/messages/", app=sse.handle_post_message)
    app = Starlette(routes=[Route("/sse", Stream(), methods=["GET"]), messages])
    await serve(app, port, "/sse")


async def serve(app: Any, port: int, path: str) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    # h11, for the other parser leaves the white space around a field's value in it.
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, http="h11")
    serving = uvicorn.Server(settings)
    print(f"ready http://127.0.0.1:{listening.getsockname()[1]}{path}", flush=True)
    await serving.serve(sockets=[listening])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--stdio", action="store_true")
    way.add_argument("--http", type=int, metavar="PORT")
    way.add_argument("--sse", type=int, metavar="PORT")
    parser.add_argument("--era", choices=ERAS, default="both", help="of stdio and --http")
    parser.add_argument("--state", metavar="DIR", help="shared by fixtures that remember together")
    chosen = parser.parse_args()
    if chosen.state is not None:
        fixture_state.keepIn(chosen.state)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    if chosen.stdio:
        anyio.run(serveStdio, chosen.era)
    elif chosen.sse is not None:
        anyio.run(serveSSE, chosen.sse)
    else:
        anyio.run(serveHTTP, chosen.http, chosen.era)


if __name__ == "__main__":
    main()
