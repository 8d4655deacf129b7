"""
The values of a configuration that have a grammar of their own: names, URLs, header fields,
hosts, origins and listen addresses.

Each reader takes a Node and returns the value, or None after noting what is wrong with it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from gateway.config.document import Node, meant, nearest
from gateway.wire.authority import HOST
from gateway.wire.headers import isReserved

__all__ = [
    "asName",
    "isPlain",
    "isPublic",
    "readArguments",
    "readEndpoint",
    "readEnvironment",
    "readHeaders",
    "readHost",
    "readList",
    "readName",
    "readOrigin",
    "readURL",
]

_NAME = re.compile(r"[A-Za-z0-9._~-]{1,128}\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]*\Z")
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z")  # RFC 3986 section 2
_HOSTNAME = re.compile(r"[A-Za-z0-9._~-]+\Z")
_ALLOWED_HOST = re.compile(rf"{HOST}(?::(?P<port>[0-9]{{1,5}}|\*))?\Z")
_ALLOWED_ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{HOST}(?::(?P<port>[0-9]{{1,5}}))?\Z")
_ADDRESS = re.compile(rf"(?:(?P<host>{HOST}|\*)?:)?(?P<port>[0-9]{{1,5}})\Z")

# The options of Twisted's endpoints, in the order in which they may stand without a name.
_OPTIONS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface"),
        *("backlog", "extraCertChain", "dhParameters"),
    ),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}


def asName(text: str) -> str:
    """A server name made of any text; "default" where nothing of it is left."""
    name = re.sub(r"[^A-Za-z0-9._~]+", "-", text).strip("-.")[:128]
    return name or "default"


def readName(node: Node, name: str) -> str | None:
    """The name of a server, the key of `node`: one raw path segment."""
    if _NAME.match(name) and name not in (".", ".."):
        return name
    node.wrong(
        "1 to 128 of A-Z a-z 0-9 . _ ~ - (it is a part of a path)",
        "a server name that is none",
        meant(asName(name)),
    )
    return None


def readList(node: Node, read: Callable[[Node], str | None]) -> tuple[str, ...]:
    """A list, each item with its own reader."""
    values = [read(item) for item in node.items() or ()]
    return tuple(value for value in values if value is not None)


def readArguments(node: Node) -> tuple[str, ...]:
    """The arguments of a command. A whole command line is not shown: it may hold a key."""
    node.secret = isinstance(node.value, str)
    return readList(node, Node.text)


def _secrets(node: Node) -> dict[str, Node]:
    node.secret = True
    return node.table("an object of strings") or {}


def readEnvironment(node: Node) -> dict[str, str]:
    """Environment variables, never shown."""
    made = {}
    for name, child in _secrets(node).items():
        if not name or "=" in name or "\0" in name or not name.isprintable():
            child.wrong("a variable's name, without = and NUL", "a name that is none")
        elif (value := child.text()) is not None:
            made[name] = value
    return made


def readHeaders(node: Node) -> dict[str, str]:
    """Header fields, never shown. The gateway's own ones are refused."""
    made: dict[str, str] = {}
    seen: set[str] = set()
    for name, child in _secrets(node).items():
        lower = name.lower()
        if not _TOKEN.match(name):
            child.wrong("a field name (RFC 9110: a token)", "a name that is none")
        elif isReserved(lower):
            child.wrong("another field", "a field that the gateway sets itself", "take it away")
        elif lower in seen:
            child.wrong("it once", "the field twice, in other letters")
        elif (value := child.text()) is not None:
            if _FIELD_VALUE.match(value):
                made[name] = value.strip(" \t")
            else:
                child.wrong("text on one line", "a string with a line end or control character")
        seen.add(lower)
    return made


def readURL(node: Node) -> str | None:
    """The URL of a server: http or https, a host, no user name, no fragment."""
    text = node.text()
    if text is None:
        return None
    # A URL may carry a key, in its path as well: nothing of it is shown.
    node.secret = True
    expected = "a URL such as https://host/mcp"
    if not _URL.match(text):
        node.wrong(expected, "a string with characters no URL has" if text else '""')
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        node.wrong(expected, "a URL with a bad port or address")
        return None
    fault = _fault(parts, text)
    if fault is not None:
        node.wrong(*fault)
    elif port == 0:
        node.wrong("a port from 1 to 65535", "port 0")
    else:
        return text
    return None


def _fault(parts: SplitResult, text: str) -> tuple[str, str, str] | None:
    """What is wrong with a URL, as arguments of Node.wrong."""
    if parts.scheme not in ("http", "https"):
        found = f"the scheme {parts.scheme[:20]}" if "://" in text else "a string without a scheme"
        return "an http:// or https:// URL", found, ""
    if "@" in parts.netloc:
        hint = 'put credentials into "headers"'
        return "a URL without user name and password", "a URL with credentials", hint
    if "#" in text:
        return "a URL without a fragment", "a URL with a fragment (#...)", ""
    host = parts.hostname or ""
    if not host:
        return "a URL with a host", "a URL without one", ""
    if "[" in parts.netloc:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return "an IPv6 address in the brackets", "something else there", ""
    elif not _HOSTNAME.match(host):
        return "a URL with a host name or address", "a host that is neither", ""
    return None


