"""
Requests that are none (RFC 9112, RFC 9110): what is wrong with each, and the status that tells it.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

CONTROLS = tuple(bytes((code,)) for code in (*range(9), 11, 12, *range(14, 32), 127))
"""Every control character but tab, CR and LF."""

REQUEST_LINES = (
    b"GET /mcp",
    b"GET /mcp ",
    b"GET  /mcp HTTP/1.1",
    b"GET /mcp  HTTP/1.1",
    b" GET /mcp HTTP/1.1",
    b"GET /mcp HTTP/1.1 ",
    b"GET /mcp HTTP/1.1\t",
    b"GET\t/mcp HTTP/1.1",
    b"GET /mcp\tHTTP/1.1",
    b"GET\x0b/mcp HTTP/1.1",
    b"GET /mcp\x0cHTTP/1.1",
    b"GET /m cp HTTP/1.1",
    b"/mcp HTTP/1.1",
    b" /mcp HTTP/1.1",
    b"GET HTTP/1.1",
    b"GET /mcp http/1.1",
    b"GET /mcp HTTP/1.1.1",
    b"GET /mcp HTTP/11",
    b"GET /mcp HTTP/1.",
    b"GET /mcp HTTP/.1",
    b"GET /mcp HTTP/1.10",
    b"GET /mcp HTTP/01.1",
    b"GET /mcp HTTP/1,1",
    b"GET /mcp HTTP/a.b",
    b"GET /mcp HTTP/1.1\x00",
    b"GET /mcp HTTP/-1.1",
    b"GET /mcp HTTP/+1.1",
    b"GET /mcp HTTPS/1.1",
    b"GET /mcp XHTTP/1.1",
    b"GET /mcp HTTP 1.1",
    b"GET /mcp HTTP/ 1.1",
    b"GE(T /mcp HTTP/1.1",
    b"GE@T /mcp HTTP/1.1",
    b"GE/T /mcp HTTP/1.1",
    b'"GET" /mcp HTTP/1.1',
    b"G\xc9T /mcp HTTP/1.1",
    b"GET: /mcp HTTP/1.1",
    b"GET /mcp HTTP/1.1\rX: y",
    b"GET /mcp HTTP/1.1\nX: y",
    b"GET /mcp\r HTTP/1.1",
    b"GET /mcp\n HTTP/1.1",
    b"GE\rT /mcp HTTP/1.1",
    b"HTTP/1.1 200 OK",
    b"\x16\x03\x01\x02\x00\x01",
    b"\x00",
    b"\xff\xfe",
)
"""400, rule 1."""

VERSIONS = (b"0.0", b"0.9", b"1.2", b"1.9", b"2.0", b"3.0", b"9.9")
"""505, rule 2."""

TARGETS = (
    b"/a#b",
    b"/\xc3\xa9",
    b"/\xff",
    b"mcp",
    b"?a",
    b"h:80",
    b"http:/h",
    b"1http://h/",
    *(b"/mcp%bx" % control for control in CONTROLS),
)
"""400, rule 3."""

CODINGS = (
    ([b"Transfer-Encoding: gzip"], 400),
    ([b"Transfer-Encoding: identity"], 400),
    ([b"Transfer-Encoding: xchunked"], 400),
    ([b"Transfer-Encoding: chunkedx"], 400),
    ([b"Transfer-Encoding: chunk"], 400),
    ([b"Transfer-Encoding: chunked, identity"], 400),
    ([b"Transfer-Encoding: chunked, chunked"], 400),
    ([b"Transfer-Encoding: chunked,"], 400),
    ([b"Transfer-Encoding: chunked;a=b"], 400),
    ([b'Transfer-Encoding: "chunked"'], 400),
    ([b"Transfer-Encoding: \x0bchunked"], 400),
    ([b"Transfer-Encoding: chunked\x00"], 400),
    ([b"Transfer-Encoding:"], 400),
    ([b"Transfer-Encoding : chunked"], 400),
    ([b"Transfer-Encoding", b" : chunked"], 400),
    ([b"Transfer-Encoding:", b" chunked"], 400),
    ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
    ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], 400),
    ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], 400),
    ([b"Transfer-Encoding: chunked", b"Content-Length: 0"], 400),
    ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
    ([b"Content-Length: 0", b"Transfer-Encoding: identity"], 400),
    ([b"Content-Length: 5", b"Transfer-Encoding: x"], 400),
    ([b"Transfer-Encoding: gzip, chunked"], 501),
    ([b"Transfer-Encoding: identity, chunked"], 501),
    ([b"Transfer-Encoding: ,chunked"], 501),
    ([b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"], 501),
    ([b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"], 501),
    ([b"Transfer-Encoding: ,", b"Transfer-Encoding: chunked"], 501),
    # llhttp takes this one for one.
    ([b"Transfer-Encoding: chunked\t", b"Transfer-Encoding: chunked"], 501),
)
"""Rule 5: malformed where the body's end is uncertain, 501 where it is a coding we lack."""

