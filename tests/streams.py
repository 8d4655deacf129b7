"""
Streams of HTTP/1.1 requests, well-formed and mutated, and how they are read: by our reader, and by
h11, an independent judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random

import h11
from attrs import define, field, frozen

from gateway.http1.request_head import BadRequest, RequestBounds, RequestLine
from gateway.http1.requests import RequestReader

HeaderPairs = tuple[tuple[bytes, bytes], ...]


def _withoutZeros(digits: bytes) -> bytes:
    return digits.lstrip(b"0")


@define
class Request:
    """A request as a reader told it; ended: whether all of it came."""

    method: bytes
    target: bytes
    version: bytes
    headers: HeaderPairs
    persistent: bool
    length: int | None = None
    continues: bool = False
    body: bytes = b""
    ended: bool = False

    @property
    def framing(self) -> tuple[bytes, bytes, bytes, HeaderPairs]:
        # h11 tells codings in lower case; of a length that is told again the zeros are left out.
        spelled = {b"transfer-encoding": bytes.lower, b"content-length": _withoutZeros}
        headers = tuple((n, spelled.get(n, bytes)(v)) for n, v in self.headers)
        return self.method, self.target, self.version, headers


@define
class Reading:
    """
    What a reader made of a stream.

    refused: the status of its refusal, or 0. why: its words. left: where the reading ended, what
    of a request there was: "", "head" or "body". raw: the bytes of each request, the last with what
    follows it.
    """

    requests: list[Request] = field(factory=list)
    refused: int = 0
    why: str = ""
    limit: str = ""
    left: str = ""
    raw: list[bytes] = field(factory=list)

    @property
    def complete(self) -> list[Request]:
        return [request for request in self.requests if request.ended]


class Ear:
    """
    A RequestOwner that writes down what it hears.

    remembers: whether it lets heads be remembered, as a proxy's.
    """

    remembers = True

    def __init__(self) -> None:
        self.reading = Reading()
        self.pieces: list[bytes] = []
        self.over = False

    def headReceived(self, line: RequestLine, fields: HeaderPairs) -> bool:
        assert not self.reading.requests or self.reading.requests[-1].ended
        if line.length is not None:
            # That of a remembered head is an earlier one's.
            told = b"%d" % line.length
            fields = tuple(
                (name, told if name == b"content-length" and int(value) != line.length else value)
                for name, value in fields
            )
        self.reading.requests.append(
            Request(
                line.method,
                line.target,
                line.version,
                fields,
                line.persistent,
                line.length,
                line.continues,
            )
        )
        return self.remembers

    def requestReceived(self, line: RequestLine, fields: HeaderPairs, body: bytes) -> None:
        whole = RequestLine(line.method, line.target, line.version, line.persistent)
        whole.length = len(body)
        self.headReceived(whole, fields)
        self.bodyReceived(body)
        self.requestEnded()

    def bodyReceived(self, data: bytes) -> None:
        assert data
        request = self.reading.requests[-1]
        assert not request.ended
        request.body += data
        self.pieces.append(data)

    def requestEnded(self) -> None:
        request = self.reading.requests[-1]
        assert not request.ended
        request.ended = self.over = True


def read(pieces: Iterable[bytes], bounds: RequestBounds | None = None) -> Reading:
    """Feed our reader; after a request that is the last of its connection nothing is read."""
    ear = Ear()
    reading = ear.reading
    reader = RequestReader(ear, bounds or RequestBounds())

    try:
        for piece in pieces:
            reader.feed(piece)
            while ear.over and reading.requests[-1].persistent:
                ear.over = False
                reader.proceed()
            if ear.over:
                break
    except BadRequest as bad:
        reading.refused, reading.why, reading.limit = bad.status, str(bad), bad.limit
    else:
        reading.left = reader.reading
    return reading


def told(requests: list[Request]) -> list[object]:
    """All that was told of them, but for how a length was spelled."""
    return [
        (one.framing, one.persistent, one.length, one.continues, one.body, one.ended)
        for one in requests
    ]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream in pieces, cut at these places."""
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def judge(data: bytes) -> Reading:
    """The same by h11."""
    reading = Reading()
    while data:
        # Rule 7: h11 takes no empty line before a request line.
        rest = data.removeprefix(b"\r\n")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        if rest:
            connection.receive_data(rest)
        reading.raw.append(rest)
        try:
            ended = _judged(connection, reading)
        except h11.RemoteProtocolError as error:
            reading.refused, reading.why = error.error_status_hint, str(error)
            return reading
        if not ended:
            return reading
        data = connection.trailing_data[0]
        reading.raw[-1] = rest[: len(rest) - len(data)]
    return reading


