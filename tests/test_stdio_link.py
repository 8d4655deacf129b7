"""StdioServer and its links, with real child processes (tests/faulty_server.py)."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from stdio_support import (
    CONTEXT,
    FAULTY,
    HELLO,
    Bench,
    Listener,
    Observed,
    alive,
    benches,
    call,
    children,
    request,
)
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger, globalLogPublisher

from gateway.guard.limits import Limits
from gateway.links.interfaces import Health, ILink, IServer, LinkFailed, Outcome, Reason
from gateway.links.process import Child, Program, Reaper
from gateway.links.serverlog import ServerLog
from gateway.links.stdin import Stdin
from gateway.links.stdout import Stdout
from gateway.observe.observer import BoundReached, LinkLost, LinkOpened, NoiseSkipped
from gateway.servers.stdio import childEnvironment
from gateway.wire.envelope import Kind, decode

Make = Callable[..., Bench]


@pytest_twisted.async_yield_fixture
async def bench() -> Any:
    """Makes benches, ends them, and sees that no child is left."""
    async for make in benches():
        yield make


@pytest.fixture
def logged() -> Any:
    """The formatted warnings and lines of the logger of servers."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "gateway.server":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


async def failure(awaitable: Awaitable[object]) -> LinkFailed:
    with pytest.raises(LinkFailed) as caught:
        await awaitable
    return caught.value


async def gone(pid: int) -> None:
    """Wait until a process is gone: of one that is no child of ours, nobody tells."""
    for _ in range(500):
        if not alive(pid):
            return
        await deferLater(reactor, 0.01)
    raise AssertionError(f"{pid} is still there")


# the handshake


@pytest_twisted.ensureDeferred
async def test_a_handshake_and_a_call(bench: Make) -> None:
    one = bench()
    assert IServer.providedBy(one.server)
    assert one.server.health() is Health.UNKNOWN
    link, listener = await one.link()
    assert ILink.providedBy(link)
    assert one.server.health() is Health.UP
    answer = json.loads(link.answer.encode())
    assert answer["result"]["protocolVersion"] == "2025-06-18"
    assert link.send(call(1, "echo", text="hé\u2028"), object(), CONTEXT)
    assert await listener.structured(1) == {"text": "hé\u2028"}
    await link.close()
    assert listener.losses == []
    assert not link.send(call(2, "echo"), object(), CONTEXT)


@pytest_twisted.ensureDeferred
async def test_parameters_travel_as_spelled_on_one_line(bench: Make) -> None:
    one = bench()
    listener = Listener()
    hello = type(HELLO)(b'{"protocolVersion":"2025-06-18",\r\n "capabilities":{"x": 1.50}}')
    link = await one.server.link(hello, listener, CONTEXT)
    link.send(call(1, "seen"), object(), CONTEXT)
    seen = (await listener.structured(1))["messages"][0]
    assert seen["id"] == 0 and seen["params"]["capabilities"] == {"x": 1.5}


@pytest.mark.acceptance(48)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", Reason.BAD_ANSWER),
        ("nonsense", Reason.SERVER_EXITED),
        ("wrong-json", Reason.BAD_ANSWER),
        ("not-object", Reason.BAD_ANSWER),
        ("no-version", Reason.BAD_ANSWER),
        ("fake-id", Reason.BAD_ANSWER),
        ("neither", Reason.BAD_ANSWER),
        ("exit", Reason.SERVER_EXITED),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_bad_handshakes(bench: Make, how: str, reason: Reason) -> None:
    one = bench("--handshake", how)
    failed = await failure(one.link())
    assert failed.reason is reason
    assert one.server.health() is Health.DOWN
    if how == "error":
        assert failed.answer is not None and b"Unsupported" in failed.answer.encode()
    else:
        assert failed.answer is None


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_exit_at_once(bench: Make) -> None:
    failed = await failure(bench("--exit", "3").link())
    assert failed.reason is Reason.SERVER_EXITED


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_no_handshake_times_out(bench: Make) -> None:
    clock = Clock()
    one = bench("--handshake", "silent", clock=clock, handshake_timeout=10.0)
    linking = one.link()
    linking = Deferred.fromCoroutine(linking)
    clock.advance(9.9)
    assert not linking.called
    clock.advance(0.2)
    failed = await failure(linking)
    assert failed.reason is Reason.TIMEOUT
    await ended(one, clock)