EXPECTATIONS = (b"", b"x", b"100-continued", b"100-continue, x", b"200-ok", b"100 -continue")
"""417, rule 6."""

FIELDS = (
    [b"X-A : x"],
    [b"X-A\t: x"],
    [b" X-A: x"],
    [b"\tX-A: x"],
    [b"X-A"],
    [b": x"],
    [b":"],
    [b"X A: x"],
    [b"X-\xc9: x"],
    [b"X-A: x", b" folded"],
    [b"X-A: x", b"\tfolded"],
    [b"X-A: x", b" "],
    [b"X-A: x\ny: z"],
    [b"X-A: x\n"],
    [b"X-A: x\ry: z"],
    [b"X-A: x\r"],
    [b"X-A: x\r\r"],
    [b"Content-Length: +5"],
    [b"Content-Length: -5"],
    [b"Content-Length: 0x5"],
    [b"Content-Length: 5,5"],
    [b"Content-Length: 5, 5"],
    [b"Content-Length: 5,"],
    [b"Content-Length: 5 5"],
    [b"Content-Length: 5;a"],
    [b"Content-Length: 5.0"],
    [b"Content-Length: 5e0"],
    [b"Content-Length: 5_0"],
    [b"Content-Length: 5a"],
    [b"Content-Length: "],
    [b"Content-Length: five"],
    [b"Content-Length: \xb2"],
    [b"Content-Length: \xd9\xa5"],
    [b"Content-Length: 18446744073709551616"],
    [b"Content-Length: 99999999999999999999"],
    [b"Content-Length: " + b"0" * 5000 + b"5"],
    [b"Content-Length: 5", b"Content-Length: 5"],
    [b"Content-Length: 5", b"Content-Length: 6"],
    [b"Content-Length: 0", b"Content-Length: 5"],
    [b"Content-Length : 5"],
    [b"Content-Length", b": 5"],
    *([b"X-A: x%by" % control] for control in CONTROLS),
    *([b"X%bA: x" % bytes((code,))] for code in b'"(),/;<=>?@[\\]{}\x00\x1f\x7f\x80\xff'),
)
"""400: a field that is none, or a length that is none."""

CHUNKS = (
    b"\r\n\r\n",
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b";a\r\nhello\r\n0\r\n\r\n",
    b";\r\nhello\r\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;;a\r\nhello\r\n0\r\n\r\n",
    b"5;a=\x00\r\nhello\r\n0\r\n\r\n",
    b'5;a="b\r\nhello\r\n0\r\n\r\n',
    b'5;a="\x01"\r\nhello\r\n0\r\n\r\n',
    b"5;a=(\r\nhello\r\n0\r\n\r\n",
    b"5;(\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\t\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5h\r\nhello\r\n0\r\n\r\n",
    b"h\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5_\r\nhello\r\n0\r\n\r\n",
    b"5.0\r\nhello\r\n0\r\n\r\n",
    b"5,5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"5\r\nhell\r\n0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"10000000000000000\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\n\n",
    b"5\r\nhello\r\n0\r\n\n",
    b"5\r\nhello\r\n0\r\n\rX",
    b"5\r\nhello\r\n0 \r\n\r\n",
    b"5\r\nhello\r\n-0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T\r\n\r\n",
    b"5\r\nhello\r\n0\r\n: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T : y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T: y\r\n z\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T: y\nA: b\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T: \x00\r\n\r\n",
    b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
)
"""400: a chunked body that is none."""

HOSTS = (
    [],
    [b""],
    [b"{}", b"{}"],
    [b"{}", b"evil.example"],
    [b"evil.example", b"{}"],
    [b"{}/mcp"],
    [b"http://{}"],
    [b"//{}"],
    [b"user@{}"],
    [b"user:pass@{}"],
    [b"{}, evil.example"],
    [b"{},{}"],
    [b"{} evil.example"],
    [b"{}\tevil.example"],
    [b"{}:80"],
    [b"127.0.0.1:"],
    [b"127.0.0.1:+80"],
    [b"127.0.0.1:-1"],
    [b"127.0.0.1:0"],
    [b"127.0.0.1:65536"],
    [b"127.0.0.1:99999999"],
    [b"127.0.0.1:http"],
    [b"127.0.0.1:0x50"],
    [b"{}?x"],
    [b"{}#x"],
    [b"{}\\x"],
    [b"local host"],
    [b"127.0.0.1%00"],
    [b"\xc3\xa9.example"],
    [b"[::1"],
    [b"::1"],
    [b"[::1]x"],
)
"""400, the ladder's first rung: {} is a Host that is allowed."""


