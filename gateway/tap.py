"""
The command line: `twistd -n mcp-gateway …` and the script `mcp-gateway …`, with the same options.

This module alone knows the global reactor, and only as the main program of a process that is
ours; there it makes the reactor's clock monotonic and its poll quick, and has the garbage collector
leave alone what was there at the start.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python import usage

import gateway
from gateway.banner import banner
from gateway.config import (
    Configuration,
    ConfigurationError,
    demoServer,
    gatewaySettings,
    loadConfiguration,
    serverFromArguments,
)
from gateway.service import GatewayService

__all__ = ["Options", "main", "makeService"]

_log = Logger()


class Options(usage.Options):
    """The options of both commands."""

    synopsis = "[options] [URL | -- COMMAND [ARG...]]"
    longdesc = (
        "Serves MCP servers over Streamable HTTP and HTTP+SSE. With --config the servers of the "
        "file, with a URL or a command that one server, with nothing an embedded demo server."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "Serve the mcpServers of this JSON or TOML file."],
    ]
    optFlags: ClassVar = [
        ["check", None, "Check the configuration, start nothing."],
        ["allow-public", None, "Listen on a public address without authentication."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["words"] = ()

    def opt_listen(self, endpoint: str) -> None:
        """Listen here: a Twisted endpoint, default tcp:8080:interface=127.0.0.1. Repeatable."""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"mcp-gateway {gateway.__version__}")
        raise SystemExit(0)

    def parseArgs(self, *words: str) -> None:
        """The rest: a URL, or a command with its arguments."""
        self["words"] = words

    def postOptions(self) -> None:
        """Read the configuration; a mistake ends the process before anything is started."""
        try:
            self["configuration"] = self._configuration()
        except ConfigurationError as error:
            raise SystemExit(f"mcp-gateway: {error}") from None
        if self["check"]:
            print(_summary(self["configuration"]))
            raise SystemExit(0)

    def _configuration(self) -> Configuration:
        overrides: dict[str, object] = {}
        if self["listen"]:
            overrides["listen"] = list(self["listen"])
        if self["allow-public"]:
            overrides["allow_public"] = True
        words = self["words"]
        if self["config"] is not None:
            if words:
                raise usage.UsageError("give --config or a server, not both")
            return loadConfiguration(self["config"], os.environ, overrides)
        server = serverFromArguments(words) if words else demoServer()
        return Configuration(
            servers=(server,), gateway=gatewaySettings(overrides), source="command line"
        )


def _summary(configuration: Configuration) -> str:
    names = ", ".join(server.name for server in configuration.servers)
    lines = [f"{configuration.source}: fine", f"  servers: {names}"]
    lines += [f"  note: {notice}" for notice in configuration.notices]
    return "\n".join(lines)


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


def makeService(options: Options) -> GatewayService:
    """The service of these options, for a process that is ours."""
    from twisted.internet import reactor

    _ownClock(reactor)
    _ownPoll(reactor)
    return _OwnService(options["configuration"], reactor)


def _ownClock(reactor: Any) -> None:
    # Twisted's timers follow the wall clock; a step of it would fire them early or freeze them.
    reactor.seconds = time.monotonic


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


def main(words: Sequence[str] | None = None) -> None:
    """The script: run a gateway until SIGTERM or SIGINT."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if words is None else list(words))
    except usage.UsageError as error:
        raise SystemExit(f"mcp-gateway: {error}; see --help") from None
    from twisted.internet import reactor

    service = makeService(options)
    quiet = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    observer = FilteringLogObserver(textFileLogObserver(sys.stderr), [quiet])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", _stop, service)
    reactor.run()


def _stop(service: GatewayService) -> Deferred[None]:
    """Stop; another signal does not wait for that. Children left then are the reaper's."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    return service.stopService()


if __name__ == "__main__":
    main()
