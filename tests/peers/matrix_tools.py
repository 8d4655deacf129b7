"""
Tools of the fixture server that the matrix of real clients needs beside the conformance suite's:
what is cancelled, subscribed to and large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import fixture_inputs
from mcp.server.context import ServerRequestContext

JSON = dict[str, Any]
Context = ServerRequestContext[Any, Any]
PATIENCE_SECONDS = 20
"""How long it is waited for a cancellation, and how long what nobody cancels runs."""

# The names and URIs in here are made up by a client for one run, so that clients of one process
# do not meet.
subscribed: set[str] = set()
_cancelled: dict[str, anyio.Event] = {}


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


async def echo(_: Context, arguments: JSON) -> list[JSON]:
    return [text(arguments["message"])]


async def large(_: Context, arguments: JSON) -> list[JSON]:
    """A pattern, over and over."""
    return [text(arguments["pattern"] * arguments["times"])]


async def touch(ctx: Context, arguments: JSON) -> list[JSON]:
    """Tell that a resource changed, on no request's stream, if anybody subscribed to it."""
    uri = arguments["uri"]
    if await fixture_inputs.touched(ctx, uri):
        return [text("told")]
    if uri not in subscribed:
        return [text("nobody subscribed")]
    await ctx.session.send_resource_updated(uri)
    return [text("told")]


async def wait(ctx: Context, arguments: JSON) -> list[JSON]:
    """Tell that it began, then do nothing until it is cancelled; that it was is written down."""
    cancelled = _cancelled.setdefault(arguments["name"], anyio.Event())
    try:
        await ctx.session.report_progress(0, 1)
        await anyio.sleep(PATIENCE_SECONDS)
    except anyio.get_cancelled_exc_class():
        cancelled.set()
        raise
    return [text("nobody cancelled")]


async def wasCancelled(_: Context, arguments: JSON) -> list[JSON]:
    with anyio.move_on_after(PATIENCE_SECONDS):
        await _cancelled.setdefault(arguments["name"], anyio.Event()).wait()
        return [text("cancelled")]
    return [text("not cancelled")]


def takes(**kinds: str) -> JSON:
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(kinds)}


TOOLS: dict[str, tuple[Callable[[Context, JSON], Awaitable[list[JSON]]], JSON]] = {
    "test_echo": (echo, takes(message="string")),
    "test_large": (large, takes(pattern="string", times="integer")),
    "test_touch": (touch, takes(uri="string")),
    "test_wait": (wait, takes(name="string")),
    "test_was_cancelled": (wasCancelled, takes(name="string")),
}