async def ended(one: Bench, clock: Clock) -> None:
    """Drain while a Clock has to be moved by hand."""
    draining = one.server.drain()
    while not draining.called:
        clock.advance(0.05)
        await deferLater(reactor, 0.01)
    await draining


@pytest.mark.acceptance(48)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"command": "no-such-command-anywhere"}, "command not found"),
        ({"command": "/no/such/file"}, "command not found"),
        ({"command": FAULTY}, "command not executable"),
        ({"command": "."}, "command not found"),
        ({"command": "sh", "cwd": "/no/such/directory"}, "no working directory"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_what_cannot_be_started(
    bench: Make, settings: dict[str, Any], words: str
) -> None:
    failed = await failure(bench(**{"args": (), **settings}).link())
    assert failed.reason is Reason.UPSTREAM_UNREACHABLE
    assert failed.message == f"the server could not be started: {words}"


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_a_file_that_is_no_program(
    bench: Make, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x00\x01 no program\n")
    program.chmod(0o755)
    failed = await failure(bench(command=str(program), args=()).link())
    assert failed.reason is Reason.UPSTREAM_UNREACHABLE
    assert str(tmp_path) not in failed.message
    assert any("cannot be started" in event.get("line", "") for event in logged)


@pytest_twisted.ensureDeferred
async def test_an_argument_no_program_can_take(bench: Make) -> None:
    failed = await failure(bench(args=("a\0b",)).link())
    assert failed.reason is Reason.UPSTREAM_UNREACHABLE


@pytest.mark.acceptance(60)
@pytest_twisted.ensureDeferred
async def test_acceptance_60_no_descriptors_left(bench: Make) -> None:
    one = bench()
    await (await one.link())[0].close()
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        while True:
            try:
                holes.append(os.dup(2))
            except OSError:
                break
        failed = await failure(one.link())
    finally:
        for hole in holes:
            os.close(hole)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert failed.reason is Reason.OVERLOADED
    link, _ = await one.link()
    await link.close()


@pytest_twisted.ensureDeferred
async def test_a_cancelled_handshake_ends_the_child(bench: Make, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    one = bench("--handshake", "silent", "--noise", "--pids", str(pids))
    linking = one.server.link(HELLO, Listener(), CONTEXT)
    while not pids.exists() or not pids.read_text().endswith("\n"):
        await deferLater(reactor, 0.01)
    linking.cancel()
    with pytest.raises(CancelledError):
        await linking
    await gone(int(pids.read_text()))


@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_answer_waits(bench: Make) -> None:
    one = bench("--chatty")
    link, listener = await one.link()
    await listener.until(lambda: len(listener.messages) == 2)
    assert [message.method for message in listener.messages] == [
        "notifications/message",
        "roots/list",
    ]
    link.send(call(1, "seen"), object(), CONTEXT)
    seen = (await listener.structured(1))["messages"]
    assert seen[1] == {"jsonrpc": "2.0", "id": "early-ping", "result": {}}


@pytest_twisted.ensureDeferred
async def test_what_comes_before_the_answer_is_bounded(bench: Make) -> None:
    one = bench("--chatty", limits=Limits(eof_wait=0.2, term_wait=0.2, max_queued_messages=1))
    link, listener = await one.link()
    link.send(call(1, "seen"), object(), CONTEXT)
    seen = (await listener.structured(1))["messages"]
    assert next(m for m in seen if m.get("id") == "early")["error"]["code"] == -32603
    assert BoundReached("max_queued_messages", "faulty") in one.observed.events


# what it runs in


@pytest.mark.acceptance(63)
@pytest_twisted.ensureDeferred
async def test_acceptance_63_descriptors_and_environment(bench: Make) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/tmp",
        "LC_TIME": "C",
        "SECRET_TOKEN": "canary",
        "LD_PRELOAD_X": "canary",
        "TERM": "() { :; }",
    }
    extra = os.dup(2)
    os.set_inheritable(extra, True)
    one = bench(env={"CONFIGURED": "yes", "HOME": "/"}, environ=environ)
    link, listener = await one.link()
    os.close(extra)
    link.send(call(1, "self"), object(), CONTEXT)
    seen = await listener.structured(1)
    assert seen["fds"] == [0, 1, 2]
    # (Python, which the scripted server is, adds LC_CTYPE to its own environ, not to this.)
    assert seen["env"] == {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "LC_TIME": "C",
        "CONFIGURED": "yes",
    }
    assert seen["pgid"] == seen["sid"] == seen["pid"]


def test_acceptance_63_the_allow_list() -> None:
    """Acceptance 63: names that are not allowed do not pass, whatever their value."""
    env = childEnvironment(
        {"LC_ALL": "C", "AWS_SECRET": "x", "USER": "u", "PYTHONPATH": "/x"}, {"A": "b"}
    )
    assert env == {"LC_ALL": "C", "USER": "u", "A": "b"}


@pytest_twisted.ensureDeferred
async def test_no_signal_is_ignored(bench: Make, tmp_path: Path) -> None:
    out = tmp_path / "status"
    one = bench(command="sh", args=("-c", 'cat /proc/$$/status > "$0"', str(out)))
    await failure(one.link())
    ignored = int(out.read_text().partition("SigIgn:")[2].split()[0], 16)
    # (Above 31 are two of the C library's own, which posix_spawn leaves ignored.)
    assert ignored & 0x7FFFFFFF == 0


@pytest.mark.acceptance(104)
@pytest_twisted.ensureDeferred
async def test_acceptance_104_nothing_of_a_request_shapes_the_process(
    bench: Make, tmp_path: Path
) -> None:
    canary = "$(touch canary) `id` ; --flag ../x"
    one = bench(args=(FAULTY, "--name", "a b; $HOME `id`"), cwd=str(tmp_path))
    listener = Listener()
    hello = type(HELLO)(
        json.dumps({"protocolVersion": "2025-06-18", "clientInfo": {"name": canary}}).encode()
    )
    context = type(CONTEXT)(canary, headers=((b"x-env", canary.encode()),), peer=canary)
    link = await one.server.link(hello, listener, context)
    assert json.loads(link.answer.encode())["result"]["serverInfo"]["name"] == "a b; $HOME `id`"
    link.send(call(1, "self", env=canary, cwd=canary), object(), context)
    seen = await listener.structured(1)
    assert seen["argv"] == [sys.executable, FAULTY, "--name", "a b; $HOME `id`"]
    assert seen["cwd"] == str(tmp_path)
    assert "canary" not in json.dumps(seen)
    assert os.listdir(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_a_relative_command_is_looked_up_where_the_child_runs(
    bench: Make, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAULTY} "$@"\n')
    program.chmod(0o755)
    (await bench(command="./bin/server", args=(), cwd=str(tmp_path)).link())
    (await bench(command="server", args=(), cwd=str(tmp_path), env={"PATH": "bin:/bin"}).link())


@pytest_twisted.ensureDeferred
async def test_each_link_has_a_child_of_its_own(bench: Make) -> None:
    one = bench()
    pairs = [await one.link() for _ in range(3)]
    pids = set()
    for link, listener in pairs:
        link.send(call(1, "self"), object(), CONTEXT)
        pids.add((await listener.structured(1))["pid"])
    assert len(pids) == 3
    await one.server.drain()
    assert not any(alive(pid) for pid in pids)
    assert [listener.losses for _, listener in pairs] == [[], [], []]
    assert (await failure(one.link())).reason is Reason.SHUTTING_DOWN


# what it says


@pytest.mark.acceptance(53)
@pytest_twisted.ensureDeferred
async def test_acceptance_53_noise_disturbs_nothing(
    bench: Make, logged: list[dict[str, Any]]
) -> None:
    one = bench("--noise")
    link, listener = await one.link()
    link.send(call(1, "hang"), object(), CONTEXT)
    link.send(call(2, "noise", count=700), object(), CONTEXT)
    link.send(call(3, "noise_kinds"), object(), CONTEXT)
    kinds = (await listener.structured(3))["count"]
    assert [message.id for message in listener.messages] == [b"2", b"3"]
    assert listener.settlements == []
    assert len(one.observed.of(NoiseSkipped)) == (700 + 3) * kinds
    warnings = [event for event in logged if event["log_level"].name == "warn"]
    assert len(warnings) == 1


@pytest.mark.acceptance(54)
@pytest_twisted.ensureDeferred
async def test_acceptance_54_an_answer_in_pieces(bench: Make) -> None:
    link, listener = await bench().link()
    for id, size in enumerate((1, 2, 7, 8191, 8192, 8193), 1):
        link.send(call(id, "pieces", size=size, pad="é" * 4000), object(), CONTEXT)
        assert (await listener.structured(id))["pad"] == "é" * 4000


@pytest.mark.acceptance(57)
@pytest_twisted.ensureDeferred
async def test_acceptance_57_odd_answers_come_as_they_are(bench: Make) -> None:
    """The relay judges ids; the link hands up everything that is a message."""
    link, listener = await bench().link()
    link.send(call(1, "double"), object(), CONTEXT)
    link.send(call(2, "unknown"), object(), CONTEXT)
    late = object()
    link.send(call(3, "after_cancel"), late, CONTEXT)
    link.cancel(late)
    cancelled = decode(
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}'
    )
    link.send(cancelled, None, CONTEXT)
    link.send(call(4, "ask", method="ping"), object(), CONTEXT)
    await listener.until(lambda: any(m.method == "ping" for m in listener.messages))
    asked = next(m for m in listener.messages if m.kind is Kind.REQUEST)
    link.send(decode(b'{"jsonrpc":"2.0","id":%s,"result":{}}' % asked.id), None, CONTEXT)
    await listener.answer(4)
    ids = [m.id for m in listener.messages]
    assert ids == [b"1", b"1", b"987654321", b'"no-such"', b"2", b"3", asked.id, b"4"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"roots/list","params":null}',
        b'{"jsonrpc":"2.0","id":1,"method":"roots/list","params":{"a":NaN}}',
        b'{"jsonrpc":"1.0","id":1,"method":"roots/list"}',
        b'[{"jsonrpc":"2.0","id":1,"method":"roots/list","params":null}]',
    ],
)
def test_what_the_server_asks_and_is_no_message_is_no_answer(line: bytes) -> None:
    """Its ids are its own, and the same as ours more often than not."""
    spoilt: list[bytes] = []

    class Hearer:
        def messageReceived(self, message: object) -> None:
            raise AssertionError("it is no message")

        def answerSpoilt(self, id: bytes) -> None:
            spoilt.append(id)

        def lineTooLong(self) -> None:
            raise AssertionError("it is short")

    log = ServerLog("faulty", Limits(), Clock(), Observed())
    Stdout(Hearer(), log, 4096).feed(line + b"\n")
    assert spoilt == []


