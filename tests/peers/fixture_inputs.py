"""
Tools and a prompt of the fixture server that need something of their client, written once for both
eras: towards a modern client they answer `input_required` and are called again (MCP 2026-07-28,
basic/patterns/mrtr), of a legacy client they ask while the call runs.

Beside them: what the requirement set 2026-07-28 wants to see of capabilities, lists that change and
parameters that stand in header fields.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

JSON = dict[str, Any]
Context = ServerRequestContext[Any, Any]
Params = types.CallToolRequestParams | types.GetPromptRequestParams
Questions = Mapping[str, JSON]
"""By key: a request as `inputRequests` has it."""

bus = InMemorySubscriptionBus()
"""Where changes are told for streams of `subscriptions/listen`."""

_KEY = secrets.token_bytes(32)


@dataclass
class NeedsInput(Exception):
    """A modern client has to be asked, and to call again."""

    questions: Questions
    state: str | None

    @property
    def result(self) -> types.InputRequiredResult:
        said: JSON = {"resultType": "input_required", "inputRequests": dict(self.questions)}
        if self.state is not None:
            said["requestState"] = self.state
        return types.InputRequiredResult.model_validate(said)


def isModern(ctx: Context) -> bool:
    return ctx.session.protocol_version in MODERN_PROTOCOL_VERSIONS


def sealed(said: str) -> str:
    return f"{said}.{hmac.new(_KEY, said.encode(), hashlib.sha256).hexdigest()}"


def opened(state: str | None) -> str | None:
    """What a state says; None without one. Raises MCPError for one that is not ours."""
    if state is None:
        return None
    said, _, _mac = state.rpartition(".")
    if not hmac.compare_digest(sealed(said), state):
        raise MCPError(types.INVALID_PARAMS, "requestState is not valid")
    return said


async def ask(
    ctx: Context, params: Params, questions: Questions, state: str | None = None
) -> dict[str, JSON]:
    """
    The client's results by key. Towards a modern client that has not said all of it:
    raises NeedsInput; state: what it shall bring back.
    """
    if not isModern(ctx):
        return await _askNow(ctx, questions)
    given = params.input_responses or {}
    said = {key: given[key] for key in questions if key in given}
    if len(said) < len(questions):
        raise NeedsInput(questions, None if state is None else sealed(state))
    return {
        key: one if isinstance(one, dict) else one.model_dump(by_alias=True, exclude_none=True)
        for key, one in said.items()
    }


async def _askNow(ctx: Context, questions: Questions) -> dict[str, JSON]:
    said: dict[str, JSON] = {}
    failed: list[MCPError] = []

    async def one(key: str, asked: JSON) -> None:
        request, result = _REQUESTS[asked["method"]]
        metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
        try:
            answer = await ctx.session.send_request(
                request.model_validate(asked), result, metadata=metadata
            )
        except MCPError as error:
            # A group of exceptions would say nothing to the client.
            failed.append(error)
        else:
            said[key] = answer.model_dump(by_alias=True, exclude_none=True)

    async with anyio.create_task_group() as group:
        for key, asked in questions.items():
            group.start_soon(one, key, asked)
    if failed:
        raise failed[0]
    return said


_REQUESTS: dict[str, tuple[type[Any], type[Any]]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


def form(message: str, name: str, kind: str = "string") -> JSON:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def sample(said: str, most: int = 100) -> JSON:
    message = {"role": "user", "content": {"type": "text", "text": said}}
    return {
        "method": "sampling/createMessage",
        "params": {"messages": [message], "maxTokens": most},
    }


ROOTS: JSON = {"method": "roots/list", "params": {}}
NAME = {"user_name": form("What is your name?", "name")}
CAPITAL = {"capital_question": sample("What is the capital of France?")}


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


def entered(answer: JSON) -> JSON:
    content = answer.get("content")
    return content if isinstance(content, dict) else {}


# --- tools; each takes the call's parameters, too ---


async def greets(ctx: Context, params: Params) -> list[JSON]:
    said = await ask(ctx, params, NAME)
    return [text(f"Hello, {entered(said['user_name']).get('name')}!")]


async def samples(ctx: Context, params: Params) -> list[JSON]:
    said = await ask(ctx, params, CAPITAL)
    return [text(f"It said: {said['capital_question']['content']}")]


async def listsRoots(ctx: Context, params: Params) -> list[JSON]:
    said = await ask(ctx, params, {"client_roots": ROOTS})
    return [text(f"Roots: {[root['uri'] for root in said['client_roots']['roots']]}")]


async def keepsState(ctx: Context, params: Params) -> list[JSON]:
    opened(params.request_state)
    await ask(ctx, params, {"confirm": form("Please confirm", "ok", "boolean")}, "confirmed?")
    return [text("state-ok")]


async def asksThrice(ctx: Context, params: Params) -> list[JSON]:
    opened(params.request_state)
    asked = {**NAME, "greeting": sample("Generate a greeting", 50), "client_roots": ROOTS}
    said = await ask(ctx, params, asked, "three")
    return [text(f"Got {', '.join(sorted(said))}")]


async def asksTwice(ctx: Context, params: Params) -> list[JSON]:
    """Two rounds; the second one's state carries what the first one learned."""
    first, second = "Step 1: What is your name?", "Step 2: What is your favorite color?"
    known = opened(params.request_state)
    if isModern(ctx) and known is not None and known.startswith("name:"):
        name = known.removeprefix("name:")
    else:
        said = await ask(ctx, params, {"step1": form(first, "name")}, "step1")
        name = str(entered(said["step1"]).get("name"))
    said = await ask(ctx, params, {"step2": form(second, "color")}, f"name:{name}")
    return [text(f"{name} likes {entered(said['step2']).get('color')}")]


