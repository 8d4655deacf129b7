"""The configuration: what is accepted, and what every mistake says."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import string
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from gateway.config import (
    Configuration,
    ConfigurationError,
    GatewaySettings,
    demoServer,
    gatewaySettings,
    isPublic,
    loadConfiguration,
    serverFromArguments,
)
from gateway.config.servers import IGNORED
from gateway.guard.limits import Limits
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings

ROOT = Path(__file__).resolve().parent.parent
ENVIRON = {"TOKEN": "s3cr3t-canary", "EMPTY": "", "HOST_NAME": "example.com", "PORT": "9000"}

Load = Callable[..., Configuration]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(
        document: object,
        environ: Mapping[str, str] = ENVIRON,
        name: str = "servers.json",
        overrides: Mapping[str, object] | None = None,
    ) -> Configuration:
        text = document if isinstance(document, str | bytes) else json.dumps(document)
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return loadConfiguration(str(path), environ, overrides)

    return load


@pytest.fixture
def mistakes(load: Load) -> Callable[..., list[str]]:
    """The problems of a document, one line each, without the path of the file."""

    def mistakes(document: object, **kwargs: Any) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            load(document, **kwargs)
        lines = str(caught.value).split("\n")
        assert len(lines) == len(caught.value.problems)
        assert ENVIRON["TOKEN"] not in str(caught.value)
        return [line[line.index(": ") + 2 :] for line in lines]

    return mistakes


def one(server: object) -> dict[str, object]:
    return {"mcpServers": {"a": server}}


def stdio(**more: object) -> dict[str, object]:
    return one({"command": "x", **more})


def http(**more: object) -> dict[str, object]:
    return one({"url": "http://h/mcp", **more})


def gateway(**section: object) -> dict[str, object]:
    return {**stdio(), "gateway": section}


def onlyServer(configuration: Configuration) -> ServerSettings:
    (server,) = configuration.servers
    return server


# --- What users have already --------------------------------------------------------------------


def test_claude_desktops_file_works_unchanged(load: Load) -> None:
    loaded = load(
        {
            "globalShortcut": "",
            "preferences": {"menuBarEnabled": False},
            "mcpServers": {
                "filesystem": {
                    "command": "npx",
                    "args": ["-y", "@modelcontextprotocol/server-filesystem", "/srv"],
                },
                "github": {"command": "docker", "args": ["run", "-i"], "env": {"PAT": "p"}},
            },
        }
    )
    assert loaded.servers == (
        StdioSettings(
            name="filesystem",
            command="npx",
            args=("-y", "@modelcontextprotocol/server-filesystem", "/srv"),
        ),
        StdioSettings(name="github", command="docker", args=("run", "-i"), env={"PAT": "p"}),
    )
    assert loaded.gateway == GatewaySettings()
    assert loaded.notices == ()


def test_claude_codes_project_file_works_unchanged(load: Load) -> None:
    loaded = load(
        {
            "mcpServers": {
                "api": {
                    "type": "http",
                    "url": "https://${HOST_NAME:-other}/mcp",
                    "headers": {"Authorization": "Bearer ${TOKEN}"},
                },
                "old": {"type": "sse", "url": "https://example.com/events"},
            }
        }
    )
    assert loaded.servers == (
        HTTPSettings(
            name="api",
            url="https://example.com/mcp",
            transport="streamable-http",
            headers={"Authorization": "Bearer s3cr3t-canary"},
        ),
        HTTPSettings(name="old", url="https://example.com/events", transport="sse"),
    )


def test_vs_codes_file_with_comments_and_last_commas_works_unchanged(load: Load) -> None:
    loaded = load(
        """
        {
          // what VS Code writes
          "inputs": [{"id": "key", "type": "promptString"}],
          "servers": { /* here */
            "play": {"type": "stdio", "command": "npx",
                     "args": ["//not", "/*a comment*/", "nor,]", "this, }", /* last */ ],
                     "envFile": ".env", "dev": {"watch": "src"}, },
          },
        }
        """
    )
    assert onlyServer(loaded) == StdioSettings(
        name="play",
        command="npx",
        args=("//not", "/*a comment*/", "nor,]", "this, }"),
        default=True,
    )
    assert len(loaded.notices) == 2
    assert "servers.play.envFile: ignored: the file is not read" in loaded.notices[0]


def test_clines_file_works_unchanged(load: Load) -> None:
    loaded = load(
        one(
            {
                "url": "https://h/mcp",
                "type": "streamableHttp",
                "disabled": False,
                "autoApprove": ["x"],
                "alwaysAllow": [],
                "timeout": 60,
            }
        )
    )
    assert onlyServer(loaded) == HTTPSettings(
        name="a", url="https://h/mcp", transport="streamable-http", timeout=60.0, default=True
    )


def test_a_windows_file_with_a_byte_order_mark_is_read(load: Load) -> None:
    assert load(b"\xef\xbb\xbf" + json.dumps(stdio()).encode()).servers


@pytest.mark.parametrize(
    ("word", "transport"),
    [
        ("http", "streamable-http"),
        ("streamable-http", "streamable-http"),
        ("streamable_http", "streamable-http"),
        ("streamableHttp", "streamable-http"),
        ("sse", "sse"),
    ],
)
@pytest.mark.parametrize("key", ["type", "transport", "transportType"])
def test_every_spelling_of_a_transport(load: Load, key: str, word: str, transport: str) -> None:
    server = onlyServer(load(http(**{key: word})))
    assert isinstance(server, HTTPSettings)
    assert server.transport == transport


@pytest.mark.parametrize(
    "url",
    [
        "https://h/mcp",
        "https://h/sse",
        "https://h/v1/sse/?key=1",
    ],
)
def test_a_url_without_a_type_is_asked(load: Load, url: str) -> None:
    server = onlyServer(load(one({"url": url})))
    assert isinstance(server, HTTPSettings)
    assert server.transport == "auto"
    explicit = onlyServer(load(one({"url": url, "type": "http"})))
    assert isinstance(explicit, HTTPSettings)
    assert explicit.transport == "streamable-http"


def test_our_own_server_keys(load: Load) -> None:
    loaded = load(
        {
            "mcpServers": {
                "a": {"command": "x", "cwd": "/tmp", "max_timeout": 7200, "timeout": 7000},
                "b": {
                    "url": "http://h",
                    "default": True,
                    "on_exit": "lost",
                    "handshake_timeout": 0.5,
                    "forward_authorization": True,
                },
            }
        }
    )
    assert loaded.servers == (
        StdioSettings(name="a", command="x", cwd="/tmp", max_timeout=7200.0, timeout=7000.0),
        HTTPSettings(
            name="b",
            url="http://h",
            default=True,
            on_exit="lost",
            handshake_timeout=0.5,
            forward_authorization=True,
        ),
    )


def test_null_is_a_key_left_out(load: Load) -> None:
    nulls = dict.fromkeys(("args", "env", "cwd", "url", "headers", "type", "timeout", "disabled"))
    assert onlyServer(load(stdio(**nulls))) == StdioSettings(name="a", command="x", default=True)


def test_keys_of_other_programs_are_noticed_and_ignored(load: Load) -> None:
    loaded = load(stdio(**dict.fromkeys(IGNORED, "${NEVER_SET} s3cr3t")))
    assert len(loaded.notices) == len(IGNORED)
    assert "s3cr3t" not in "".join(loaded.notices)


def test_keys_of_the_other_kind_of_server_are_noticed_and_ignored(load: Load) -> None:
    assert len(load(http(env={"A": "b"}, args=[], cwd="/")).notices) == 2
    assert len(load(stdio(headers={"A": "b"})).notices) == 1


def test_servers_beside_mcpservers_is_noticed_and_ignored(load: Load) -> None:
    loaded = load({**stdio(), "servers": {"b": 1}})
    assert len(loaded.servers) == len(loaded.notices) == 1


def test_a_disabled_server_is_left_out_unread(load: Load) -> None:
    loaded = load(
        {
            "mcpServers": {
                "a": {"command": "x", "args": ["${NEVER_SET}"], "disabled": True, "default": True},
                "b": {"command": "y", "disabled": False},
            }
        }
    )
    assert onlyServer(loaded) == StdioSettings(name="b", command="y", default=True)


def test_of_several_servers_none_is_the_default_unless_marked(load: Load) -> None:
    loaded = load({"mcpServers": {name: {"command": name} for name in "abc"}})
    assert not any(server.default for server in loaded.servers)


def test_what_may_be_secret_is_not_in_a_repr(load: Load) -> None:
    loaded = load(
        {
            "mcpServers": {
                "a": {"command": "x", "env": {"K": "${TOKEN}"}, "args": ["--key=${TOKEN}"]},
                "b": {"url": "http://h/${TOKEN}", "headers": {"K": "${TOKEN}"}},
            }
        }
    )
    assert "s3cr3t" not in repr(loaded)


# --- TOML and the examples ----------------------------------------------------------------------


def test_the_examples_say_the_same(load: Load) -> None:
    environ = {"GITHUB_TOKEN": "t"}
    asJSON = loadConfiguration(str(ROOT / "examples/servers.json"), environ)
    asTOML = loadConfiguration(str(ROOT / "examples/servers.toml"), environ)
    assert asJSON.servers == asTOML.servers
    assert asJSON.gateway == asTOML.gateway
    assert [server.name for server in asJSON.servers] == ["files", "github"]
    assert asJSON.gateway.limits == Limits(max_sessions=2000, session_idle=900)


def test_mistakes_in_toml(load: Load, mistakes: Callable[..., list[str]]) -> None:
    found = mistakes("[mcpServers.a]\ncommand = \n", name="a.toml")
    assert found == ["line 2, column 11: found a mistake (Invalid value), expected TOML"]
    found = mistakes("[mcpServers.a]\ncommand = 1979-05-27\ntimeout = nan\n", name="a.TOML")
    assert found == [
        "mcpServers.a.timeout: found nan (a number), expected a number of seconds above 0, "
        "at most 86400",
        "mcpServers.a.command: found a date or time, expected a string",
    ]
    assert "end of file" in mistakes("[mcpServers.a", name="a.toml")[0]
    assert mistakes('mcpServers = "x"', name="a.toml") == [
        'mcpServers: found "x" (a string), expected an object of servers by name'
    ]
    huge = "[mcpServers.a]\ncommand = 0x" + "f" * 6000
    assert mistakes(huge, name="a.toml") == [
        "mcpServers.a.command: found an integer, expected a string; put it into quotes"
    ]
    assert mistakes("a = " + "[" * 5000, name="a.toml")
    assert mistakes("a = " + "9" * 5000, name="a.toml")


# --- The file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found an empty file, expected an object"),
        (" \n\t", "found an empty file, expected an object"),
        ("[]", "found a list, expected an object"),
        ('"x"', "found a string, expected an object"),
        ("null", "found null, expected an object"),
        ("{", "line 1, column 2: found a mistake"),
        ('{\n "mcpServers": {,}\n}', "line 2, column 17: found a mistake"),
        ('{"a": [1,,]}', "line 1, column 10: found a mistake"),
        ('{"a": [,]}', "line 1, column 8: found a mistake"),
        ('{"a": "it is, }', "line 1, column 7: found a mistake (Unterminated string"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "expected JSON"),
        ("[" * 100_000, "nested too deep"),
        (b'{"a": "\xff"}', "byte 8: found text that is not UTF-8"),
        ("{} // {", 'no "mcpServers"'),
    ],
)
def test_a_file_that_is_no_configuration(
    mistakes: Callable[..., list[str]], text: str | bytes, expected: str
) -> None:
    (line,) = mistakes(text)
    assert expected in line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in [
        (str(tmp_path / "none.json"), "No such file or directory"),
        (str(tmp_path), "Is a directory"),
        ("a\0b", "embedded null byte"),
        ("/dev/zero", "over 16777216 bytes"),
    ]:
        with pytest.raises(ConfigurationError, match=why) as caught:
            loadConfiguration(path, {})
        assert len(str(caught.value).split("\n")) == 1


def test_a_syntax_error_quotes_nothing_and_has_no_cause(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load('{"env": {"KEY": "s3cr3t" oops}}')
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_message_names_file_key_found_expected_and_a_near_miss(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    path.write_text('{"mcpServers": {"github": {"command": "x", "arg": ["a"]}}}')
    with pytest.raises(ConfigurationError) as caught:
        loadConfiguration(str(path), {})
    (problem,) = caught.value.problems
    assert (problem.source, problem.key) == (str(path), "mcpServers.github.arg")
    assert str(caught.value) == (
        f"{path}: mcpServers.github.arg: found an unknown key, expected one of command, args, "
        "env, cwd, warm, url, headers, forward_authorization, proxy, type, transport, "
        "transportType, disabled, default, timeout, max_timeout, tool_timeouts, "
        "handshake_timeout, replay, on_exit, isolation, idle_stop, era, callers; "
        'did you mean "args"?'
    )


def test_terminal_escapes_in_names_and_values_are_escaped(
    mistakes: Callable[..., list[str]],
) -> None:
    found = mistakes({"mcpServers": {"\x1b[2J\n": {"command": "x", "on_exit": "\x1b\n\u202e"}}})
    assert all(line.isprintable() for line in found)


def test_all_mistakes_are_shown_at_once(mistakes: Callable[..., list[str]]) -> None:
    found = mistakes(
        {
            "mcpServers": {"a": {"command": 1}, "b": {"url": "x"}, "c d": {"command": "x"}},
            "gateway": {"listen": [], "limits": {"max_body": "1"}},
            "gatewy": 1,
        }
    )
    assert len(found) == 5  # "gatewy" beside "gateway" is somebody else's


# --- Top-level keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("mcpServer", "mcpServers"),
        ("mcp_servers", "mcpServers"),
        ("mcpservers", "mcpServers"),
        ("McpServers", "mcpServers"),
    ],
)
def test_a_near_miss_of_mcpservers(
    mistakes: Callable[..., list[str]], key: str, meant: str
) -> None:
    assert mistakes({key: {}}) == [
        f'{key}: found an unknown key, expected "{meant}"; did you mean "{meant}"?'
    ]


@pytest.mark.parametrize("key", ["gatway", "gateways", "Gateway"])
def test_a_near_miss_of_gateway(mistakes: Callable[..., list[str]], key: str) -> None:
    assert mistakes({**stdio(), key: {}}) == [
        f'{key}: found an unknown key, expected "gateway"; did you mean "gateway"?'
    ]


@pytest.mark.parametrize(
    "key",
    ["mcp", "projects", "enabledMcpjsonServers", "allowedMcpServers", "theme", "inputs", "$schema"],
)
def test_other_top_level_keys_are_the_clients(load: Load, key: str) -> None:
    assert load({**stdio(), key: ["${NEVER_SET}"]}).servers


def test_servers_at_the_top_level(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes({"a": {"command": "x"}})
    assert line.endswith('put the servers into "mcpServers": {...}')


# --- Each mistake in a server -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"mcpServers": {}}, "mcpServers: found no server, expected at least one server"),
        ({"mcpServers": []}, "mcpServers: found a list, expected an object of servers by name"),
        ({"mcpServers": None}, "mcpServers: found null"),
        (one({"command": "x", "disabled": True}), "mcpServers: found only disabled servers"),
        (one("npx x"), 'mcpServers.a: found "npx x" (a string), expected an object'),
        (one({}), 'mcpServers.a: found neither "command" nor "url", expected one of them'),
        (one({"command": None}), 'found neither "command" nor "url"'),
        (stdio(url="http://h"), 'mcpServers.a: found both "command" and "url"'),
        (stdio(disabled="true"), "take the quotes away"),
        (stdio(disabled=1), "mcpServers.a.disabled: found 1 (an integer), expected true or false"),
        (one({"command": ""}), 'mcpServers.a.command: found "" (a string), expected a string that'),
        (one({"command": ["npx"]}), "mcpServers.a.command: found a list, expected a string"),
        (stdio(cwd=""), "mcpServers.a.cwd: found"),
        (stdio(cwd=False), "mcpServers.a.cwd: found false (a boolean), expected a string"),
        (stdio(args="-y foo"), "put it into brackets: [...]"),
        (stdio(args=["a", 8080]), "mcpServers.a.args[1]: found 8080 (an integer), expected a str"),
        (stdio(args=[None]), "mcpServers.a.args[0]: found null, expected a string"),
        (stdio(args=["a\0b"]), "mcpServers.a.args[0]: found a NUL character in a string"),
        (stdio(args=["\ud800"]), "mcpServers.a.args[0]: found half a surrogate pair"),
        (stdio(env=["A=b"]), "mcpServers.a.env: found a list, expected an object of strings"),
        (stdio(env={"A": 8080}), "mcpServers.a.env.A: found an integer (not shown), expected a"),
        (stdio(env={"A=B": "c"}), 'mcpServers.a.env["A=B"]: found a name that is none'),
        (stdio(env={"": "c"}), 'mcpServers.a.env[""]: found a name that is none'),
        (stdio(env={"A": "\0"}), "mcpServers.a.env.A: found a NUL character"),
        (stdio(timeout=0), "mcpServers.a.timeout: found 0 (an integer), expected a number of sec"),
        (stdio(timeout=-1.5), "mcpServers.a.timeout: found -1.5 (a number)"),
        (stdio(timeout=True), "mcpServers.a.timeout: found true (a boolean)"),
        (stdio(timeout="60"), "take the quotes away"),
        (stdio(timeout=120_000), "did you mean 120 s? timeouts are seconds, not milliseconds"),
        (stdio(timeout=10**4000), "mcpServers.a.timeout: found an integer, expected a number"),
        (stdio(timeout=30_000), "expected at most max_timeout, 3600 seconds; timeouts are seconds"),
        (stdio(handshake_timeout=90_000), "mcpServers.a.handshake_timeout: found 90000"),
        (stdio(max_timeout=[]), "mcpServers.a.max_timeout: found a list"),
        ('{"mcpServers": {"a": {"command": "x", "timeout": 1e999}}}', "found inf (a number)"),
        (stdio(on_exit="replays"), 'did you mean "replay"?'),
        (stdio(isolation="share"), 'did you mean "shared"?'),
        (stdio(era="modren"), 'did you mean "modern"?'),
        (stdio(callers="user"), '"principal", "call" or "header:NAME"'),
        (stdio(callers="header:a b"), '"principal", "call" or "header:NAME"'),
        (stdio(isolation=True), "mcpServers.a.isolation: found true (a boolean)"),
        (
            http(isolation="shared", forward_authorization=True),
            "mcpServers.a.forward_authorization: found true (a boolean), expected false with "
            'isolation "shared"',
        ),
        (
            http(isolation="shared", proxy="transparent"),
            'mcpServers.a.proxy: found "transparent" (a string), expected "streamable" with '
            'isolation "shared"',
        ),
        (stdio(default="yes"), "mcpServers.a.default: found"),
        (stdio(forward_authorization=True), "expected it only for a server with a url"),
        (stdio(type="http"), "mcpServers.a.type: found"),
        (stdio(transport="sse"), "expected stdio for a server with a command"),
        (http(type="stdio"), "expected http, streamable-http or sse for a server with a url"),
        (http(type="http", transport="sse"), "expected the transport that another key says"),
        (http(type="websocket"), 'expected one of "stdio"'),
        (http(type="streamablehttp"), 'did you mean "streamableHttp"?'),
        (http(type=1), "mcpServers.a.type: found 1 (an integer)"),
        (one({"url": 1}), "mcpServers.a.url: found 1 (an integer), expected a string"),
        (http(headers=["A: b"]), "mcpServers.a.headers: found a list"),
        (http(headers={"a b": "c"}), "expected a field name (RFC 9110: a token)"),
        (http(headers={"": "c"}), "expected a field name"),
        (http(headers={"é": "c"}), "expected a field name"),
        (http(headers={"A": "b\r\nC: d"}), "mcpServers.a.headers.A: found a string with a line"),
        (http(headers={"A": "\x7f"}), "mcpServers.a.headers.A: found a string with a line"),
        (http(headers={"A": "1", "a": "2"}), "mcpServers.a.headers.a: found the field twice"),
        (http(headers={"A": None}), "mcpServers.a.headers.A: found null, expected a string"),
    ],
)
def test_a_mistake_in_a_server(
    mistakes: Callable[..., list[str]], document: object, expected: str
) -> None:
    (line,) = mistakes(document)
    assert expected in line


@pytest.mark.parametrize(
    "document",
    [
        stdio(isolation="shared"),
        http(isolation="shared"),
        http(isolation="shared", proxy="streamable", forward_authorization=False),
    ],
)
def test_a_server_that_is_shared(load: Load, document: dict[str, object]) -> None:
    (server,) = load(document).servers
    assert server.isolation == "shared"


@pytest.mark.parametrize("document", [stdio(), http(proxy="transparent")])
def test_a_server_is_not_shared_unasked(load: Load, document: dict[str, object]) -> None:
    (server,) = load(document).servers
    assert server.isolation == "session"


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "Connection", "Mcp-Session-Id", "accept"),
        *("MCP-Protocol-Version", "Content-Type", "Mcp-Param-City", "X-Forwarded-For", "TE"),
        *("X-Forwarded-Prefix", "Proxy-Foo", "Content-Language", "Mcp-Name", "Forwarded"),
        "HTTP2-Settings",
    ],
)
def test_a_restricted_header(mistakes: Callable[..., list[str]], name: str) -> None:
    assert mistakes(http(headers={name: "x"})) == [
        f"mcpServers.a.headers.{name}: found a field that the gateway sets itself, "
        "expected another field; take it away"
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", 'found ""'),
        ("example.com/mcp", "a string without a scheme"),
        ("localhost:8080", "a string without a scheme"),
        ("htps://h/", "the scheme htps"),
        ("file:///etc/passwd", "the scheme file"),
        ("http:///mcp", "expected a URL with a host"),
        ("http://:80/", "expected a URL with a host"),
        ("http://u:hunter2@h/", "expected a URL without user name and password"),
        ("http://hunter2@h/", "expected a URL without user name and password"),
        ("http://h/#x", "expected a URL without a fragment"),
        ("http://h/#", "expected a URL without a fragment"),
        ("http://h:99999/", "a URL with a bad port"),
        ("http://h:x/", "a URL with a bad port"),
        ("http://h:0/", "found port 0"),
        ("http://[::1/", "a URL with a bad port or address"),
        ("http://[::g]/", "a"),
        ("http://h%2f/", "expected a URL with a host name or address"),
        ("http://h /", "characters no URL has"),
        ("http://h/\nX: y", "characters no URL has"),
        ("http://h\\@i/", "characters no URL has"),
        ("http://bücher/", "characters no URL has"),
    ],
)
def test_a_url_that_is_none(mistakes: Callable[..., list[str]], url: str, expected: str) -> None:
    (line,) = mistakes(one({"url": url}))
    assert line.startswith("mcpServers.a.url: found ")
    assert expected in line
    assert "hunter2" not in line
    if url:
        assert url not in line


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("git hub", "git-hub"),
        ("github.com/a/b", "github.com-a-b"),
        ("..", "default"),
        (".", "default"),
        ("", "default"),
        ("a%2f", "a-2f"),
        ("é", "default"),
        ("a\n", "a"),
        ("x" * 129, "x" * 57 + "..."),
    ],
)
def test_a_bad_server_name(mistakes: Callable[..., list[str]], name: str, near: str) -> None:
    (line,) = mistakes({"mcpServers": {name: {"command": "x"}}})
    assert "found a server name that is none" in line
    assert line.endswith(f'did you mean "{near}"?')


@pytest.mark.parametrize("name", ["a", "A.b_c~d-e", "...", "x" * 128])
def test_a_good_server_name(load: Load, name: str) -> None:
    assert onlyServer(load({"mcpServers": {name: {"command": "x"}}})).name == name


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("comand", "command"),
        ("Command", "command"),
        ("arg", "args"),
        ("environment", "env"),
        ("httpUrl", "url"),
        ("serverUrl", "url"),
        ("header", "headers"),
        ("disable", "disabled"),
        ("enabled", "disabled"),
        ("timeouts", "timeout"),
        ("maxTimeout", "max_timeout"),
    ],
)
def test_an_unknown_key_and_what_was_meant(
    mistakes: Callable[..., list[str]], key: str, meant: str
) -> None:
    known = {} if meant in ("command", "url") else {"command": "x"}
    (line,) = mistakes(one({**known, key: "hunter2"}))
    assert line.startswith(f"mcpServers.a.{key}: found an unknown key, expected one of command,")
    assert line.endswith(f'did you mean "{meant}"?')


def test_an_unknown_key_that_is_near_nothing(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(stdio(qqqq=1))
    assert "did you mean" not in line


def test_two_defaults(mistakes: Callable[..., list[str]]) -> None:
    two = {name: {"command": "x", "default": True} for name in "ab"}
    assert mistakes({"mcpServers": two}) == [
        "mcpServers.b.default: found a second default beside mcpServers.a, "
        "expected one default server"
    ]


def test_a_key_that_comes_twice(mistakes: Callable[..., list[str]]) -> None:
    text = """{"mcpServers": {"a": {"command": "x", "command": "y", "env": {"K": "1", "K": "2"}},
              "a": {"command": "x", "command": "y"}}, "gateway": {}, "gateway": {}}"""
    assert mistakes(text) == [
        "gateway: found the key twice, expected it once",
        "mcpServers.a: found the key twice, expected it once",
        "mcpServers.a.command: found the key twice, expected it once",
    ]
    assert mistakes('{"mcpServers": {"a": {"command": "x", "env": {"K": "1", "K": "2"}}}}') == [
        "mcpServers.a.env.K: found the key twice, expected it once"
    ]


# --- Variables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${HOST_NAME}", "example.com"),
        ("${env:HOST_NAME}", "example.com"),
        ("a${HOST_NAME}b${PORT}c", "aexample.comb9000c"),
        ("${NONE:-d}", "d"),
        ("${NONE:-}", ""),
        ("${NONE:-a b:-$c}", "a b:-$c"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${PORT:-d}", "9000"),
        ("$${PORT}", "${PORT}"),
        ("$$${PORT}", "$${PORT}"),
        ("$PORT $ $$ {PORT}", "$PORT $ $$ {PORT}"),
    ],
)
def test_variables(load: Load, text: str, expanded: str) -> None:
    server = onlyServer(load(stdio(args=[text], env={"K": text}, cwd="/" + text)))
    assert isinstance(server, StdioSettings)
    assert (server.args, server.env) == ((expanded,), {"K": expanded})
    assert server.cwd == "/" + expanded


def test_a_variables_value_is_not_expanded_again(load: Load) -> None:
    server = onlyServer(load(stdio(args=["${A}"]), environ={"A": "${B}", "B": "c"}))
    assert isinstance(server, StdioSettings)
    assert server.args == ("${B}",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NEVER_SET}", "found ${NEVER_SET}, which is not set, expected a variable that is set"),
        ("${TOKN}", 'did you mean "TOKEN"?'),
        ("${NEVER_SET}", "a default is written ${NEVER_SET:-...}"),
        ("${input:api-key}", "found ${input:api-key}, expected ${VAR}"),
        ("${}", "a literal ${ is written $${"),
        ("${1A}", "a ${ that opens no variable"),
        ("${A", "a ${ that opens no variable"),
        ("${A-b}", "a ${ that opens no variable"),
        ("${workspaceFolder}/x", "found ${workspaceFolder}, which is not set"),
    ],
)
def test_a_variable_that_cannot_be_expanded(
    mistakes: Callable[..., list[str]], text: str, expected: str
) -> None:
    for document, key in [
        (stdio(args=["x", text]), "args[1]"),
        (stdio(env={"K": text}), "env.K"),
        (stdio(cwd=text), "cwd"),
        (one({"command": text}), "command"),
        (one({"url": text}), "url"),
        (http(headers={"K": text}), "headers.K"),
    ]:
        (line,) = mistakes(document)
        assert line.startswith(f"mcpServers.a.{key}: found ")
        assert expected in line


def test_a_variable_in_a_default_is_a_mistake(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(stdio(args=["${NONE:-${PORT}}"]))
    assert "a ${ that opens no variable" in line


def test_what_a_variable_went_into_is_not_shown(mistakes: Callable[..., list[str]]) -> None:
    # The fixture looks for the variable's value.
    assert mistakes(stdio(on_exit="${TOKEN}"))[0].startswith(
        "mcpServers.a.on_exit: found a string (not shown), expected one of"
    )
    assert mistakes(one({"url": "${TOKEN}"}))
    assert mistakes(http(headers={"A": "${TOKEN}\n"}))
    for key in ("listen", "allowed_hosts", "allowed_origins"):
        assert "not shown" in mistakes(gateway(**{key: ["/${TOKEN}/"]}))[0]
    environ = {**ENVIRON, "TOKEN": "tcp:80:interface=s3cr3t-canary"}
    assert mistakes(gateway(listen=["${TOKEN}"]), environ=environ)


# --- The gateway section ------------------------------------------------------------------------


def test_the_whole_section(load: Load) -> None:
    loaded = load(
        gateway(
            listen=["tcp:${PORT}:interface=127.0.0.1", "unix:/run/gateway.sock"],
            allowed_hosts=["MCP.example.com", "a:8443", "b:*", "[::1]:80", "10.0.0.1"],
            allowed_origins=["HTTPS://a.b", "http://a:3000", "vscode-webview://abc"],
            limits={"max_body": 1, "heartbeat": 0.25, "session_idle": 3, "retry_after": 9},
        )
    )
    assert loaded.gateway == GatewaySettings(
        listen=("tcp:9000:interface=127.0.0.1", "unix:/run/gateway.sock"),
        allowed_hosts=("mcp.example.com", "a:8443", "b:*", "[::1]:80", "10.0.0.1"),
        allowed_origins=("https://a.b", "http://a:3000", "vscode-webview://abc"),
        limits=Limits(max_body=1, heartbeat=0.25, session_idle=3, retry_after=9),
    )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"lisen": []}, 'did you mean "listen"?'),
        ({"mcpServers": {}}, "gateway.mcpServers: found an unknown key"),
        ({"listen": "tcp:1"}, "put it into brackets"),
        ({"listen": []}, "gateway.listen: found an empty list"),
        ({"listen": None}, "gateway.listen: found null"),
        ({"listen": [8080]}, "gateway.listen[0]: found 8080 (an integer)"),
        ({"listen": ["8080"]}, 'did you mean "tcp:8080:interface=127.0.0.1"?'),
        ({"listen": [":8080"]}, 'did you mean "tcp:8080:interface=127.0.0.1"?'),
        ({"listen": ["10.0.0.1:80"]}, 'did you mean "tcp:80:interface=10.0.0.1"?'),
        ({"listen": ["*:80"]}, 'did you mean "tcp:80"?'),
        ({"listen": ["[::1]:80"]}, r'did you mean "tcp6:80:interface=\\:\\:1"?'),
        ({"listen": ["tpc:80"]}, 'did you mean "tcp:80"?'),
        ({"listen": [""]}, "expected a Twisted endpoint"),
        ({"listen": ["http://localhost"]}, "expected a Twisted endpoint"),
        ({"listen": ["tcp:x:interface=127.0.0.1"]}, "expected tcp:PORT with a port from 0"),
        ({"listen": ["tcp:65536:interface=127.0.0.1"]}, "expected tcp:PORT"),
        ({"listen": ["tcp:interface=127.0.0.1"]}, "expected tcp:PORT"),
        ({"listen": ["tcp:80:inteface=127.0.0.1"]}, 'did you mean "interface"?'),
        ({"listen": ["unix:"]}, "expected unix:ADDRESS"),
        ({"allow_public": "yes"}, "gateway.allow_public: found"),
        ({"allowed_hosts": ["https://a.b/x"]}, 'did you mean "a.b"?'),
        ({"allowed_hosts": ["*"]}, "expected name, name:port or name:*"),
        ({"allowed_hosts": ["a:99999"]}, "expected name, name:port or name:*"),
        ({"allowed_hosts": ["u@a"]}, "expected name, name:port or name:*"),
        ({"allowed_origins": ["*"]}, "expected scheme://host or scheme://host:port"),
        ({"allowed_origins": ["null"]}, "expected scheme://host"),
        ({"allowed_origins": ["a.b"]}, 'did you mean "https://a.b"?'),
        ({"allowed_origins": ["https://a.b/"]}, 'did you mean "https://a.b"?'),
        ({"limits": []}, "gateway.limits: found a list"),
        ({"limits": {"max_bodi": 1}}, 'did you mean "max_body"?'),
        ({"limits": {"zzz": 1}}, "expected one of max_body, "),
        ({"limits": {"max_body": 0}}, "expected a whole number of bytes above 0"),
        ({"limits": {"max_body": 1.0}}, "gateway.limits.max_body: found 1.0 (a number)"),
        ({"limits": {"max_body": True}}, "gateway.limits.max_body: found true (a boolean)"),
        ({"limits": {"max_body": None}}, "gateway.limits.max_body: found null"),
        ({"limits": {"max_body": 2**60}}, "at most 9007199254740992"),
        ({"limits": {"heartbeat": -1}}, "gateway.limits.heartbeat: found -1"),
        ({"limits": {"heartbeat": 2_000_001}}, "at most 2000000"),
    ],
)
def test_a_mistake_in_the_gateway_section(
    mistakes: Callable[..., list[str]], section: dict[str, object], expected: str
) -> None:
    (line,) = mistakes(gateway(**section))
    assert line.startswith("gateway.")
    assert expected in line


def test_a_section_that_is_no_object(mistakes: Callable[..., list[str]]) -> None:
    assert mistakes({**stdio(), "gateway": []}) == ["gateway: found a list, expected an object"]


def test_the_command_line_replaces_keys_of_the_section(
    load: Load, mistakes: Callable[..., list[str]]
) -> None:
    loaded = load(
        gateway(listen=["tcp:1"], allowed_hosts=["a"]),
        overrides={"listen": ("unix:/${x}",), "allow_public": False},
    )
    assert loaded.gateway == GatewaySettings(listen=("unix:/${x}",), allowed_hosts=("a",))
    (line,) = mistakes(gateway(), overrides={"listen": ("tcp:1",)})
    assert line.startswith("gateway.listen[0]: found")
    with pytest.raises(ConfigurationError, match=r"^command line: gateway\.listen\[0\]: found"):
        load(gateway(), overrides={"listen": ["tcp:1"]})


def test_settings_without_a_file() -> None:
    assert gatewaySettings({}) == GatewaySettings()
    assert gatewaySettings({"listen": ["tcp:0"], "allow_public": True}).listen == ("tcp:0",)
    with pytest.raises(ConfigurationError, match="--allow-public"):
        gatewaySettings({"listen": ["tcp:0"]})


# --- Public addresses ---------------------------------------------------------------------------

PRIVATE = [
    "tcp:8080:interface=127.0.0.1",
    "tcp:8080:127.0.0.1",
    "tcp:port=8080:interface=127.1.2.3",
    "tcp:8080:interface=localhost",
    r"tcp:8080:interface=\:\:1",
    r"tcp:8080:interface=\:\:ffff\:127.0.0.1",
    r"tcp6:8080:interface=\:\:1",
    r"tcp6:8080:50:\:\:1",
    "ssl:8443:privateKey=k.pem:interface=127.0.0.1",
    "ssl:8443:k.pem:c.pem:SSLv23:127.0.0.1",
    "tls:/certs:8443:interface=127.0.0.1",
    "haproxy:tcp:8080:interface=127.0.0.1",
    "unix:/run/gateway.sock",
]
PUBLIC = [
    "tcp:8080",
    "tcp:8080:interface=",
    "tcp:8080:interface=0.0.0.0",
    r"tcp:8080:interface=\:\:",
    r"tcp:8080:interface=\:\:ffff\:10.0.0.1",
    "tcp:8080:interface=192.168.1.2",
    "tcp:8080:interface=localhost.example.com",
    "tcp:8080:interface=127.0.0.1:interface=0.0.0.0",
    r"tcp:8080:inter\face=0.0.0.0",
    "tcp6:8080",
    "ssl:8443:privateKey=127.0.0.1",
    "tls:/certs",
    "haproxy:tcp:8080",
    "systemd:domain=INET:index=0",
    "onion:80",
    "",
]


@pytest.mark.acceptance(107)
@pytest.mark.parametrize("endpoint", PRIVATE)
def test_acceptance_107_a_private_address_needs_nothing(load: Load, endpoint: str) -> None:
    assert not isPublic(endpoint)
    assert load(gateway(listen=[endpoint])).gateway.listen == (endpoint,)


@pytest.mark.acceptance(107)
@pytest.mark.parametrize("endpoint", [endpoint for endpoint in PUBLIC if endpoint])
def test_acceptance_107_a_public_address_needs_the_flag(
    load: Load, mistakes: Callable[..., list[str]], endpoint: str
) -> None:
    assert isPublic(endpoint)
    (line,) = mistakes(gateway(listen=["unix:/s", endpoint]))
    assert line.startswith("gateway.listen[1]: found ")
    assert "without authentication" in line
    assert line.endswith('set "allow_public": true in "gateway" or give --allow-public')
    allowed = load(gateway(listen=[endpoint], allow_public=True))
    assert allowed.gateway.listen == (endpoint,)
    assert load(gateway(listen=[endpoint]), overrides={"allow_public": True}).servers


@pytest.mark.acceptance(107)
def test_acceptance_107_the_default_is_loopback() -> None:
    assert not any(map(isPublic, GatewaySettings().listen))


@given(
    st.lists(
        st.sampled_from(["tcp", "8080", "interface", "127.0.0.1", "10.0.0.1", "::1", "5", "\\"])
        | st.sampled_from([":", "=", "\\:", "interface=", ":interface=127.0.0.1", ":127.0.0.1"]),
        max_size=8,
    ).map("".join)
)
def test_acceptance_107_no_spelling_hides_a_public_address(text: str) -> None:
    """What isPublic calls private, Twisted binds to a loopback address."""
    endpoint = "tcp:80" + text
    if isPublic(endpoint):
        return
    reactor = MemoryReactor()
    try:
        serverFromString(reactor, endpoint).listen(Factory())
    except Exception:
        return  # Twisted refuses it: nothing is bound
    interface = reactor.tcpServers[0][3]
    assert interface == "localhost" or ipaddress.ip_address(interface).is_loopback


# --- The command line ---------------------------------------------------------------------------


def _http(name: str, url: str) -> HTTPSettings:
    return HTTPSettings(name=name, url=url, default=True)


def _stdio(name: str, command: str, *args: str) -> StdioSettings:
    return StdioSettings(name=name, command=command, args=args, default=True)


@pytest.mark.parametrize(
    ("words", "server"),
    [
        (["https://api.h.com/mcp"], _http("api", "https://api.h.com/mcp")),
        (["http://localhost:1/sse"], _http("localhost", "http://localhost:1/sse")),
        (["http://127.0.0.1:1/"], _http("default", "http://127.0.0.1:1/")),
        (["http://[::1]:1/"], _http("default", "http://[::1]:1/")),
        (["--", "npx", "-y", "${X}"], _stdio("npx", "npx", "-y", "${X}")),
        (["uvx", "a", "--", "b"], _stdio("uvx", "uvx", "a", "--", "b")),
        (["--", "/opt/my server/run it"], _stdio("run-it", "/opt/my server/run it")),
        (["--", "C:\\x\\node.exe"], _stdio("node", "C:\\x\\node.exe")),
        (["--", "http://x"], _stdio("x", "http://x")),
        (["--", "./..."], _stdio("default", "./...")),
    ],
)
def test_a_server_from_the_command_line(words: list[str], server: ServerSettings) -> None:
    assert serverFromArguments(words) == server


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "found no server, expected a URL, or -- COMMAND ARGUMENT..."),
        (["--"], "found no server"),
        ([""], "found no server"),
        (["ftp://h/"], "url: found the scheme ftp"),
        (["http://u:hunter2@h/"], "url: found a URL with credentials"),
        (["http://[/"], "url: found"),
        (["http://h/", "x"], "found 1 more after it, expected one URL alone"),
        (["--", "a\0b"], "command: found a NUL character"),
        (["--", "a", "b\0"], "args[0]: found a NUL character"),
    ],
)
def test_a_mistake_on_the_command_line(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        serverFromArguments(words)
    assert str(caught.value).startswith("command line: ")
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_demo_server_is_a_script_that_exists() -> None:
    demo = demoServer()
    assert (demo.name, demo.default, demo.command) == ("demo", True, sys.executable)
    flag, script = demo.args
    assert flag == "-I"
    assert Path(script) == ROOT / "gateway" / "demo.py"
    assert Path(script).is_file()


# --- Anything at all ----------------------------------------------------------------------------

_KEYS = st.sampled_from(
    [
        *("mcpServers", "gateway", "servers", "a", "command", "args", "env", "url", "headers"),
        *("type", "timeout", "disabled", "default", "limits", "listen", "max_body", "heartbeat"),
        *("cwd", "x y", "allowed_hosts", "allowed_origins", "transport", "on_exit", "autoApprove"),
    ]
) | st.text(max_size=5)
_TEXTS = st.sampled_from(
    ["${TOKEN}", "${", "http://h", "http://[", "tcp:80", "\0", "\ud800", "stdio", "sse", "a:1", "="]
) | st.text(alphabet=string.printable, max_size=20)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=20,
)
_DOCUMENTS = _VALUES | st.fixed_dictionaries(
    {"mcpServers": st.dictionaries(_KEYS, st.dictionaries(_KEYS, _VALUES, max_size=5), max_size=3)},
    optional={"gateway": st.dictionaries(_KEYS, _VALUES, max_size=4)},
)


def _outcome(load: Load, *args: Any, **kwargs: Any) -> None:
    """Either a configuration or mistakes, each on one line, without a secret."""
    try:
        loaded = load(*args, **kwargs)
    except ConfigurationError as error:
        assert error.problems
        shown = str(error)
        assert len(shown.splitlines()) == len(error.problems)
        shown.encode()
    else:
        assert loaded.servers
        shown = "\n".join(loaded.notices)
    assert ENVIRON["TOKEN"] not in shown


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(document=_DOCUMENTS)
def test_any_json_value_is_a_configuration_or_a_mistake(load: Load, document: object) -> None:
    _outcome(load, json.dumps(document))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["a.json", "a.toml"]),
    text=st.binary(max_size=60) | st.text(alphabet="{}[]\":,\\/*-1eaE \n#=.'", max_size=40),
)
def test_any_text_is_a_configuration_or_a_mistake(load: Load, name: str, text: str | bytes) -> None:
    _outcome(load, text, name=name)


@given(words=st.lists(_TEXTS | st.just("--"), max_size=4))
def test_any_command_line_is_a_server_or_a_mistake(words: list[str]) -> None:
    try:
        assert serverFromArguments(words).default
    except ConfigurationError as error:
        assert str(error).startswith("command line: ")


# --- The reference ------------------------------------------------------------------------------


def test_the_reference_page_is_up_to_date() -> None:
    """If this fails: PYTHONPATH=. python docs/make_configuration.py"""
    path = ROOT / "docs" / "make_configuration.py"
    spec = importlib.util.spec_from_file_location("make_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page()


@pytest.mark.parametrize(
    ("url", "listen", "encrypted"),
    [
        ("http://127.0.0.1/mcp", ["tcp:80:interface=127.0.0.1"], False),
        ("http://127.0.0.1/https:", ["unix:/s", "systemd:domain=INET:index=0"], False),
        ("http://127.0.0.1/mcp", ["haproxy:tcp:80", "tcp6:80"], False),
        ("https://127.0.0.1/mcp", ["unix:/s"], True),
        ("HTTPS://127.0.0.1/mcp", ["unix:/s"], True),
        ("http://127.0.0.1/mcp", ["unix:/s", "ssl:443"], True),
        ("http://127.0.0.1/mcp", ["haproxy:tls:/certificates"], True),
        ("http://127.0.0.1/mcp", ["le:/certificates:tcp:443"], True),
    ],
)
def test_it_tells_whether_tls_may_be_spoken(
    load: Load, url: str, listen: list[str], encrypted: bool
) -> None:
    document = gateway(listen=listen, allow_public=True)
    document["mcpServers"] = {"one": {"url": url}}
    assert load(document).encrypted is encrypted