@frozen
class Case:
    """A request that is none. status: of its refusal; limit: the bound it is over, if one."""

    name: str
    status: int
    data: bytes
    limit: str = ""


def cases(target: bytes, host: bytes) -> Iterator[Case]:
    """Every one of them for a target, but for those whose Host is wrong."""
    body = b"5\r\nhello\r\n0\r\n\r\n"

    def head(*lines: bytes, line: bytes = b"POST %b HTTP/1.1" % target) -> bytes:
        return b"\r\n".join([line, b"Host: " + host, *lines, b"", b""])

    for n, line in enumerate(REQUEST_LINES):
        yield Case(f"request line {n}", 400, head(line=line.replace(b"/mcp", target)))
    for version in VERSIONS:
        line = b"GET %b HTTP/%b" % (target, version)
        yield Case(f"version {version!r}", 505, head(line=line))
    yield Case("preface of HTTP/2", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    for method in (b"GET", b"BREW"):
        for bad in TARGETS:
            line = b"%b %b HTTP/1.1" % (method, bad.replace(b"/mcp", target))
            yield Case(f"{method!r} target {bad!r}", 400, head(line=line))
    for lines, status in CODINGS:
        yield Case(f"coding {lines}", status, head(*lines) + body)
    lines = [b"Transfer-Encoding: chunked"]
    yield Case("chunks in 1.0", 400, head(*lines, line=b"POST %b HTTP/1.0" % target) + body)
    for value in EXPECTATIONS:
        yield Case(f"expect {value!r}", 417, head(b"Expect: " + value))
    for fields in FIELDS:
        for method in (b"POST", b"GET"):
            line = b"%b %b HTTP/1.1" % (method, target)
            yield Case(
                f"{method!r} fields {fields[:2]}"[:80], 400, head(*fields, line=line) + b"hello"
            )
    lines = [b"Content-Type: application/json", *lines]
    for chunks in CHUNKS:
        yield Case(f"chunks {chunks!r}", 400, head(*lines) + chunks)
    yield Case("line", 414, head(line=b"GET /%b HTTP/1.1" % (b"x" * 9000)), "max_head_line")
    yield Case("query", 414, head(line=b"GET %b?%b" % (target, b"x" * 9000)), "max_head_line")
    yield Case("method", 414, head(line=b"X" * 9000 + b" / HTTP/1.1"), "max_head_line")
    yield Case("field", 431, head(b"X: " + b"x" * 9000), "max_head_line")
    yield Case("name", 431, head(b"X" * 9000 + b": x"), "max_head_line")
    yield Case("session", 431, head(b"Mcp-Session-Id: " + b"x" * 9000), "max_head_line")
    yield Case("head", 431, head(*[b"X: " + b"x" * 1000] * 20), "max_head")
    yield Case(
        "head without end",
        431,
        b"GET / HTTP/1.1\r\n" + (b"X: %b\r\n" % (b"x" * 1000)) * 20,
        "max_head",
    )
    yield Case("fields", 431, head(*[b"X: x"] * 101), "max_head_fields")
    for extended in (b"5;%b\r\nhello\r\n", b"0;%b\r\n\r\n", b"5;%b"):
        data = head(*lines) + extended % (b"x" * 5000)
        yield Case("extensions", 400, data, "max_chunk_extensions")
    many = b"1;%b\r\nx\r\n" % (b"x" * 100) * 100
    yield Case("many extensions", 400, head(*lines) + many, "max_chunk_extensions")
    for trailers in (b"X: %b\r\n" % (b"x" * 17_000), b"X: %b\r\n" % (b"x" * 1000) * 20):
        yield Case("trailers", 400, head(*lines) + b"0\r\n" + trailers, "max_trailers")


def hosts(target: bytes, host: bytes) -> Iterator[Case]:
    """Requests of which only the ladder's first rung sees what is wrong."""
    for names in HOSTS:
        lines = [b"Host: " + name.replace(b"{}", host) for name in names]
        for version in (b"1.1", b"1.0"):
            line = b"POST %b HTTP/%b" % (target, version)
            data = b"\r\n".join([line, *lines, b"Content-Length: 0", b"", b""])
            yield Case(f"HTTP/{version!r} Host {names}", 400, data)
