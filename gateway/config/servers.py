"""
The servers of a configuration: the entries of `mcpServers`, with the keys that clients' files
carry, or the one server of a command line.

A disabled server is not looked at. What programs write and a gateway has no use for is a
notice; everything else that is unknown is a mistake.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import attrs

from gateway.config.document import ConfigurationError, Node, Report, meant, nearest
from gateway.config.values import (
    asName,
    readArguments,
    readEnvironment,
    readHeaders,
    readName,
    readURL,
)
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings, ToolTimeout
from gateway.wire.headers import TCHAR

__all__ = [
    "IGNORED",
    "MAX_TIMEOUT",
    "TRANSPORTS",
    "Reader",
    "demoServer",
    "readMembers",
    "readServers",
    "refuseUnknown",
    "serverFromArguments",
]

MAX_TIMEOUT = 86_400
"""Seconds a timeout of a server may be; what is above was written in milliseconds."""

MAX_WARM = 64
"""Children of a server that may be started ahead."""

TRANSPORTS = {
    "stdio": "stdio",
    "local": "stdio",
    "http": "streamable-http",
    "streamable-http": "streamable-http",
    "streamable_http": "streamable-http",
    "streamableHttp": "streamable-http",
    "sse": "sse",
}
"""What `type` may say, in all the spellings of the clients."""

Reader = Callable[[Node], Any]


def _seconds(node: Node) -> float | None:
    value = node.value
    if isinstance(value, int | float) and MAX_TIMEOUT < value < float("inf"):
        meant_ = f"did you mean {value / 1000:g} s? " if value < MAX_TIMEOUT * 1000 else ""
        expected = f"a number of seconds above 0, at most {MAX_TIMEOUT}"
        node.wrong(expected, hint=f"{meant_}timeouts are seconds, not milliseconds")
        return None
    seconds = node.number("seconds", MAX_TIMEOUT)
    return None if seconds is None else float(seconds)


def _path(node: Node) -> str | None:
    text = node.text()
    if text == "":
        node.wrong("a string that is not empty")
        return None
    return text


def _callers(node: Node) -> str | None:
    said = node.text()
    if said is None or said in ("principal", "call"):
        return said
    kind, _, name = said.partition(":")
    if kind != "header" or not re.fullmatch(TCHAR.decode("ascii") + "+", name):
        node.wrong('"principal", "call" or "header:NAME", with the name of a request header')
        return None
    return f"header:{name.lower()}"


def _warm(node: Node) -> int | None:
    if node.value == 0:
        return 0
    value = node.number("children", MAX_WARM, whole=True)
    return None if value is None else int(value)


def _toolTimeout(name: str, node: Node) -> ToolTimeout | None:
    if not isinstance(node.value, dict):
        seconds = _seconds(node)
        return None if seconds is None else ToolTimeout(name, seconds)
    keys = node.table() or {}
    readers: dict[str, Reader] = {"timeout": _seconds, "max_timeout": _seconds}
    refuseUnknown(keys, tuple(readers))
    given = readMembers(keys, readers)
    if "max_timeout" in given and given.get("timeout", 0) > given["max_timeout"]:
        keys["timeout"].wrong(f"at most max_timeout, {given['max_timeout']:g} seconds")
        return None
    return ToolTimeout(name, **given)


def _toolTimeouts(node: Node) -> tuple[ToolTimeout, ...] | None:
    keys = node.table("an object of seconds by tool")
    if keys is None:
        return None
    read = [_toolTimeout(name, child) for name, child in keys.items()]
    return tuple(one for one in read if one is not None)


_COMMON: dict[str, Reader] = {
    "default": Node.flag,
    "timeout": _seconds,
    "max_timeout": _seconds,
    "tool_timeouts": _toolTimeouts,
    "handshake_timeout": _seconds,
    "replay": lambda node: node.choice(("none", "safe", "annotated")),
    "on_exit": lambda node: node.choice(("replay", "lost")),
    "isolation": lambda node: node.choice(("session", "shared")),
    "idle_stop": _seconds,
    "era": lambda node: node.choice(("auto", "legacy", "modern")),
    "callers": _callers,
}
_STDIO: dict[str, Reader] = {
    "command": _path,
    "args": readArguments,
    "env": readEnvironment,
    "cwd": _path,
    "warm": _warm,
}
_HTTP: dict[str, Reader] = {
    "url": readURL,
    "headers": readHeaders,
    "forward_authorization": Node.flag,
    "proxy": lambda node: node.choice(("transparent", "streamable")),
}
_OURS = frozenset({"forward_authorization", "proxy", "warm"})
_TYPE_KEYS = ("type", "transport", "transportType")
_SERVER_KEYS = (*_STDIO, *_HTTP, *_TYPE_KEYS, "disabled", *_COMMON)

IGNORED = {
    "alwaysAllow": "approval is the client's",
    "alwaysLoad": "it is for the client",
    "auth": "the gateway does no OAuth towards a server; use headers",
    "autoApprove": "approval is the client's",
    "description": "it is for people",
    "dev": "it is for the editor",
    "disabledTools": "tools are not filtered",
    "enabledTools": "tools are not filtered",
    "env_file": "the file is not read; set the variables in env or for the gateway",
    "envFile": "the file is not read; set the variables in env or for the gateway",
    "excludeTools": "tools are not filtered",
    "gallery": "it is for the editor",
    "headersHelper": "the program is not run; use headers",
    "icon": "it is for the client",
    "includeTools": "tools are not filtered",
    "name": "the key is the name",
    "networkTimeout": "it is for the client; timeout, in seconds, is the gateway's",
    "oauth": "the gateway does no OAuth towards a server; use headers",
    "sandbox": "the gateway confines nothing; wrap the command",
    "sandboxEnabled": "the gateway confines nothing; wrap the command",
    "tools": "tools are not filtered",
    "trust": "approval is the client's",
    "version": "it is for the client",
    "watchPaths": "files are not watched",
}
"""Keys of other programs' files that mean nothing to a gateway, and why."""