@pytest_twisted.ensureDeferred
async def test_a_batch_is_split(bench: Make) -> None:
    link, listener = await bench().link()
    link.send(call(1, "batch", a=1), object(), CONTEXT)
    assert await listener.structured(1) == {"a": 1}
    assert [m.method for m in listener.messages] == ["notifications/test", ""]


@pytest.mark.parametrize("how", ["json", "utf8", "both", "twice"])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_breaks_a_rule_fails_its_call(bench: Make, how: str) -> None:
    link, listener = await bench().link()
    first, second = object(), object()
    link.send(call(1, "hang"), first, CONTEXT)
    link.send(call(2, "bad_answer", how=how), second, CONTEXT)
    await listener.until(lambda: bool(listener.settlements))
    [(failed, settled)] = listener.settlements
    assert failed is second
    assert (settled.outcome, settled.reason) == (Outcome.MAYBE_RAN, Reason.BAD_ANSWER)
    link.send(call(3, "echo"), object(), CONTEXT)
    await listener.answer(3)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_is_not_settled(bench: Make) -> None:
    link, listener = await bench().link()
    first = object()
    link.send(call(1, "bad_answer"), first, CONTEXT)
    link.cancel(first)
    link.cancel(first)
    link.send(call(2, "echo"), object(), CONTEXT)
    await listener.answer(2)
    assert listener.settlements == []


