"""What an adversary found: each of these once crossed, hung, leaked or ended what it must not."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from stdio_support import CONTEXT, HELLO, Bench, Listener, call
from twisted.internet import reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.process import reapAllProcesses


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    await one.end()


# Children.


class _First(FileDescriptor):
    """Is heard before everything that becomes ready after `ring`, in one turn of the reactor."""

    def __init__(self, then: Any) -> None:
        super().__init__(reactor)
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._then = then
        self.startReading()

    def fileno(self) -> int:
        return self._ear.fileno()

    def ring(self) -> None:
        self._bell.send(b"!")

    def doRead(self) -> None:
        self._ear.recv(1)
        self._then()

    def end(self) -> None:
        self.stopReading()
        self._bell.close()
        self._ear.close()


@pytest_twisted.ensureDeferred
async def test_a_child_that_ends_takes_none_with_it_that_starts_meanwhile(bench: Bench) -> None:
    """The end of its pipes, told late, once went to who had their descriptors by then."""
    link, old = await bench.link()
    link.send(call(1, "self"), object(), CONTEXT)
    pid = (await old.structured(1))["pid"]
    young = Listener()
    rung: Deferred[None] = Deferred()
    started: list[Deferred[Any]] = []

    def spawn() -> None:
        reapAllProcesses()
        assert old.losses
        started.append(bench.server.link(HELLO, young, CONTEXT))
        rung.callback(None)

    first = _First(spawn)
    first.ring()
    # Its pipes hang up now; the reactor will be told of it after the bell.
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    await rung
    first.end()
    other = await started[0]
    other.send(call(1, "echo", a=1), object(), CONTEXT)
    assert await young.structured(1) == {"a": 1}
    assert young.losses == []
