"""
A gateway that is its whole process: what the process is told for it.

Loads all of the gateway and of Twisted that a process needs; `gateway.tap` does that when it knows
what for.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from gateway.banner import banner
from gateway.config import Configuration
from gateway.service import GatewayService

__all__ = ["ownService"]

_log = Logger()


class _OwnService(GatewayService):
    """A gateway that is the process: it says where it listens, and a taken port is the end."""

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            raise SystemExit(f"mcp-gateway: {_taken(error)}") from None

    def startService(self) -> None:
        try:
            super().startService()
        except CannotListenError as error:
            raise SystemExit(f"mcp-gateway: {_taken(error)}") from None
        # Once the reactor runs a signal is heard, too.
        self._reactor.callWhenRunning(self._announce)
        # Some 60,000 objects that stay for good need not be looked at in each full collection.
        gc.collect()
        gc.freeze()

    def _announce(self) -> None:
        print(banner(self.configuration, self.ports), flush=True)


def _taken(error: CannotListenError) -> str:
    where = f"{error.interface or '*'}:{error.port}"
    return f"cannot listen on {where}: {error.socketError}; choose another with --listen"


def ownService(configuration: Configuration, reactor: Any) -> GatewayService:
    """The gateway of this process; the reactor is the process's own, too."""
    # Twisted's timers follow the wall clock; a step of it would fire them early or freeze them.
    reactor.seconds = time.monotonic
    _ownPoll(reactor)
    return _OwnService(configuration, reactor)


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
