"""
Tools and subscriptions of the fixture server that the matrix of real clients needs beside the
conformance suite's: what is cancelled, subscribed to and large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import fixture_inputs
import fixture_state
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import ListenHandler, ResourceUpdated

JSON = dict[str, Any]
Context = ServerRequestContext[Any, Any]
WAIT_SECONDS = 20
"""How long what nobody cancels runs."""


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


async def echo(_: Context, arguments: JSON) -> list[JSON]:
    return [text(arguments["message"])]


async def large(_: Context, arguments: JSON) -> list[JSON]:
    """A pattern, over and over."""
    return [text(arguments["pattern"] * arguments["times"])]


async def touch(_: Context, arguments: JSON) -> list[JSON]:
    """Change a resource; whoever is subscribed to it is told, on no request's stream."""
    there = await fixture_state.subscribed(arguments["uri"], waits=False)
    fixture_state.touch(arguments["uri"])
    return [text("told" if there else "nobody subscribed")]


async def unwatched(_: Context, arguments: JSON) -> list[JSON]:
    """Wait until nobody is subscribed to a resource: some end a subscription without a word."""
    there = await fixture_state.subscribed(arguments["uri"], waits=True)
    return [text("somebody is subscribed" if there else "nobody subscribed")]


async def wait(ctx: Context, arguments: JSON) -> list[JSON]:
    """Tell that it began, then do nothing until it is cancelled; that it was is written down."""
    try:
        await ctx.session.report_progress(0, 1)
        await anyio.sleep(WAIT_SECONDS)
    except anyio.get_cancelled_exc_class():
        fixture_state.noteCancelled(arguments["name"])
        raise
    return [text("nobody cancelled")]


async def wasCancelled(_: Context, arguments: JSON) -> list[JSON]:
    seen = await fixture_state.cancelled(arguments["name"])
    return [text("cancelled" if seen else "not cancelled")]


def takes(**kinds: str) -> JSON:
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(kinds)}


TOOLS: dict[str, tuple[Callable[[Context, JSON], Awaitable[list[JSON]]], JSON]] = {
    "test_echo": (echo, takes(message="string")),
    "test_large": (large, takes(pattern="string", times="integer")),
    "test_touch": (touch, takes(uri="string")),
    "test_unwatched": (unwatched, takes(uri="string")),
    "test_wait": (wait, takes(name="string")),
    "test_was_cancelled": (wasCancelled, takes(name="string")),
}


# --- subscriptions: of a legacy connection, and of a modern stream ---

Tell = Callable[[], Awaitable[None]]


def watched(uri: str, tell: Tell) -> ExitStack:
    """Subscribe: tell of each change, until the stack is closed."""
    stack = ExitStack()
    stack.enter_context(fixture_state.subscription(uri))
    watch = fixture_state.watch(uri, fixture_state.changes(uri), tell)
    stack.callback(asyncio.get_running_loop().create_task(watch).cancel)
    return stack


async def subscribe(ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
    uri, session, connection = str(params.uri), ctx.session, ctx.session._connection
    held: dict[str, ExitStack] = connection.state.setdefault("subscriptions", {})
    if uri not in held:

        async def tell() -> None:
            await session.send_resource_updated(uri)

        held[uri] = watched(uri, tell)
        # A connection that ends has unsubscribed.
        connection.exit_stack.callback(held[uri].close)
    return types.EmptyResult()


async def unsubscribe(ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    stack = ctx.session._connection.state.get("subscriptions", {}).pop(str(params.uri), None)
    if stack is not None:
        stack.close()
    return types.EmptyResult()


_serve = ListenHandler(fixture_inputs.bus)


async def listen(
    ctx: Context, params: types.SubscriptionsListenRequestParams
) -> types.SubscriptionsListenResult:
    with ExitStack() as stack:
        for uri in params.notifications.resource_subscriptions or ():
            updated = ResourceUpdated(uri=str(uri))
            stack.enter_context(watched(str(uri), partial(fixture_inputs.bus.publish, updated)))
        return await _serve(ctx, params)