async def fitsCapabilities(ctx: Context, params: Params) -> list[JSON]:
    """Asks for what its client can do only."""
    offered = ctx.session.client_capabilities
    questions: dict[str, JSON] = {}
    if offered is not None and offered.elicitation is not None:
        questions.update(NAME)
    if offered is not None and offered.sampling is not None:
        questions.update(CAPITAL)
    if not questions:
        return [text("there is nothing to ask of this client")]
    said = await ask(ctx, params, questions)
    return [text(f"Got {', '.join(sorted(said))}")]


async def needsSampling(ctx: Context, params: Params) -> list[JSON]:
    offered = ctx.session.client_capabilities
    if isModern(ctx) and (offered is None or offered.sampling is None):
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "sampling is required",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return await samples(ctx, params)


async def logs(ctx: Context, _: Params) -> list[JSON]:
    await ctx.session.send_log_message("info", "a log message", related_request_id=ctx.request_id)
    return [text("logged")]


async def changesTools(ctx: Context, _: Params) -> list[JSON]:
    if isModern(ctx):
        await bus.publish(ToolsListChanged())
    else:
        await ctx.session.send_tool_list_changed()
    return [text("changed")]


async def changesPrompts(ctx: Context, _: Params) -> list[JSON]:
    if isModern(ctx):
        await bus.publish(PromptsListChanged())
    else:
        await ctx.session.send_prompt_list_changed()
    return [text("changed")]


async def headed(_: Context, params: Params) -> list[JSON]:
    return [text(f"Got {params.arguments}")]


async def greetsByName(_: Context, params: Params) -> list[JSON]:
    return [text(f"Hello, {(params.arguments or {}).get('name')}!")]


def takes(**properties: JSON) -> JSON:
    return {"type": "object", "properties": properties, "required": list(properties)}


NOTHING: JSON = {"type": "object", "properties": {}}
REGION: JSON = {"type": "string", "x-mcp-header": "Region"}

Tool = Callable[[Context, Params], Awaitable[list[JSON]]]
TOOLS: dict[str, tuple[Tool, JSON]] = {
    "test_input_required_result_elicitation": (greets, NOTHING),
    "test_input_required_result_sampling": (samples, NOTHING),
    "test_input_required_result_list_roots": (listsRoots, NOTHING),
    "test_input_required_result_request_state": (keepsState, NOTHING),
    "test_input_required_result_multiple_inputs": (asksThrice, NOTHING),
    "test_input_required_result_multi_round": (asksTwice, NOTHING),
    "test_input_required_result_tampered_state": (keepsState, NOTHING),
    "test_input_required_result_capabilities": (fitsCapabilities, NOTHING),
    "test_missing_capability": (needsSampling, NOTHING),
    "test_streaming_elicitation": (greets, NOTHING),
    "test_logging_tool": (logs, NOTHING),
    "test_trigger_tool_change": (changesTools, NOTHING),
    "test_trigger_prompt_change": (changesPrompts, NOTHING),
    "greet": (greetsByName, takes(name={"type": "string"})),
    "test_custom_headers": (headed, takes(region=REGION)),
}

PROMPT = "test_input_required_result_prompt"


async def prompt(ctx: Context, params: Params) -> list[JSON]:
    asked = {"user_context": form("What context should the prompt use?", "context")}
    said = await ask(ctx, params, asked)
    return [text(f"In the context of {entered(said['user_context']).get('context')}:")]