_ALSO_CALLED = {
    "cmd": "command",
    "directory": "cwd",
    "enabled": "disabled",
    "endpoint": "url",
    "environment": "env",
    "http_headers": "headers",
    "httpUrl": "url",
    "serverUrl": "url",
    "startup_timeout_sec": "handshake_timeout",
    "tool_timeout_sec": "timeout",
    "uri": "url",
    "workingDirectory": "cwd",
    "working_directory": "cwd",
}


def refuseUnknown(
    keys: Mapping[str, Node], known: Sequence[str], also: Mapping[str, str] | None = None
) -> set[str]:
    """
    Refuse every key that is not known.

    also: what other programs call a key.
    Returns: the known keys that were probably meant.
    """
    guesses = set()
    for key, child in keys.items():
        if key in known:
            continue
        guess = (also or {}).get(key) or nearest(key, known)
        several = f"one of {len(known)} keys (docs/configuration.md)"
        listed = "one of " + ", ".join(known)
        child.wrong(
            several if guess and len(listed) > 250 else listed, "an unknown key", meant(guess)
        )
        guesses.add(guess)
    return guesses


def readMembers(keys: Mapping[str, Node], readers: Mapping[str, Reader]) -> dict[str, Any]:
    """What is given, each with its reader; what is wrong is noted and left out."""
    values = {key: read(keys[key]) for key, read in readers.items() if key in keys}
    return {key: value for key, value in values.items() if value is not None}


def _transport(keys: Mapping[str, Node]) -> str:
    """The transport that `type` (or another name of it) says; "" where nothing does."""
    said: dict[str, Node] = {}
    for name in _TYPE_KEYS:
        word = keys[name].choice(TRANSPORTS) if name in keys else None
        if word is not None:
            said.setdefault(TRANSPORTS[word], keys[name])
    for other in [*said.values()][1:]:
        other.wrong(f'the transport that another key says: "{next(iter(said))}"')
    kind = next(iter(said), "")
    if kind == "stdio" and "url" in keys and "command" not in keys:
        said[kind].wrong("http, streamable-http or sse for a server with a url")
    elif kind not in ("", "stdio") and "command" in keys and "url" not in keys:
        said[kind].wrong("stdio for a server with a command")
    return kind


def _checkTimes(keys: Mapping[str, Node], given: Mapping[str, Any]) -> None:
    most = given.get("max_timeout", attrs.fields(StdioSettings).max_timeout.default)
    if given.get("timeout", 0) > most:
        hint = "timeouts are seconds, not milliseconds; raise max_timeout if seconds are meant"
        keys["timeout"].wrong(f"at most max_timeout, {most:g} seconds", hint=hint)