@pytest_twisted.ensureDeferred
async def test_a_listener_that_raises_does_not_end_the_link(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, listener = await bench().link()
    heard = listener.received
    logged: list[dict[str, Any]] = []

    def received(message: Any, origin: Any, mark: Any = None) -> None:
        if message.id == b"1":
            raise ValueError("on purpose")
        heard(message, origin, mark)

    monkeypatch.setattr("gateway.links.stdio._log", Logger(observer=logged.append))
    monkeypatch.setattr(listener, "received", received)
    link.send(call(1, "echo"), object(), CONTEXT)
    link.send(call(2, "echo"), object(), CONTEXT)
    await listener.answer(2)
    assert [event["log_failure"].type for event in logged] == [ValueError]


@pytest.mark.acceptance(51)
@pytest.mark.parametrize(("limit", "size"), [(100_000, 10_000_000), (16 * 1024 * 1024, 40_000_000)])
@pytest_twisted.ensureDeferred
async def test_acceptance_51_a_line_without_end(bench: Make, limit: int, size: int) -> None:
    one = bench(limits=Limits(eof_wait=0.2, term_wait=0.2, max_line=limit))
    link, listener = await one.link()
    link.send(call(1, "self"), object(), CONTEXT)
    pid = (await listener.structured(1))["pid"]
    link.send(call(2, "hang"), object(), CONTEXT)
    before = highWater()
    link.send(call(3, "flood", bytes=size), object(), CONTEXT)
    assert await listener.loss() == (Reason.BAD_ANSWER, "the server wrote a line over the limit")
    assert highWater() - before <= 32 * 1024
    assert BoundReached("max_line", "faulty") in one.observed.events
    await link.close()
    assert not alive(pid)
    assert len(listener.losses) == 1


def highWater() -> int:
    """The most memory this process ever had resident, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


@pytest.mark.acceptance(55)
@pytest_twisted.ensureDeferred
async def test_acceptance_55_a_long_line_passes(bench: Make) -> None:
    link, listener = await bench().link()
    link.send(call(1, "long", bytes=10_000_000), object(), CONTEXT)
    assert len((await listener.answer(1)).encode()) > 10_000_000


@pytest.mark.acceptance(56)
@pytest_twisted.ensureDeferred
async def test_acceptance_56_stderr_is_drained_and_bounded(
    bench: Make, logged: list[dict[str, Any]]
) -> None:
    clock = Clock()
    limits = Limits(eof_wait=0.2, term_wait=0.2, max_stderr_rate=100_000)
    one = bench(limits=limits, clock=clock)
    link, listener = await one.link()
    link.send(call(1, "stderr", bytes=5_000_000), object(), CONTEXT)
    await listener.answer(1)
    # Its last bytes may come after the answer; another call brings the reactor past them.
    link.send(call(2, "echo"), object(), CONTEXT)
    await listener.answer(2)
    lines = [event["line"] for event in logged if "line" in event]
    assert lines[0].startswith("warning: \\x1b[31msomething")
    assert 0 < sum(len(line) for line in lines) <= 120_000
    assert one.observed.of(BoundReached) == [BoundReached("max_stderr_rate", "faulty")]
    logged.clear()
    clock.advance(61)
    link.send(call(3, "stderr", bytes=100), object(), CONTEXT)
    await listener.answer(3)
    while not any("not logged" in event["log_format"] for event in logged):
        await deferLater(reactor, 0.01)
    await ended(one, clock)


@pytest.mark.acceptance(56)
@pytest.mark.parametrize("line", [b"\0" * 1_000 + b"\n", b"x\n", b"\n", b"\xff" * 9 + b"\n"])
def test_acceptance_56_stderr_is_bounded_as_it_is_logged(
    line: bytes, logged: list[dict[str, Any]]
) -> None:
    """Neither what escapes make of it nor the heads of many short lines fill a disk."""
    log = ServerLog("faulty", Limits(max_stderr_rate=100_000), Clock(), Observed())
    lines = log.stderr()
    for _ in range(1_000):
        lines.feed(line * 10)
    head = len("2026-11-25T23:59:59+0000 [gateway.server#info] faulty: \n")
    texts = [event["line"] for event in logged if "line" in event]
    assert sum(len(text) + head for text in texts) <= 150_000


@pytest_twisted.ensureDeferred
async def test_last_words_on_stderr_are_logged(bench: Make, logged: list[dict[str, Any]]) -> None:
    script = "import sys; sys.stderr.write('x' * 5000 + '\\nTraceback: no newline'); sys.exit(3)"
    await failure(bench(args=("-c", script)).link())
    lines = [event["line"] for event in logged if "line" in event]
    assert lines == ["x" * 2048 + "...", "Traceback: no newline"]


# stdin and stdout under pressure


@pytest.mark.acceptance(50)
@pytest_twisted.ensureDeferred
async def test_acceptance_50_a_child_that_stops_reading(bench: Make) -> None:
    one = bench()
    link, listener = await one.link()
    link.send(call(1, "deaf"), object(), CONTEXT)
    await listener.answer(1)
    taken = 0
    while link.send(call(taken + 2, "echo", pad="x" * 1000), object(), CONTEXT):
        taken += 1
        await deferLater(reactor, 0) if taken % 50 == 0 else None
    # A pipe of 64 KiB and a queue of 256 messages.
    assert 256 <= taken <= 256 + 64
    assert BoundReached("max_stdin_messages", "faulty") in one.observed.events
    assert not link.send(request(9999, "ping"), object(), CONTEXT)
    assert listener.losses == []


@pytest.mark.acceptance(50)
@pytest_twisted.ensureDeferred
async def test_acceptance_50_the_queue_is_bounded_in_bytes(bench: Make) -> None:
    one = bench()
    link, listener = await one.link()
    link.send(call(1, "deaf"), object(), CONTEXT)
    await listener.answer(1)
    taken = 0
    while link.send(call(taken + 2, "echo", pad="x" * 100_000), object(), CONTEXT):
        taken += 1
    assert 10 <= taken <= 12
    assert BoundReached("max_stdin_bytes", "faulty") in one.observed.events


@pytest_twisted.ensureDeferred
async def test_a_full_queue_drains_and_nothing_is_lost(bench: Make) -> None:
    link, listener = await bench().link()
    sent = 0
    while link.send(call(sent + 1, "echo", pad="x" * 2000), object(), CONTEXT):
        sent += 1
    await listener.until(lambda: ("drained",) in listener.told)
    assert link.send(call(sent + 1, "echo"), object(), CONTEXT)
    await listener.answer(sent + 1)
    assert [m.id for m in listener.messages] == [b"%d" % id for id in range(1, sent + 2)]


@pytest_twisted.ensureDeferred
async def test_a_message_larger_than_the_queue_passes(bench: Make) -> None:
    link, listener = await bench().link()
    assert link.send(call(1, "echo", pad="x" * 3_000_000), object(), CONTEXT)
    assert len((await listener.structured(1))["pad"]) == 3_000_000


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_large_line_is_kept_only_until_it_is_written(size: int) -> None:
    """A view of its end, empty as it is, would keep all of it until the next large one."""

    class Pipe:
        """Twisted's end of a pipe that is full at first."""

        def __init__(self) -> None:
            self.ours, self.theirs = os.pipe()
            os.set_blocking(self.theirs, False)
            self.writes: list[int] = []

        def fileno(self) -> int:
            return self.theirs

        def registerProducer(self, producer: object, streaming: bool) -> None:
            assert not streaming

        def write(self, data: bytes) -> None:
            self.writes.append(len(data))

    pipe = Pipe()
    stdin = Stdin(Limits(), lambda: None)
    stdin.opened(pipe)
    line = bytes(size)
    held = sys.getrefcount(line)
    assert stdin.write(line)
    for _ in range(size // 65_536 + 1):
        stdin.resumeProducing()
    assert sum(pipe.writes) + 65_536 == size
    assert sys.getrefcount(line) == held
    os.close(pipe.ours)
    os.close(pipe.theirs)


@pytest_twisted.ensureDeferred
async def test_a_held_link_reads_stderr_but_not_stdout(
    bench: Make, logged: list[dict[str, Any]]
) -> None:
    link, listener = await bench().link()
    link.hold(None)
    link.send(call(1, "stderr", bytes=500_000), object(), CONTEXT)
    while sum(len(event.get("line", "")) for event in logged) < 400_000:
        await deferLater(reactor, 0.01)
    assert listener.told == []
    link.hold(object())
    link.release(object())
    link.release(None)
    await listener.answer(1)


async def turnsFor(link: ILink, listener: Listener, verb: str, size: int, **more: object) -> int:
    """In how many turns of the reactor an answer is heard that is all in the pipe."""
    link.send(call(1, "self"), object(), CONTEXT)
    pid = (await listener.structured(1))["pid"]
    link.hold(None)
    link.send(call(2, verb, **more), object(), CONTEXT)
    pipe = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"    "), sys.byteorder) < size:
        await deferLater(reactor, 0.01)
    os.close(pipe)
    link.release(None)
    turns = 0
    while not listener.answers(2):
        await deferLater(reactor, 0)
        turns += 1
    return turns


