"""What goes out on one connection: bounded in each turn, in order, with back-pressure."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Iterator

import pytest
from attrs import define, field
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor, StringTransport

from gateway.http1.outflow import PIECE, Outflow

LARGE = bytes(range(256)) * 16 * 1024
"""4 MiB."""


@define(eq=False)
class Pair:
    """A plain socket's transport, whose reactor only knows who wants to write; and its peer."""

    reactor: MemoryReactor = field(factory=MemoryReactor)
    drains: int = 0
    got: bytes = b""
    transport: Connection = field(init=False)
    peer: socket.socket = field(init=False)
    out: Outflow = field(init=False)

    def __attrs_post_init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * len(LARGE))
        self.transport = Connection(ours, Protocol(), self.reactor)
        self.transport.connected = True
        self.out = Outflow(self.transport, self._drained)

    def _drained(self) -> None:
        self.drains += 1

    def read(self) -> int:
        """The peer reads what is there. Returns how much that was."""
        before = len(self.got)
        try:
            while data := self.peer.recv(1 << 20):
                self.got += data
        except BlockingIOError:
            pass
        return len(self.got) - before

    def turn(self) -> int:
        """A turn of the reactor. Returns how much came of it."""
        if self.transport in self.reactor.getWriters():
            self.transport.doWrite()
        return self.read()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.transport.socket.close()
    pair.peer.close()


def test_what_is_small_goes_at_once(pair: Pair) -> None:
    pair.out.write(b"a")
    pair.out.write(b"b")
    assert pair.read() == 2
    assert not pair.out.blocked
    assert not pair.reactor.getWriters()


@pytest.mark.parametrize("parts", [1, 3])
def test_of_what_is_large_each_turn_gives_a_piece(pair: Pair, parts: int) -> None:
    """The kernel would take all of it in one call, while everybody else waits."""
    size = len(LARGE) // parts
    pair.out.write(LARGE[:size])
    for at in range(size, len(LARGE), size):
        pair.out.follow(memoryview(LARGE)[at : at + size])
    pair.out.write(b"end")
    given = [pair.read()]
    assert pair.out.blocked
    while pair.out.blocked:
        given.append(pair.turn())
    assert max(given) <= PIECE
    assert pair.got == LARGE + b"end"
    assert pair.drains == 1
    assert not pair.reactor.getWriters()


def test_what_follows_waits_for_the_next_turn(pair: Pair) -> None:
    pair.out.write(b"head")
    pair.out.follow(b"body")
    assert pair.read() == 4
    assert pair.turn() == 4
    assert (pair.got, pair.drains) == (b"headbody", 1)


def test_a_peer_that_reads_nothing_is_seen_not_to(pair: Pair) -> None:
    pair.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair.out.write(LARGE)
    moved = -1
    while moved != pair.out.moved:
        moved = pair.out.moved
        pair.transport.doWrite()
    assert pair.out.blocked
    assert pair.drains == 0
    # As soon as it reads, that shows.
    pair.read()
    pair.transport.doWrite()
    assert pair.out.moved == moved + 1
    while pair.out.blocked:
        pair.turn()
    assert pair.got == LARGE


def test_it_is_closed_once_all_is_out(pair: Pair) -> None:
    pair.out.write(LARGE)
    closed: list[int] = []
    pair.out.close(lambda: closed.append(len(pair.got)))
    while not closed:
        pair.turn()
    pair.read()
    assert pair.got == LARGE
    assert pair.transport.producer is None
    assert pair.drains == 0


def test_a_lost_connection_holds_nothing(pair: Pair) -> None:
    pair.out.write(LARGE)
    pair.out.stopProducing()
    pair.out.write(b"more")
    pair.transport.doWrite()
    assert pair.drains == 0


def test_nor_what_it_was_to_do_at_its_end(pair: Pair) -> None:
    """That is its connection's, which holds it: only the garbage collector would find the two."""

    def then() -> None:
        raise AssertionError("it was lost before")

    held = weakref.ref(then)
    pair.out.write(LARGE)
    pair.out.close(then)
    del then
    pair.out.stopProducing()
    assert held() is None
    pair.transport.doWrite()


def test_through_anything_else_than_a_plain_socket_pieces_go_until_it_has_enough() -> None:
    transport = StringTransport()
    drains: list[int] = []
    out = Outflow(transport, lambda: drains.append(len(transport.value())))
    out.write(b"small")
    assert not out.blocked
    out.pauseProducing()
    out.write(LARGE)
    out.follow(b"end")
    assert transport.value() == b"small"
    out.resumeProducing()
    assert transport.value() == b"small" + LARGE + b"end"
    assert drains == [len(LARGE) + 8]
