"""
The configuration: the `mcpServers` file that MCP clients have already, plus a `gateway` section,
in JSON or TOML.

Nothing is started and nothing is looked up here: a file becomes a Configuration, or a
ConfigurationError with all of its mistakes. docs/configuration.md is made from this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
from attrs import Factory, frozen

from gateway.config.document import Node, Report, meant, nearest, printable, readDocument
from gateway.config.servers import Reader, readMembers, readServers, refuseUnknown
from gateway.config.values import isPlain, isPublic, readEndpoint, readHost, readList, readOrigin
from gateway.guard.limits import Limits
from gateway.settings import HTTPSettings, ServerSettings

__all__ = [
    "MAX_SECONDS",
    "Configuration",
    "GatewaySettings",
    "gatewaySettings",
    "loadConfiguration",
    "readConfiguration",
]

MAX_SECONDS = 2_000_000
"""Seconds a limit may be: poll(2) and epoll(7) wait at most 2**31 ms."""


@frozen(kw_only=True)
class GatewaySettings:
    """
    The `gateway` section.

    listen: where to listen, as Twisted endpoint descriptions.
    allowed_hosts: what a request's Host may be beside the loopback names at the listener's own
        port: `name` (at the scheme's port), `name:port`, or `name:*` for any port.
    allowed_origins: what a request's Origin may be beside the allowed hosts, as
        `scheme://host[:port]`.
    allow_public: whether to listen without authentication where other machines can reach it.
    memory_limit: bytes of memory of the gateway itself, without its servers, near which it takes
        no more: at 85 % no session, at 92 % idle ones end, at 95 % no call. None: the limit of its
        cgroup (v2), where it has one. "off": no limit.
    limits: the bounds, see below.
    """

    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_public: bool = False
    memory_limit: int | None = None
    limits: Limits = Factory(Limits)


@frozen(kw_only=True)
class Configuration:
    """
    A whole configuration.

    servers: the servers, without the disabled ones; at most one is the default.
    gateway: everything else.
    source: the file's name, as it was given.
    notices: what was accepted and has no effect, a line each, without a secret.
    """

    servers: tuple[ServerSettings, ...]
    gateway: GatewaySettings
    source: str
    notices: tuple[str, ...] = ()

    @property
    def encrypted(self) -> bool:
        """Whether TLS may be spoken: to a server, or at a listener."""
        servers = (one for one in self.servers if isinstance(one, HTTPSettings))
        if any(urlsplit(one.url).scheme == "https" for one in servers):
            return True
        return not all(isPlain(endpoint) for endpoint in self.gateway.listen)


def _limits(node: Node) -> Limits | None:
    keys = node.table()
    if keys is None:
        return None
    fields = {field.name: field for field in attrs.fields(Limits)}
    refuseUnknown(keys, tuple(fields))
    made: dict[str, Any] = {}
    for name, field in fields.items():
        if name in keys:
            whole = isinstance(field.default, int)
            most = MAX_SECONDS if field.metadata["unit"] == "seconds" else 2**53
            unit, mayBeNone = field.metadata["unit"], field.metadata["mayBeNone"]
            made[name] = keys[name].number(unit, most, whole=whole, mayBeNone=mayBeNone)
    return Limits(**{name: value for name, value in made.items() if value is not None})


def _memory(node: Node) -> int | None:
    if node.value == "off":
        return 0
    value = node.number("bytes", 2**53, whole=True)
    return None if value is None else int(value)


def _privateEndpoint(node: Node) -> str | None:
    # Without authentication, whoever reaches the address may call every server.
    text = readEndpoint(node)
    if text is not None and isPublic(text):
        node.wrong(
            "a loopback address, e.g. tcp:8080:interface=127.0.0.1",
            f"{node.shown()} that other machines can reach, without authentication",
            'to allow it, set "allow_public": true in "gateway" or give --allow-public',
        )
    return text


def _listen(node: Node, read: Callable[[Node], str | None]) -> tuple[str, ...]:
    if node.value == []:
        node.wrong("at least one endpoint", "an empty list")
    return readList(node, read)


_GATEWAY: dict[str, Reader] = {
    "allowed_hosts": lambda node: readList(node, readHost),
    "allowed_origins": lambda node: readList(node, readOrigin),
    "allow_public": Node.flag,
    "memory_limit": _memory,
    "limits": _limits,
}


def _gateway(node: Node, overrides: Mapping[str, object]) -> GatewaySettings:
    keys = node.table() or {}
    report = node.report
    commandLine = Report("command line", None, report.problems, report.notices)
    for key, value in overrides.items():
        listed = list(value) if isinstance(value, tuple) else value
        keys[key] = Node(listed, f"gateway.{key}", commandLine)
    refuseUnknown(keys, ("listen", *_GATEWAY))
    given = readMembers(keys, _GATEWAY)
    if "listen" in keys:
        allowed = given.get("allow_public", False)
        given["listen"] = _listen(keys["listen"], readEndpoint if allowed else _privateEndpoint)
    return GatewaySettings(**given)


def loadConfiguration(
    path: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Configuration:
    """
    Read a configuration file.

    path: the file; TOML if its name ends in `.toml`, else JSON.
    environ: the variables that `${VAR}` means.
    overrides: keys of the `gateway` section, as the command line gives them; they replace
        the file's, unexpanded.

    Raises: ConfigurationError with every mistake.
    """
    return _configuration(readDocument(path), path, Report(printable(path), environ), overrides)


def readConfiguration(
    document: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Configuration:
    """
    Read a configuration from an object in the shape of the file, as an embedder writes it.

    environ, overrides: see loadConfiguration; without environ no variable is set.
    Raises: ConfigurationError with every mistake.
    """
    source = "configuration"
    return _configuration(document, source, Report(source, environ or {}), overrides)


def _configuration(
    content: object, source: str, report: Report, overrides: Mapping[str, object] | None
) -> Configuration:
    document = Node(content, "", report)
    keys = document.table() or {}
    # VS Code's own file has `servers`.
    root = "servers" if "servers" in keys and "mcpServers" not in keys else "mcpServers"
    values = [child.value for child in keys.values()]
    misspelt = _misspelt(keys)
    if root == "mcpServers" and root in keys and "servers" in keys:
        keys["servers"].notice('ignored: there is "mcpServers"')
    servers: tuple[ServerSettings, ...] = ()
    if root in keys:
        servers = readServers(keys[root])
    elif "mcpServers" not in misspelt:
        bare = any(isinstance(value, dict) and {"command", "url"} & set(value) for value in values)
        hint = 'put the servers into "mcpServers": {...}' if bare else ""
        document.wrong('an object with "mcpServers"', 'no "mcpServers"', hint)
    gateway = _gateway(keys.get("gateway", Node({}, "gateway", report)), overrides or {})
    report.raiseProblems()
    return Configuration(
        servers=servers, gateway=gateway, source=source, notices=tuple(report.notices)
    )


def _misspelt(keys: Mapping[str, Node]) -> set[str]:
    """Refuse top-level keys that were meant to be ours; others are the client's own."""
    guesses = set()
    for key, child in keys.items():
        guess = nearest(key, ("mcpServers", "gateway"), 0.8)
        ours = key in ("mcpServers", "gateway", "servers")
        if guess and guess not in keys and not ours:
            guesses.add(guess)
            child.wrong(f'"{guess}"', "an unknown key", meant(guess))
    return guesses


def gatewaySettings(overrides: Mapping[str, object]) -> GatewaySettings:
    """
    The gateway's settings without a file.

    overrides: keys of the `gateway` section, as the command line gives them.

    Raises: ConfigurationError.
    """
    report = Report("command line")
    settings = _gateway(Node({}, "gateway", report), overrides)
    report.raiseProblems()
    return settings