@pytest_twisted.ensureDeferred
async def test_a_long_line_does_not_wait_a_turn_for_every_piece(bench: Make) -> None:
    assert await turnsFor(*await bench().link(), "long", 60_000, bytes=60_000) <= 3


@pytest_twisted.ensureDeferred
async def test_many_short_lines_leave_turns_to_others(bench: Make) -> None:
    assert await turnsFor(*await bench().link(), "log", 40_000, count=500) >= 5


@pytest_twisted.ensureDeferred
async def test_a_held_link_still_sees_the_exit_and_the_last_words(bench: Make) -> None:
    link, listener = await bench().link()
    link.hold(None)
    link.send(call(1, "last_words"), object(), CONTEXT)
    await listener.loss()
    assert [what[0] for what in listener.told] == ["received", "lost"]


# its end


@pytest.mark.acceptance(46)
@pytest_twisted.ensureDeferred
async def test_acceptance_46_a_crash_with_fifty_pending(bench: Make) -> None:
    one = bench()
    other = await one.link()
    link, listener = await one.link()
    for id in range(1, 51):
        link.send(call(id, "crash_at", pending=50), object(), CONTEXT)
    assert await listener.loss() == (Reason.SERVER_EXITED, "the server exited")
    assert listener.told == [("lost", Reason.SERVER_EXITED, "the server exited")]
    # Whoever asked for the links tells the observer of them.
    assert one.observed.of(LinkOpened) == one.observed.of(LinkLost) == []
    await link.close()
    other[0].send(call(1, "echo"), object(), CONTEXT)
    await other[1].answer(1)
    again, listener = await one.link()
    again.send(call(1, "echo"), object(), CONTEXT)
    await listener.answer(1)


