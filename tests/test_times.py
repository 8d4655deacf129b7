"""Tools may have times of their own."""

from __future__ import annotations

from typing import Any

import pytest
from relay_support import CONTEXT, Bench, MemoryTarget, request

from gateway.config import ConfigurationError, readConfiguration
from gateway.guard.limits import Limits
from gateway.relay.modern_router import ModernRouter
from gateway.relay.times import CallTimes
from gateway.settings import ToolTimeout
from gateway.testing.scripted import ScriptedServer

TOOLS = (
    ToolTimeout("slow_*", 1000.0),
    ToolTimeout("slow_exact", 20.0),
    ToolTimeout("capped", 5.0, 8.0),
    ToolTimeout("only_most", None, 50.0),
    ToolTimeout("slow_*_never", 1.0),
)


def call(name: str, token: str = "") -> str:
    meta = f',"_meta":{{"progressToken":"{token}"}}' if token else ""
    return f'{{"name":"{name}"{meta}}}'


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("slow_one", (1000.0, 1000.0)),
        ("slow_exact", (20.0, 300.0)),
        ("slow_x_never", (1000.0, 1000.0)),
        ("capped", (5.0, 8.0)),
        ("only_most", (50.0, 50.0)),
        ("other", (100.0, 300.0)),
    ],
)
def test_whose_times_hold(name: str, times: tuple[float, float]) -> None:
    known = CallTimes(100.0, 300.0, TOOLS)
    assert known.times(request(1, "tools/call", call(name))) == times
    assert known.times(request(1, "prompts/get", call(name))) == (100.0, 300.0)


@pytest.mark.acceptance(49)
def test_a_tools_call_times_out_and_its_progress_extends() -> None:
    bench = Bench(ScriptedServer(timeout=100.0, tool_timeouts=TOOLS)).opened()

    def ask(id: int, name: str) -> MemoryTarget:
        return bench.ask(id, "tools/call", call(name, "t" if name == "capped" else ""))

    capped, other = ask(1, "capped"), ask(2, "other")
    bench.clock.advance(4.0)
    token = bench.server.newest.of("tools/call")[0].id
    progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b}}'
    bench.server.newest.push(progress % token)
    bench.clock.advance(3.9)
    assert not capped.answers, "progress gave it its five seconds again"
    bench.clock.advance(0.2)
    assert capped.reason == "timeout", "but not more than eight"
    assert len(bench.server.newest.of("notifications/cancelled")) == 1
    bench.clock.advance(91.0)
    assert not other.answers
    bench.clock.advance(1.0)
    assert other.reason == "timeout"
    bench.end()


def test_modern_calls_have_them_too() -> None:
    times = CallTimes(100.0, 300.0, TOOLS)
    router = ModernRouter("scripted", Limits(), 100.0, 300.0, times)
    router.request(request(1, "tools/call", call("capped")), object(), CONTEXT, 0.0)
    assert router.soonest == 5.0


def read(tools: Any) -> Any:
    document = {"mcpServers": {"a": {"command": "x", "tool_timeouts": tools}}}
    return readConfiguration(document).servers[0].tool_timeouts


def test_as_they_are_written() -> None:
    assert read({"a*": 10, "b": {"timeout": 5, "max_timeout": 7200}, "c": {"max_timeout": 9}}) == (
        ToolTimeout("a*", 10.0),
        ToolTimeout("b", 5.0, 7200.0),
        ToolTimeout("c", None, 9.0),
    )


@pytest.mark.parametrize(
    "wrong", [7, {"a": "x"}, {"a": 0}, {"a": {"timeout": 9, "max_timeout": 5}}, {"a": {"x": 1}}]
)
def test_what_is_wrong_is_said(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="tool_timeouts"):
        read(wrong)
