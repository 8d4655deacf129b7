"""
A gateway that is its whole process: what the process is told for it, and what it hears of signals.

SIGHUP has the configuration read again; without a file there is nothing to read, and it is the end,
as SIGTERM and SIGINT are. The first of these drains; a second one ends the process at once:
children left then are the reaper's.

Loads all of the gateway and of Twisted that a process needs; `gateway.tap` does that when it knows
what for.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from gateway.banner import banner
from gateway.config import Configuration, ConfigurationError, Problem
from gateway.guard.memory import FreedMemory
from gateway.reloading import FileWatch, Reloading
from gateway.service import GatewayService, State

__all__ = ["ownService"]

_LARGEST = 16 * 1024 * 1024
"""Bytes of a block that is reused when it is freed."""

_log = Logger()


class _CannotStart(SystemExit, Exception):
    """
    The end, in one line.

    An Exception, too: who started a `twistd` that becomes a daemon would wait for ever to hear of
    what is none.
    """


class _OwnService(GatewayService):
    """
    A gateway that is the process: it says where it listens, and a taken port is the end.

    read: reads the configuration again; None where there is no file of it. watch: the file whose
    change has it read again, too.
    """

    def __init__(
        self,
        configuration: Configuration,
        reactor: Any,
        read: Callable[[], Configuration] | None,
        watch: str | None,
        encrypts: bool,
    ) -> None:
        super().__init__(configuration, reactor)
        self._encrypts = encrypts
        self._reloading = read and Reloading(read, self.reload, self.reloadRefused)
        self._watch = watch and FileWatch(watch, self._clock, self._asked)
        self._freed = FreedMemory(self._clock)

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except Exception as error:
            raise _CannotStart(f"mcp-gateway: {_cannotListen(error)}") from None

    def startService(self) -> None:
        try:
            super().startService()
        except Exception as error:
            raise _CannotStart(f"mcp-gateway: {_cannotListen(error)}") from None
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._asked))
        self._reactor.addSystemEventTrigger("before", "shutdown", _endAtOnce)
        if self._watch:
            self._watch.start()
        # Once the reactor runs a signal is heard, too.
        self._reactor.callWhenRunning(self._announce)
        # Some 60,000 objects that stay for good need not be looked at in each full collection.
        gc.collect()
        gc.freeze()
        _keepWhatIsFreed()
        self._freed.start()

    def stopService(self) -> Deferred[None]:
        self._freed.stop()
        if self._watch:
            self._watch.stop()
        return super().stopService()

    def _announce(self) -> None:
        print(banner(self.configuration, self.ports), flush=True)

    def _asked(self) -> None:
        if self._reloading:
            self._reloading.ask()
        elif self.state is State.READY:
            # There is nothing to read again: the terminal hung up.
            self._reactor.stop()

    def reload(self, configuration: Configuration) -> Deferred[None]:
        if configuration.encrypted and not self._encrypts:
            # Twisted was loaded without TLS (`gateway.tap`), which it does not get any more.
            error = ConfigurationError(
                [
                    Problem(
                        configuration.source,
                        "",
                        "a URL or an endpoint with TLS, of which nothing was loaded at the start",
                        "none of them until the process is started again",
                    )
                ]
            )
            self.reloadRefused(error)
            return fail(error)
        return super().reload(configuration)


def _keepWhatIsFreed() -> None:
    """
    Have the C library keep what was freed, up to blocks of `_LARGEST` bytes.

    glibc gives blocks as large as a body back to the system at once, until it has seen a larger one
    freed (mallopt(3), "dynamic mmap threshold"). Getting their pages anew took 1.4 ms of each copy
    of 4 MiB, in which nobody else had a turn; the copy itself takes 0.1. This block is never
    written to, so it takes no memory; another C library just frees it. What is kept is given back
    now and then, and at once where memory is short (`gateway.guard.memory`).
    """
    bytes(_LARGEST)


def _endAtOnce() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))


def _cannotListen(error: Exception) -> str:
    """In one line why it does not start, as far as that is not our own doing."""
    if isinstance(error, CannotListenError):
        where = f"{error.interface or '*'}:{error.port}"
        return f"cannot listen on {where}: {error.socketError}; choose another with --listen"
    if isinstance(error, LookupError):
        return "cannot listen: no such socket was handed over (LISTEN_FDS, LISTEN_PID)"
    if isinstance(error, OSError):
        return f"cannot listen: {error.filename or ''}: {error.strerror}"
    if isinstance(error, ValueError) or type(error).__module__.startswith("OpenSSL"):
        return f"cannot listen: {type(error).__name__}: {error}".splitlines()[0]
    raise error


def ownService(
    configuration: Configuration,
    reactor: Any,
    read: Callable[[], Configuration] | None = None,
    watch: str | None = None,
    *,
    encrypts: bool = True,
) -> GatewayService:
    """
    The gateway of this process; the reactor is the process's own, too.

    read, watch: how the configuration is read again, and the file whose change asks for it.
    encrypts: whether the process has all that TLS needs.
    """
    # Twisted's timers follow the wall clock; a step of it would fire them early or freeze them.
    reactor.seconds = time.monotonic
    _ownPoll(reactor)
    return _OwnService(configuration, reactor, read, watch, encrypts)


def _ownPoll(reactor: Any) -> None:
    """
    Have the reactor do what is ready without a log context for each, which costs 2 µs: nothing of
    ours logs by one (`twisted.python.log`).
    """
    names = ("_poller", "_selectables", "_doReadOrWrite")
    if type(reactor).__name__ == "EPollReactor" and all(hasattr(reactor, name) for name in names):
        reactor.doIteration = partial(_poll, reactor)


def _poll(reactor: Any, timeout: float | None) -> None:
    """As `EPollReactor.doPoll`."""
    selectables, do = reactor._selectables, reactor._doReadOrWrite
    for fd, event in reactor._poller.poll(-1 if timeout is None else timeout, len(selectables)):
        selectable = selectables.get(fd)
        # What was ready may be gone by now.
        if selectable is not None:
            try:
                do(selectable, fd, event)
            except Exception:
                _log.failure("while something was read or written")