@pytest_twisted.ensureDeferred
async def test_an_answer_written_right_before_the_exit_is_heard(bench: Make) -> None:
    one = bench()
    for _ in range(5):
        link, listener = await one.link()
        link.send(call(1, "last_words", pad="x" * 20_000), object(), CONTEXT)
        await listener.loss()
        assert [what[0] for what in listener.told] == ["received", "lost"]


@pytest.mark.acceptance(61)
@pytest_twisted.ensureDeferred
async def test_acceptance_61_exit_while_a_grandchild_holds_stdout(
    bench: Make, tmp_path: Path
) -> None:
    """The clock stands still: the loss waits for nothing but the exit."""
    pids = tmp_path / "pids"
    clock = Clock()
    one = bench("--pids", str(pids), clock=clock)
    link, listener = await one.link()
    link.send(call(1, "orphan"), object(), CONTEXT)
    await listener.loss()
    await gone(int(pids.read_text().split()[1]))
    await ended(one, clock)


@pytest.mark.parametrize("verb", ["close_stdin", "close_stdout"])
@pytest_twisted.ensureDeferred
async def test_a_child_that_closes_a_pipe_is_ended(bench: Make, verb: str) -> None:
    link, listener = await bench().link()
    link.send(call(1, verb), object(), CONTEXT)
    await listener.loss()
    assert [what[0] for what in listener.told] == ["received", "lost"]