def _checkShared(keys: Mapping[str, Node], given: Mapping[str, Any]) -> None:
    if given.get("isolation") != "shared":
        return
    if given.get("forward_authorization"):
        hint = "one session with the server cannot carry the credentials of many clients"
        keys["forward_authorization"].wrong('false with isolation "shared"', hint=hint)
    if given.get("proxy") == "transparent":
        hint = "streams of a shared session are the gateway's own"
        keys["proxy"].wrong('"streamable" with isolation "shared"', hint=hint)


def _server(node: Node, name: str) -> ServerSettings | None:
    """A server; None if it is disabled, or after noting what is wrong with it."""
    before = len(node.report.problems)
    members = node.table()
    if members is None:
        return None
    # Programs write null for what is not set.
    keys = {key: child for key, child in members.items() if child.value is not None}
    if "disabled" in keys and keys["disabled"].flag():
        return None
    readName(node, name)
    for key in [key for key in keys if key in IGNORED]:
        keys.pop(key).notice(f"ignored: {IGNORED[key]}")
    guesses = refuseUnknown(keys, _SERVER_KEYS, _ALSO_CALLED)
    transport = _transport(keys)
    if "command" in keys and "url" in keys:
        node.wrong("one of them", 'both "command" and "url"')
    elif not {"command", "url"} & (keys.keys() | guesses):
        node.wrong("one of them", 'neither "command" nor "url"')
    isHTTP = "url" in keys and "command" not in keys
    ours, others = (_HTTP, _STDIO) if isHTTP else (_STDIO, _HTTP)
    given = readMembers(keys, _COMMON | ours)
    _checkTimes(keys, given)
    _checkShared(keys, given)
    for key in others:
        if key not in keys or key in ("command", "url") or not keys[key].value:
            continue
        if key in _OURS:
            keys[key].wrong(f"it only for a server with a {'command' if isHTTP else 'url'}")
        else:
            keys[key].notice(f"ignored: a server with a {'url' if isHTTP else 'command'} has none")
    if len(node.report.problems) > before:
        return None
    if isHTTP:
        return HTTPSettings(name=name, **given | {"transport": transport or "auto"})
    return StdioSettings(name=name, **given)


def readServers(node: Node) -> tuple[ServerSettings, ...]:
    """The servers of `mcpServers`; a single one is the default."""
    members = node.table("an object of servers by name")
    if members is None:
        return ()
    before = len(node.report.problems)
    read = [_server(child, name) for name, child in members.items()]
    servers = tuple(server for server in read if server is not None)
    if not servers and len(node.report.problems) == before:
        found = "only disabled servers" if members else "no server"
        node.wrong("at least one server", found)
    marked = [
        child
        for child in members.values()
        if child.child("default").value is True and child.child("disabled").value is not True
    ]
    for child in marked[1:]:
        found = f"a second default beside {marked[0].key}"
        child.child("default").wrong("one default server", found)
    if len(servers) == 1:
        return (attrs.evolve(servers[0], default=True),)
    return servers


def serverFromArguments(words: Sequence[str]) -> ServerSettings:
    """
    The one server that a command line gives: a URL, or `--` and a command with its arguments.

    words: what stands there; without "--" a first word with "://" is a URL. Variables are
        not expanded, a shell did that.

    Raises: ConfigurationError.
    """
    report = Report("command line")
    first, *rest = words or [""]
    given: dict[str, object]
    if first != "--" and "://" in first:
        if rest:
            Node(None, "", report).wrong("one URL alone", f"{len(rest)} more after it")
        try:
            host = urlsplit(first).hostname or ""
        except ValueError:
            host = ""
        isAddress = ":" in host or host.replace(".", "").isdecimal()
        name = "default" if isAddress else asName(host.partition(".")[0])
        given = {"url": first}
    else:
        command, *args = (rest or [""]) if first == "--" else words or [""]
        if not command:
            Node(None, "", report).wrong("a URL, or -- COMMAND ARGUMENT...", "no server")
        name = asName(PurePath(command.replace("\\", "/")).name.removesuffix(".exe"))
        given = {"command": command, "args": args}
    if not report.problems:
        server = _server(Node({**given, "default": True}, "", report), name)
        if server is not None:
            return server
    raise ConfigurationError(report.problems)


def demoServer() -> StdioSettings:
    """The server that is served when none is given. It runs as a script, also uninstalled."""
    script = Path(__file__).resolve().parent.with_name("demo.py")
    return StdioSettings(
        name="demo", default=True, command=sys.executable, args=("-I", str(script))
    )