def _judged(connection: h11.Connection, reading: Reading) -> bool:
    """One request. Returns whether another may follow."""
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.Request):
            headers = tuple((bytes(n), bytes(v)) for n, v in event.headers)
            line = bytes(event.method), bytes(event.target), bytes(event.http_version)
            reading.requests.append(Request(*line, headers, True))
        elif isinstance(event, h11.Data):
            reading.requests[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            reading.requests[-1].ended = True
            # No 2xx: that would begin a tunnel, or another protocol.
            connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            persistent = connection.our_state is h11.DONE
            reading.requests[-1].persistent = persistent
            return persistent
    return False


# Streams that are well-formed.

METHODS = (b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD", b"PUT", b"PATCH", b"TRACE", b"BREW")
TARGETS = (b"/mcp", b"/sse", b"/messages?session_id=abc", b"/", b"/a%20b?c=d", b"//mcp", b"*")
VALUES = (b"", b"x", b"a b\tc", b"\xe9\xff", b"text/event-stream, application/json", b'"q;,"', b":")
NAMES = (b"X-A", b"accept", b"Mcp-Session-Id", b"Cookie", b"!#$%&'*+-.^_`|~", b"X-A")
BODIES = (b"", b"x", b"0\r\n\r\n", b"\r\n\r\n", b"GET /mcp HTTP/1.1\r\n\r\n", b"\x00\xff" * 20)
EXTENSIONS = (b"", b"", b"", b";a", b";a=b", b';a="b c"', b";a;b=1;c")
TRAILERS = (b"", b"", b"X-T: 1\r\n", b"A:\r\nB: x y\r\n")
PADDING = (b" ", b" ", b"", b"  ", b"\t", b"  \t")


@frozen
class Call:
    """
    What every request of a stream is: a POST to a target, with some fields and a body.

    tabs: whether they may be around values; nginx takes none around Host.
    """

    target: bytes
    host: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    tabs: bool = True


def request(random: Random, call: Call | None = None, body: bytes | None = None) -> bytes:
    """
    One request, well-formed as RFC 9112 has it; any one, or a certain one in any spelling.

    body: its body, where it has one, in place of any.
    """
    told = body
    method = random.choice(METHODS) if call is None and random.random() < 0.6 else b"POST"
    version = b"1.0" if random.random() < 0.08 else b"1.1"
    target = random.choice(TARGETS) if call is None else call.target
    lines = [b"%b %b HTTP/%b" % (method, target, version)]

    tidy = random.random() < 0.4

    def say(name: bytes, value: bytes) -> None:
        if tidy:
            lines.append(b"%b: %b" % (name, value))
            return
        padding = PADDING if call is None or call.tabs else PADDING[:4]
        # llhttp takes no tab after a length or a coding.
        after = padding if name[-6:] not in (b"Length", b"coding") else PADDING[:4]
        lines.append(b"%b:%b%b%b" % (name, random.choice(padding), value, random.choice(after)))

    say(random.choice((b"Host", b"host", b"HOST")), b"a.example" if call is None else call.host)
    for name, value in () if call is None else call.fields:
        say(name, value)
    for _ in range(random.randrange(4)):
        say(random.choice(NAMES if call is None else NAMES[:1]), random.choice(VALUES))
    if random.random() < 0.15:
        say(b"Connection", random.choice((b"close", b"keep-alive", b"x, close", b"Keep-Alive, y")))
    if random.random() < 0.08:
        say(b"Upgrade", random.choice((b"websocket", b"h2c", b"foo/2")))
        say(b"Connection", random.choice((b"upgrade", b"Upgrade, HTTP2-Settings")))
    if random.random() < 0.08:
        say(b"Expect", random.choice((b"100-continue", b"100-Continue")))
    body = random.randbytes(random.randrange(90))
    if random.random() < 0.7:
        body = random.choice(BODIES)
    if call is not None:
        body = call.body
    if told is not None and body:
        body = told
    framing = random.random()
    if framing < 0.4 and version == b"1.1":
        say(b"Transfer-Encoding", random.choice((b"chunked", b"Chunked")))
        body = chunked(random, body)
    elif framing < 0.8 or body:
        say(b"Content-Length", random.choice((b"%d", b"%03d")) % len(body))
    else:
        body = b""
    if random.random() < 0.3:
        lines[1:] = random.sample(lines[1:], len(lines) - 1)
    return b"\r\n".join([*lines, b"", b""]) + body


def chunked(random: Random, body: bytes) -> bytes:
    """A body in chunks."""
    parts = []
    for part in cut(body, [random.randrange(len(body) + 1) for _ in range(random.randrange(4))]):
        size = random.choice((b"%x", b"%X", b"00%x")) % len(part)
        parts.append(b"%b%b\r\n%b\r\n" % (size, random.choice(EXTENSIONS), part))
    last = random.choice((b"0", b"0", b"000"))
    parts.append(b"%b%b\r\n%b\r\n" % (last, random.choice(EXTENSIONS), random.choice(TRAILERS)))
    return b"".join(parts)


def stream(random: Random) -> bytes:
    """One to four requests, one after the other; some say the same head again, but for a length."""
    count = random.randrange(1, 5)
    if random.random() < 0.6:
        return b"".join(request(random) for _ in range(count))
    spelling = random.randrange(2**32)
    bodies = [random.choice((*BODIES[1:], b"x" * random.randrange(1, 1200))) for _ in range(count)]
    return b"".join(request(Random(spelling), None, body) for body in bodies)


# Mutations.

TOKENS = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\x00", b" ", b"\t", b":", b";", b",", b"\x0b",
    b"\x7f", b"\x85", b"\r\n ", b"\r\n\t", b"0", b"00", b"1", b"a", b"f", b"-", b"+", b"_", b"0x",
    b"#", b"\\", b'"', b"\xff", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Content-Length : 5\r\n",
    b"Content_Length: 5\r\n", b" Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"Host: a.example\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n",
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9",
    b"GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", b"0\r\n\r\n", b"0\r\n",
    b"5;x\r\nhello\r\n", b"ffffffffffffffff\r\n", b"10000000000000000\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a.example\r\n\r\n",
)  # fmt: skip
"""What goes wrong where framing is got wrong."""


def mutated(random: Random, data: bytes | None = None) -> bytes:
    """A stream with one to three things wrong, or not."""
    if data is None:
        data = stream(random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(_MUTATIONS)(random, data)
    return data


def _place(random: Random, data: bytes) -> int:
    """Somewhere; half of the time where a line, a field or a chunk has its joints."""
    if random.random() < 0.5:
        joints = [match.start() for match in re.finditer(rb"[\r\n:; ]", data)]
        if joints:
            return min(len(data), max(0, random.choice(joints) + random.choice((-1, 0, 0, 1, 2))))
    return random.randrange(len(data) + 1)


def _insert(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.choice(TOKENS) + data[at:]


def _insertLine(random: Random, data: bytes) -> bytes:
    ends = [match.end() for match in re.finditer(rb"\r\n", data)]
    at = random.choice(ends) if ends else 0
    return data[:at] + random.choice(TOKENS) + data[at:]


def _delete(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + data[at + random.choice((1, 1, 2, 3, 20)) :]


def _replace(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]


def _repeat(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    size = random.choice((1, 2, 4, 10, 30))
    return data[: at + size] + data[at:]


def _swap(random: Random, data: bytes) -> bytes:
    old = random.choice((b"\r\n", b": ", b" ", b"1.1", b"chunked", b"Content-Length", b"0", b";"))
    new = random.choice(TOKENS)
    places = [match.start() for match in re.finditer(re.escape(old), data)]
    if not places:
        return data
    at = random.choice(places)
    return data[:at] + new + data[at + len(old) :]


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


_MUTATIONS: Sequence = (_insert, _insertLine, _delete, _replace, _repeat, _swap, _insert, _truncate)


# Two readings of one stream.


def difference(data: bytes, ours: Reading, theirs: Reading) -> str:
    """
    Where our reading of a stream takes what h11's does not, or takes it for something else.

    Empty where they agree, or where we refuse what h11 takes. Of two things we think otherwise:
    Host is judged by the ladder, and who asks for it in HTTP/1.0 is kept alive. There it ends.
    """
    for number, (mine, other) in enumerate(zip(ours.requests, theirs.requests, strict=False)):
        if mine.framing != other.framing:
            return f"request {number}: {mine.framing} or {other.framing}"
        if mine.ended and other.ended and mine.persistent and mine.version == b"1.0":
            return "" if mine.body == other.body else f"{mine.body!r} or {other.body!r}"
        if mine.ended and not other.ended:
            return f"request {number} has ended, or has not: {theirs.why}"
        if mine.ended and (mine.body != other.body or mine.persistent != other.persistent):
            return f"request {number}: {mine} or {other}"
        if not other.body.startswith(mine.body):
            return f"request {number}: {mine.body!r} or {other.body!r}"
    if len(ours.requests) > len(theirs.requests) and "Host:" not in theirs.why:
        return f"request {len(theirs.requests)} is one, or none: {theirs.why}"
    if not ours.refused and len(ours.complete) < len(theirs.complete):
        return f"request {len(ours.complete)} has not ended, or has"
    return ""


# What we refuse, and h11 takes.

_HEAD = r"\A(?:(?!\r\n\r\n).)*?"
_BODY = r"\A.*?\r\n\r\n(?:.*?\n)??"
_TOKEN = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_EXTENSION = rf'(?:;{_TOKEN}(?:=(?:{_TOKEN}|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\r\n])*"))?)'

_PATTERNS = {
    "only CRLF ends a line (RFC 9112 section 2.2)": r"(?<!\r)\n|\r(?!\n)",
    "lines are not folded (RFC 9112 section 5.2)": r"\n[ \t]",
    "a value has no control characters (RFC 9110 section 5.5)": r"\n[^:]+:[^\n]*"
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "a length is said once (RFC 9112 section 6.3)": _HEAD
    + r"\ncontent-length:(?:[^\n]*,|.*?\ncontent-length:)",
    "either a length or chunks (RFC 9112 section 6.3)": _HEAD
    + r"\n(?:content-length:.*?\ntransfer-encoding:|transfer-encoding:.*?\ncontent-length:)",
    "no chunks in HTTP/1.0 (RFC 9112 section 6.1)": r"\A[^\r\n]* HTTP/1\.0\r\n"
    r"(?:.*?\n)??transfer-encoding:",
    "a target is a path, an absolute URI or * (RFC 9112 section 3.2)": r"\A[^ ]+ "
    r"(?:(?!/|\*|[a-z]+://)|[^ ]*#)",
    "the version is 1.0 or 1.1": r"\A[^\r\n]* HTTP/(?!1\.[01]\r)",
    "the only expectation is 100-continue (RFC 9110 section 10.1.1)": _HEAD
    + r"\nexpect:(?![ \t]*100-continue[ \t]*\r)",
    "a chunk's size has 16 digits at most": _BODY + r"[0-9a-f]{17,20}[; \t\r]",
    "a chunk's extension is a token, and a value (RFC 9112 section 7.1.1)": _BODY
    + rf"[0-9a-f]++(?!{_EXTENSION}*\r\n)[;\s]",
    "trailers frame nothing (RFC 9110 section 6.5.1)": _BODY
    + r"(?:content-length|transfer-encoding):",
    "llhttp takes no tab after a coding or a length": _HEAD
    + r"\n(?:transfer-encoding|content-length):[^\r\n]*\t[ \t]*\r",
}

CLOSED = "after close, even in a trailer, nothing more comes (RFC 9112 section 9.6)"
_CLOSED = re.compile(rb"\r\n\r\n.*\nconnection:[^\n]*close", re.IGNORECASE | re.DOTALL)

RULES = {
    rule: re.compile(pattern.encode(), re.IGNORECASE | re.DOTALL)
    for rule, pattern in _PATTERNS.items()
}
"""By rule: what the bytes of a request look like that only we refuse."""


def stricter(ours: Reading, theirs: Reading) -> list[str] | None:
    """By which rules we may have refused a request that h11 took; None where we did not."""
    number = len(ours.complete)
    if not ours.refused or (
        len(theirs.requests) <= len(ours.requests) and len(theirs.complete) <= number
    ):
        return None
    raw = theirs.raw[number]
    rules = [rule for rule, pattern in RULES.items() if pattern.search(raw)]
    if number and _CLOSED.search(theirs.raw[number - 1]):
        rules.append(CLOSED)
    return rules