@pytest.mark.acceptance(58)
@pytest_twisted.ensureDeferred
async def test_acceptance_58_stubborn_with_grandchildren(bench: Make, tmp_path: Path) -> None:
    """EOF, `eof_wait`, TERM, `term_wait`, KILL to the group; none left, no zombie."""
    pids = tmp_path / "pids"
    clock = Clock()
    one = bench(*("--stubborn", "--grandchild", "--pids", str(pids)), limits=Limits(), clock=clock)
    link, listener = await one.link()
    child, grandchild = map(int, pids.read_text().split())
    closing = link.close()
    again = link.close()
    clock.advance(1.9)
    clock.advance(0.2)
    assert BoundReached("eof_wait", one.server.name) in one.observed.events
    clock.advance(4.7)
    assert alive(child) and alive(grandchild)
    assert BoundReached("term_wait", one.server.name) not in one.observed.events
    clock.advance(0.3)
    assert BoundReached("term_wait", one.server.name) in one.observed.events
    await gone(child)
    await gone(grandchild)
    while not (closing.called and again.called):
        clock.advance(0.01)
        await deferLater(reactor, 0.01)
    assert listener.told == []
    assert str(child) not in children()
    await link.close()


@pytest.mark.acceptance(58)
@pytest_twisted.ensureDeferred
async def test_acceptance_58_polite_child_leaves_a_rude_grandchild(
    bench: Make, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    link, _ = await bench("--grandchild", "--pids", str(pids)).link()
    await gatherResults([link.close(), link.close()])
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


@pytest_twisted.ensureDeferred
async def test_closing_while_stdin_is_blocked(bench: Make) -> None:
    link, listener = await bench("--stubborn").link()
    link.send(call(1, "deaf"), object(), CONTEXT)
    await listener.answer(1)
    link.send(call(2, "echo", pad="x" * 500_000), object(), CONTEXT)
    await link.close()


@pytest_twisted.ensureDeferred
async def test_closing_a_held_child_that_still_writes(bench: Make) -> None:
    link, _ = await bench().link()
    link.hold(None)
    link.send(call(1, "long", bytes=1_000_000), object(), CONTEXT)
    await link.close()


@pytest_twisted.ensureDeferred
async def test_a_close_can_be_given_up(bench: Make) -> None:
    link, _ = await bench().link()
    closing = link.close()
    closing.addErrback(lambda failure: failure.trap(CancelledError))
    closing.cancel()
    await link.close()


@pytest.mark.acceptance(59)
@pytest_twisted.ensureDeferred
async def test_acceptance_59_cycles_leave_nothing(bench: Make) -> None:
    """A few cycles here; the thousand run in the soak."""
    one = bench()
    await (await one.link())[0].close()
    before = len(os.listdir("/proc/self/fd"))
    for cycle in range(6):
        link, listener = await one.link()
        if cycle % 2:
            link.send(call(1, "exit"), object(), CONTEXT)
            await listener.loss()
        await link.close()
    assert len(os.listdir("/proc/self/fd")) == before


# the gateway's end


HOST = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from stdio_support import Bench
from gateway.guard.limits import Limits
bench = Bench("--stubborn", "--grandchild", "--pids", sys.argv[1], limits=Limits())
async def main():
    await bench.link()
    print("ready", flush=True)
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
reactor.run()
"""


def killedHost(pids: Path) -> list[int]:
    """Run a gateway with a stubborn child, SIGKILL it. Returns every process it had."""
    tests = Path(__file__).parent
    source = HOST.format(root=str(tests.parent), tests=str(tests))
    argv = [sys.executable, "-c", source, str(pids)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"ready\n"
        had = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
        host.send_signal(signal.SIGKILL)
    return [int(pid) for pid in {*had, *pids.read_text().split()}]


@pytest.mark.acceptance(62)
@pytest_twisted.ensureDeferred
async def test_acceptance_62_nothing_outlives_a_killed_gateway(tmp_path: Path) -> None:
    left = killedHost(tmp_path / "pids")
    assert len(left) == 3  # the child, the grandchild, the reaper
    for pid in left:
        await gone(pid)


@pytest_twisted.ensureDeferred
async def test_a_reaper_that_dies_is_replaced(bench: Make) -> None:
    before = set(children())
    one = bench()
    link, listener = await one.link()
    link.send(call(1, "self"), object(), CONTEXT)
    child = str((await listener.structured(1))["pid"])
    [first] = set(children()) - before - {child}
    os.kill(int(first), signal.SIGKILL)
    while not (new := set(children()) - before - {child, first}) or first in children():
        await deferLater(reactor, 0.01)
    assert len(new) == 1
    await link.close()


@pytest_twisted.ensureDeferred
async def test_a_reaper_never_started_closes(bench: Make) -> None:
    reaper = Reaper(reactor)
    await reaper.close()
    await reaper.close()


def test_a_launcher_whose_gateway_died_starts_nothing() -> None:
    launcher = Path(__file__).parent.parent / "gateway" / "links" / "launcher.py"
    argv = [sys.executable, "-I", "-S", str(launcher), "1", "keep", "", "/bin/echo", "echo", "x"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (126, b"")


@pytest_twisted.ensureDeferred
async def test_a_child_that_ends_by_itself_outlived_nothing(bench: Make) -> None:
    one = bench()
    link, _ = await one.link()
    await link.close()
    assert one.observed.of(BoundReached) == []


class Deaf:
    """A child's owner that does not listen."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest_twisted.ensureDeferred
async def test_a_child_that_is_ended_reads_the_line_it_has_begun_to_the_end(
    tmp_path: Path,
) -> None:
    reaper, out = Reaper(reactor), tmp_path / "read"
    child = Child(Deaf(), Limits(), reactor, reactor, reaper)  # type: ignore[arg-type]
    script = (
        "import sys, time; time.sleep(0.3); read = sys.stdin.buffer.read(); "
        f"open({str(out)!r}, 'w').write(f'{{len(read)}} {{read[-3:]}}')"
    )
    argv = (sys.executable, "-I", "-S", "-c", script)
    child.spawn(Program(sys.executable, argv, dict(os.environ)))
    assert child.stdin.write(b"x" * 999_999 + b"\n")
    await child.end()
    assert out.read_text() == r"1000000 b'xx\n'"
    await reaper.close()
