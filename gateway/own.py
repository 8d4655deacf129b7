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
from typing import Any

from twisted.internet.error import CannotListenError

from gateway.banner import banner
from gateway.config import Configuration
from gateway.service import GatewayService

__all__ = ["ownService"]


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
    return _OwnService(configuration, reactor)
