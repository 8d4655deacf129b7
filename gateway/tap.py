"""
The command line: `twistd -n mcp-gateway …` and the script `mcp-gateway …`, with the same options.

This module alone knows the global reactor, and only as the main program of a process that is
ours. It reads the configuration before it loads anything of the network: what is loaded follows
from it.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python import usage

import gateway
from gateway.config import (
    Configuration,
    ConfigurationError,
    demoServer,
    gatewaySettings,
    loadConfiguration,
    serverFromArguments,
)

if TYPE_CHECKING:
    from gateway.service import GatewayService

__all__ = ["Options", "main", "makeService"]


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
        ["watch", None, "Read the file of --config again when it changes, as SIGHUP does."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["words"] = ()
        self["file"] = self["read"] = None

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
            # The process may change its directory before it reads the file again.
            self["file"] = os.path.abspath(self["config"])
            load = partial(loadConfiguration, self["file"], os.environ, overrides)
            self["read"] = load
            return loadConfiguration(self["config"], os.environ, overrides)
        if self["watch"]:
            raise usage.UsageError("--watch needs --config: there is no other file")
        server = serverFromArguments(words) if words else demoServer()
        return Configuration(
            servers=(server,), gateway=gatewaySettings(overrides), source="command line"
        )


def _summary(configuration: Configuration) -> str:
    names = ", ".join(server.name for server in configuration.servers)
    lines = [f"{configuration.source}: fine", f"  servers: {names}"]
    lines += [f"  note: {notice}" for notice in configuration.notices]
    return "\n".join(lines)


def makeService(options: Options, *, encrypts: bool = True) -> GatewayService:
    """
    The service of these options, for a process that is ours; encrypts: whether TLS was loaded.
    """
    from twisted.internet import reactor

    from gateway.own import ownService

    watch = options["file"] if options["watch"] else None
    return ownService(options["configuration"], reactor, options["read"], watch, encrypts=encrypts)


@contextmanager
def _withoutTLS() -> Iterator[None]:
    """
    Load Twisted as it is where pyOpenSSL is not installed.

    It loads that wherever it can, and 12 MiB with it, whether or not anybody speaks TLS.
    """
    modules = cast(dict[str, object], sys.modules)
    if "OpenSSL" in modules:
        yield
        return
    modules["OpenSSL"] = None
    try:
        yield
    finally:
        del modules["OpenSSL"]


def main(words: Sequence[str] | None = None) -> None:
    """The script: run a gateway until SIGTERM or SIGINT."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if words is None else list(words))
    except usage.UsageError as error:
        raise SystemExit(f"mcp-gateway: {error}; see --help") from None
    encrypts = options["configuration"].encrypted
    with nullcontext() if encrypts else _withoutTLS():
        from twisted.internet import reactor

        service = makeService(options, encrypts=encrypts)
    quiet = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    observer = FilteringLogObserver(textFileLogObserver(sys.stderr), [quiet])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()


if __name__ == "__main__":
    main()