def _inRange(port: str | None, least: int = 1) -> bool:
    return port is None or port == "*" or least <= int(port) <= 65535


def readHost(node: Node) -> str | None:
    """An entry of `allowed_hosts`: `name`, `name:port` or `name:*`; in lower case."""
    text = node.text()
    if text is None:
        return None
    match = _ALLOWED_HOST.match(text)
    if match and _inRange(match["port"]):
        return text.lower()
    guess = "" if node.secret else text.partition("://")[2].partition("/")[0]
    node.wrong("name, name:port or name:*", hint=meant(guess))
    return None


def readOrigin(node: Node) -> str | None:
    """An entry of `allowed_origins`: `scheme://host[:port]`; in lower case."""
    text = node.text()
    if text is None:
        return None
    match = _ALLOWED_ORIGIN.match(text)
    if match and _inRange(match["port"]):
        return text.lower()
    bare = "/".join(text.split("/")[:3]) if "://" in text else f"https://{text}"
    guess = bare if _ALLOWED_ORIGIN.match(bare) and not node.secret else ""
    node.wrong("scheme://host or scheme://host:port", hint=meant(guess))
    return None


def _split(endpoint: str) -> tuple[list[str], dict[str, str]]:
    """An endpoint description as Twisted reads it: positional and named arguments."""
    positional: list[str] = []
    named: dict[str, str] = {}
    key: str | None = None
    current = ""
    characters = iter(endpoint + ":")
    for character in characters:
        if character == "\\":
            current += next(characters)
        elif character == "=" and key is None:
            key, current = current, ""
        elif character == ":":
            if key is None:
                positional.append(current)
            else:
                named[key] = current
            key, current = None, ""
        else:
            current += character
    return positional, named


def _options(endpoint: str) -> tuple[str, dict[str, str], str]:
    """The kind of an endpoint, its options by name, and the first that is none ("": all are)."""
    positional, named = _split(endpoint)
    while positional and positional[0] == "haproxy":
        del positional[0]
    kind, *rest = positional or [""]
    names = _OPTIONS.get(kind)
    if names is None:
        return kind, {}, ""
    stray = next((name for name in named if name not in names), "")
    if len(rest) > len(names) or any(name in named for name in names[: len(rest)]):
        stray = stray or rest[-1]
    return kind, dict(zip(names, rest, strict=False)) | named, stray


def _isLoopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def isPublic(endpoint: str) -> bool:
    """
    Whether others than this machine may reach a Twisted endpoint description.

    A TCP or TLS endpoint is private if its interface is a loopback address; without an
    interface it is every address. A UNIX socket is private. What the description does not
    show (systemd, plugins) counts as public.
    """
    kind, options, stray = _options(endpoint)
    if stray:
        return True
    if kind == "unix":
        return False
    return "interface" not in _OPTIONS.get(kind, ()) or not _isLoopback(
        options.get("interface", "")
    )


def isPlain(endpoint: str) -> bool:
    """Whether a Twisted endpoint description is one that surely speaks no TLS."""
    return _options(endpoint)[0] in ("tcp", "tcp6", "unix", "systemd")


def readEndpoint(node: Node) -> str | None:
    """A listen address, as a Twisted endpoint description."""
    text = node.text()
    if text is None:
        return None
    kind, options, stray = _options(text)
    expected = "a Twisted endpoint such as tcp:8080:interface=127.0.0.1"
    if kind not in _OPTIONS:
        near = nearest(kind, _OPTIONS, 0.6)
        guess = near + text[len(kind) :] if near else _endpointFor(text)
        if guess or not re.match(r"[A-Za-z][A-Za-z0-9_+.-]*:(?!//).", text):
            node.wrong(expected, hint="" if node.secret else meant(guess))
            return None
        return text
    if stray:
        known = "options " + ", ".join(_OPTIONS[kind])
        node.wrong(known, hint="" if node.secret else meant(nearest(stray, _OPTIONS[kind])))
        return None
    first = next(name for name in _OPTIONS[kind] if name in ("port", "address", "domain"))
    value = options.get(first, "443" if kind == "tls" else "")
    if not value or (first == "port" and not _isPort(value)):
        range_ = " with a port from 0 to 65535" if first == "port" else ""
        node.wrong(f"{kind}:{first.upper()}{range_}")
        return None
    return text


def _isPort(text: str) -> bool:
    return re.match(r"[0-9]{1,5}\Z", text) is not None and _inRange(text, 0)


def _endpointFor(text: str) -> str:
    """The endpoint that `8080`, `:8080` or `1.2.3.4:8080` stands for; "" for anything else."""
    match = _ADDRESS.match(text)
    if match is None:
        return ""
    host, port = match["host"] or "localhost", match["port"]
    if host == "*":
        return f"tcp:{port}"
    if host.startswith("["):
        return f"tcp6:{port}:interface=" + host[1:-1].replace(":", r"\:")
    if host == "localhost":
        host = "127.0.0.1"
    return f"tcp:{port}:interface={host}" if "." in host else ""
