"""
Write docs/configuration.md from the classes that hold the configuration.

`python docs/make_configuration.py` writes the page; tests/test_config.py holds it to `page()`.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from gateway.config import (
    MAX_SECONDS,
    Configuration,
    ConfigurationError,
    GatewaySettings,
    loadConfiguration,
)
from gateway.config.servers import IGNORED, MAX_TIMEOUT, TRANSPORTS
from gateway.guard.limits import Limits
from gateway.settings import HTTPSettings, StdioSettings
from gateway.wire.headers import RESERVED, RESERVED_FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"

BROKEN = """\
{
  "mcpServers": {
    "git hub": { "comand": "npx", "timeout": 600000 },
    "files": { "command": "npx", "args": ["--depth", 3], "env": { "TOKEN": "${TOKN}" } },
    "search": { "url": "htps://example.com/mcp", "headers": { "Host": "example.com" } }
  },
  "gateway": { "listen": ["tcp:8080"], "limits": { "max_sesions": 10 } }
}
"""

TEMPLATE = """\
<!-- Made by docs/make_configuration.py from the classes themselves. Do not edit. -->

# Configuration

One file: the `mcpServers` that MCP clients have already, unchanged, plus an optional `gateway`
section. A file whose name ends in `.toml` is TOML, any other is JSON (comments are accepted).
Nothing is started before the whole file is found good.

```json
@json@
```

The same in TOML:

```toml
@toml@
```

Both are in `examples/`. Other top-level keys belong to the client whose file it is and are left
alone; only a near miss of `mcpServers` or `gateway` is a mistake. VS Code's `servers` is read
where there is no `mcpServers`.

## Servers

The key is the server's name and the part of its path: `/servers/<name>/mcp`. It has 1 to 128 of
`A-Z a-z 0-9 . _ ~ -`. The only server, or the one marked `default`, is also at `/mcp`.

Every server:

@common@

A server that is started (`command`):

@stdio@

A server that is reached over HTTP (`url`):

@http@

- `type` (or `transport`, `transportType`): @types@. `local` is `stdio`, `sse` is HTTP+SSE, the
  others are spellings of `streamable-http`. It may be left out: a command is stdio, and a server
  with a URL is asked which of the two it speaks.
- Timeouts are seconds, at most @max_timeout@. Some clients write milliseconds: what is above
  that, or above `max_timeout`, is a mistake.
- A disabled server is not looked at any further, so its variables may be unset.
- `null` is the same as leaving the key out.
- A `url` has a host, no user name and no fragment.
- `headers` may not hold what the gateway sets itself: @reserved@.
- A child gets a short list of the gateway's own environment variables, and `env`.
- The keys of the other kind of server (`env` beside a `url`, `headers` beside a `command`) are
  ignored with a notice in the log.
- So are keys that other programs write and a gateway has no use for:

@ignored@

## Variables

In every string of a server and of `gateway`:

| written | becomes |
|---|---|
| `${VAR}`, `${env:VAR}` | the variable of the gateway's environment; unset is a mistake |
| `${VAR:-default}` | the variable, or `default` where it is unset or empty |
| `$${` | a literal `${` |
| `$VAR`, `$` | itself |

Any other `${` is a mistake, also a variable in a default and VS Code's `${input:...}`, for there
is nobody to ask. Values are not expanded again. Keys are not expanded.

## The gateway section

@gateway@

**Listening.** Without authentication, a listen address that other machines can reach is refused
until `allow_public` (or `--allow-public`) says that this is meant. Private are `tcp:`, `tcp6:`,
`ssl:` and `tls:` with `interface=127.0.0.1` (or any other loopback address, or `localhost`), and
`unix:`. Without an interface it is every address. What a description does not show, as for
`systemd:` and plugins, counts as public.

## Limits

In `gateway.limits`. Whole numbers; seconds, except those of `retry_after`, may have a fraction
and are at most @max_seconds@.

@limits@

## Mistakes

The process ends with a status other than 0 and all mistakes on stderr, each with the file, the
key, what was found and what was expected; nothing was started. Values of `env`, `headers` and
`url`, and whatever a variable went into, are not shown.

This file

```json
@broken@
```

gives

```text
@errors@
```

A text that is no JSON or TOML is reported with its line and column, a JSON key that comes twice
as what it is.
"""


def page() -> str:
    """The whole page."""
    skip = {"name", "transport"}
    common = [field.name for field in attrs.fields(StdioSettings)]
    common = [name for name in common if name in attrs.fields_dict(HTTPSettings)]
    parts = {
        "json": (ROOT / "examples" / "servers.json").read_text().rstrip(),
        "toml": (ROOT / "examples" / "servers.toml").read_text().rstrip(),
        "common": _keys(StdioSettings, [name for name in common if name not in skip])
        + "\n| `disabled` | `false` | whether it is left out |",
        "stdio": _keys(StdioSettings, _own(StdioSettings, common)),
        "http": _keys(HTTPSettings, [n for n in _own(HTTPSettings, common) if n not in skip]),
        "types": ", ".join(f"`{word}`" for word in TRANSPORTS),
        "max_timeout": str(MAX_TIMEOUT),
        "reserved": ", ".join(
            f"`{name}`" for name in sorted({*RESERVED, *(f"{one}*" for one in RESERVED_FAMILIES)})
        ),
        "ignored": _ignored(),
        "gateway": _keys(GatewaySettings, [f.name for f in attrs.fields(GatewaySettings)]),
        "max_seconds": str(MAX_SECONDS),
        "limits": _limits(),
        "broken": BROKEN.rstrip(),
        "errors": _errors(),
    }
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], TEMPLATE)


def _own(cls: type[Any], common: list[str]) -> list[str]:
    return [field.name for field in attrs.fields(cls) if field.name not in common]


def _described(cls: type[Any]) -> dict[str, str]:
    """The `name: text` paragraphs of a class's docstring and its bases'."""
    made: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        text = inspect.cleandoc(base.__doc__ or "")
        for match in re.finditer(r"^(\w+): (.*(?:\n[ \t]+.*)*)", text, re.MULTILINE):
            made[match[1]] = " ".join(match[2].split())
    return made


def _keys(cls: type[Any], names: Iterable[str]) -> str:
    described = _described(cls)
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for name in names:
        default = attrs.fields_dict(cls)[name].default
        text = described[name].rstrip(".").replace("|", "\\|")
        rows.append(f"| `{name}` | {_default(default)} | {text} |")
    return "\n".join(rows)


def _default(default: object) -> str:
    if default is attrs.NOTHING:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return "`{}`"
    value = list(default) if isinstance(default, tuple) else default
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def _limits() -> str:
    rows = ["| limit | unit | default | what the caller gets |", "|---|---|---|---|"]
    for field in attrs.fields(Limits):
        default = str(field.default).removesuffix(".0")
        unit, gets = field.metadata["unit"], field.metadata["gets"]
        rows.append(f"| `{field.name}` | {unit} | {default} | {gets} |")
    return "\n".join(rows)


def _ignored() -> str:
    reasons: dict[str, list[str]] = {}
    for name, why in IGNORED.items():
        reasons.setdefault(why, []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {why} |" for why, names in reasons.items()]
    return "\n".join(["| ignored | why |", "|---|---|", *rows])


def _errors() -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "servers.json"
        path.write_text(BROKEN)
        try:
            loaded: Configuration = loadConfiguration(str(path), {"TOKEN": "secret"})
        except ConfigurationError as error:
            return str(error).replace(str(path), "servers.json")
        raise AssertionError(loaded)


if __name__ == "__main__":
    PAGE.write_text(page())
