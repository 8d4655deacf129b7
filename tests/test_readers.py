"""Back-pressure from a client's streams to its link."""

from __future__ import annotations

import pytest
from relay_support import CONTEXT, Bench, MemoryTarget

from gateway.testing.scripted import ScriptedServer

pytestmark = pytest.mark.acceptance(52)


def open_(bench: Bench, target: MemoryTarget) -> MemoryTarget:
    """The answer to a POST becomes a stream."""
    bench.relay.readerOpened(target, target)
    return target


def test_acceptance_52_a_child_that_feeds_one_blocked_reader_alone_is_held() -> None:
    bench = Bench().opened()
    link = bench.server.newest
    target = open_(bench, bench.ask())
    bench.relay.readerBlocked(target)
    assert link.held == [None]
    bench.relay.readerBlocked(target)
    assert link.held == [None]
    bench.relay.readerDrained(target)
    bench.relay.readerDrained(target)
    assert link.held == []
    bench.end()


def test_a_child_that_feeds_others_too_is_not_held() -> None:
    bench = Bench().opened()
    link = bench.server.newest
    blocked = open_(bench, bench.ask())
    other = bench.stream()
    bench.relay.readerBlocked(blocked)
    assert link.held == []
    # It was the last other reader.
    bench.relay.detach(other)
    bench.relay.readerClosed(other)
    assert link.held == [None]
    # Another call wants its answer.
    second = bench.ask(2, streams=False)
    assert link.held == []
    link.reply(link.last("tools/call"))
    assert second.json["id"] == 2
    # It has it, and the child feeds the blocked reader alone again.
    assert link.held == [None]
    bench.end()


def test_two_blocked_readers_hold_nobody() -> None:
    bench = Bench().opened()
    for _ in range(2):
        bench.relay.readerBlocked(bench.stream())
    assert bench.server.newest.held == []
    bench.end()


def test_a_blocked_reader_that_goes_away_lets_the_child_go_on() -> None:
    bench = Bench().opened()
    stream = bench.stream()
    bench.relay.readerBlocked(stream)
    assert bench.server.newest.held == [None]
    bench.relay.detach(stream)
    bench.relay.readerClosed(stream)
    assert bench.server.newest.held == []
    bench.end()


def test_a_blocked_reader_holds_the_next_link_too() -> None:
    bench = Bench().opened()
    stream = bench.stream()
    bench.relay.readerBlocked(stream)
    bench.server.newest.lose()
    bench.relay.acquire(CONTEXT)
    assert bench.server.newest.held == [None]
    bench.relay.readerDrained(stream)
    assert bench.server.newest.held == []
    bench.end()


def test_over_http_only_the_readers_own_response_is_held() -> None:
    bench = Bench(ScriptedServer(http=True)).opened()
    link = bench.server.newest
    target, other = open_(bench, bench.ask()), open_(bench, bench.ask(2))
    call = link.of("tools/call")[0].call
    bench.relay.readerBlocked(target)
    assert link.held == [call]
    bench.relay.readerBlocked(other)
    assert len(link.held) == 2
    bench.relay.readerDrained(target)
    assert link.held == [link.of("tools/call")[1].call]
    bench.relay.readerClosed(other)
    assert link.held == []
    bench.end()


def test_over_http_a_get_stream_holds_the_servers() -> None:
    bench = Bench(ScriptedServer(http=True), transparent=True).opened()
    link = bench.server.newest
    stream = bench.stream()
    bench.relay.readerBlocked(stream)
    assert link.held == [stream]
    bench.relay.readerDrained(stream)
    assert link.held == []
    bench.end()


def test_over_http_a_reader_that_blocks_at_its_first_bytes_holds_its_own_response_too() -> None:
    bench = Bench(ScriptedServer(http=True)).opened()
    link = bench.server.newest
    target = bench.ask()
    call = link.last("tools/call").call
    bench.relay.readerBlocked(target)
    assert link.held == []
    open_(bench, target)
    assert link.held == [call]
    bench.relay.readerDrained(target)
    assert link.held == []
    # One that was gone before it was open holds nobody.
    bench.relay.readerBlocked(target)
    bench.relay.readerClosed(target)
    assert link.held == []
    bench.end()
