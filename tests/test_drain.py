"""The end of a gateway: what finishes, what is told, and what a restart costs."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from listening import Front, request
from live import faulty, startLive
from modern_support import LISTENING, ModernServer, answerOf, enveloped, posted
from processes import ROOT, Process, start
from raw import RawClient, hello, rpc
from stdio_support import Observed, alive
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached
from gateway.service import State
from gateway.testing import MemoryGateway, ScriptedServer
from gateway.testing.scripted import RESULT

CALL = "tools/call"
SCRIPT = [sys.executable, "-m", "gateway.tap"]
TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "mcp-gateway"]
FAULTY = str(ROOT / "tests" / "faulty_server.py")


# In memory.


@pytest.mark.acceptance(108)
@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
def test_acceptance_108_calls_that_fit_are_answered_and_streams_say_when_to_come_again(
    revision: str,
) -> None:
    result = RESULT.replace(b"2025-06-18", revision.encode())
    one, observed = ScriptedServer("one", result=result), Observed()
    gateway = MemoryGateway([one], Limits(drain_grace=5.0), {"observer": observed})
    client = gateway.client("one")
    client.initialize(revision)
    stream = client.get()
    link = one.newest
    fits, not_ = (client.post(client.request(id, CALL)) for id in (5, 6))
    stopped = gateway.stop()
    # A host's Site hears until the end: who is alive, and not ready; and what belongs to calls.
    probe = gateway.client("one")
    for path, status in (("/mcp/healthz", 200), ("/mcp/readyz", 503)):
        probe.path = path
        assert probe.send("GET").status == status
    assert client.post({"jsonrpc": "2.0", "method": "notifications/x"}).status == 202
    assert gateway.client("one").initialize().status == 503
    late = client.post(client.request(7, CALL))
    assert answerOf(late)["error"]["data"]["reason"] == "shutting_down"
    first, _ = link.of(CALL)
    link.reply(first, b'{"is":1}')
    assert answerOf(fits)["result"] == {"is": 1}
    gateway.clock.pump([0.1] * 48)
    assert not stream.ended and not stopped.called
    gateway.clock.pump([0.1] * 4)
    told = answerOf(not_)
    assert (told["id"], told["error"]["data"]["reason"]) == (6, "shutting_down")
    assert stream.ended and stream.body.endswith(b"retry: 5000\n\n")
    assert stopped.called and one.drained
    assert BoundReached("drain_grace") in observed.events
    assert not gateway.clock.getDelayedCalls()


def test_a_handshake_that_runs_is_waited_for() -> None:
    one = ScriptedServer("one")
    one.handshakeHeld = True
    gateway = MemoryGateway([one])
    opening = gateway.client("one").initialize()
    stopped = gateway.stop()
    gateway.advance(1)
    assert not stopped.called
    one.finishHandshake()
    assert opening.status == 200 and "result" in opening.json()
    gateway.advance(1)
    assert stopped.called


@pytest.mark.acceptance(108)
def test_acceptance_108_modern_calls_finish_and_listening_ends_with_its_answer() -> None:
    one = ModernServer("one", era="modern")
    gateway = MemoryGateway([one], Limits(drain_grace=5.0))
    post = partial(posted, gateway)
    fits = post(enveloped(CALL, 5, name="echo"))
    hangs = post(enveloped(CALL, 6, name="echo"))
    listening = post(enveloped("subscriptions/listen", 7, **LISTENING))
    gateway.advance(0.5)
    stopped = gateway.stop()
    late = post(enveloped(CALL, 8, name="echo"))
    assert (late.status, late.json()["error"]["data"]["reason"]) == (503, "shutting_down")
    link = one.newest
    link.reply(link.of(CALL)[0], b'{"resultType":"complete","is":1}')
    assert fits.json()["result"]["is"] == 1
    gateway.clock.pump([0.1] * 52)
    assert (hangs.status, hangs.json()["error"]["data"]["reason"]) == (503, "shutting_down")
    assert listening.ended and listening.events()[-1]["id"] == 7
    assert stopped.called


@pytest.mark.acceptance(108)
def test_acceptance_108_it_is_not_ready_at_once_and_alive_until_the_end() -> None:
    """Nobody new can ask, for it listens no more; who watches over an open connection can."""
    front = Front(limits=Limits(drain_grace=3.0))
    assert front.service is not None
    watch = front.connect()

    def asked(path: bytes) -> int:
        watch.send(request(b"GET", path))
        return watch.answer(b"GET").status

    assert (asked(b"/healthz"), asked(b"/readyz")) == (200, 200)
    front.ask(post("one", hello()))
    (session,) = front.service.registry
    head = b"Mcp-Session-Id: %b" % session.record.id.encode()
    running = front.ask(post("one", rpc(CALL, 5), head))
    stopped = front.service.stopService()
    assert front.service.state is State.DRAINING
    for _ in range(8):
        assert (asked(b"/healthz"), asked(b"/readyz")) == (200, 503)
        front.pass_(0.25)
    assert not stopped.called and not watch.closed
    front.pass_(3)
    assert running.answer().json["error"]["data"]["reason"] == "shutting_down"
    assert watch.closed
    front.stop()


def test_who_was_accepted_before_the_end_is_served() -> None:
    front = Front()
    assert front.service is not None
    early = front.connect()
    early.wire.stuck = False
    stopped = front.service.stopService()
    front.pass_(0.25)
    early.send(post("one", hello()))
    answer = early.answer()
    assert answer.status == 200 and "result" in answer.json
    assert answer.header(b"connection") == b"close"
    front.pass_(1)
    assert stopped.called
    front.stop()


def test_who_says_nothing_is_waited_for_a_second() -> None:
    front = Front()
    assert front.service is not None
    silent = front.connect()
    stopped = front.service.stopService()
    front.pass_(0.75)
    assert not silent.closed
    front.pass_(3)
    assert silent.closed and stopped.called
    front.stop()


def post(server: str, body: bytes, *lines: bytes) -> bytes:
    path = b"/servers/%b/mcp" % server.encode()
    return request(b"POST", path, body, b"Content-Type: application/json", *lines)


# Real processes.


class Gateway:
    """A gateway as a process, and raw clients of it."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    async def connect(self) -> RawClient:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        return client

    def bytes(self, method: bytes, path: bytes, body: bytes = b"", *lines: bytes) -> bytes:
        head = [b"Host: 127.0.0.1:%d" % self.port, *lines]
        if body:
            head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
        fields = b"".join(b"%b\r\n" % line for line in head)
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, path, fields, body)

    async def ask(self, body: bytes, session: bytes = b"") -> Any:
        """POST on a connection of its own; its answer."""
        client = await self.connect()
        lines = (b"Mcp-Session-Id: %b" % session,) if session else ()
        client.send(self.bytes(b"POST", b"/mcp", body, *lines))
        answer = await client.response()
        client.close()
        return answer

    async def session(self) -> bytes:
        answer = await self.ask(hello())
        (id,) = answer.values(b"mcp-session-id")
        await self.ask(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', id)
        return bytes(id)

    async def call(self, session: bytes, verb: str, id: int = 1, **arguments: Any) -> Any:
        return await self.ask(rpc(CALL, id, name=verb, arguments=arguments), session)


Run = Callable[..., Any]


def configured(path: Path, *servers: str, isolation: str = "session", **gateway: Any) -> None:
    """Write a configuration file, as a whole."""
    names = {
        name: {
            "command": sys.executable,
            "args": [FAULTY],
            "default": index == 0,
            "isolation": isolation,
        }
        for index, name in enumerate(servers)
    }
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"mcpServers": names, "gateway": gateway}))
    new.rename(path)


@pytest_twisted.async_yield_fixture
async def run() -> AsyncIterator[Run]:
    """Starts gateways as processes; none is left."""
    started: list[Process] = []

    async def one(*words: str, command: Sequence[str] = SCRIPT) -> Gateway:
        process = start([*command, "--listen", "tcp:0:interface=127.0.0.1", *words])
        started.append(process)
        found = await process.line(r"http://127\.0\.0\.1:(\d+)/servers/")
        return Gateway(process, int(found[1]))

    yield one
    for process in started:
        process.kill(signal.SIGKILL)
        if not process.ended.called:
            await process.ended


@pytest.mark.acceptance(108)
@pytest_twisted.ensureDeferred
async def test_acceptance_108_sigterm_answers_everybody_and_leaves_nobody(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    configured(file, "one", limits={"drain_grace": 2.0, "eof_wait": 0.5})
    gateway: Gateway = await run("--config", str(file))
    sessions = [await gateway.session() for _ in range(3)]
    pids = [
        (await gateway.call(one, "self")).json["result"]["structuredContent"]["pid"]
        for one in sessions
    ]
    streams = []
    for session in sessions:
        client = await gateway.connect()
        line = b"Mcp-Session-Id: %b" % session
        client.send(gateway.bytes(b"GET", b"/mcp", b"", line, b"Accept: text/event-stream"))
        assert (await client.head()).status == 200
        streams.append(client)
    watch = await gateway.connect()
    calls = []
    for number, seconds in enumerate((0.1, 0.3, 0.6, 1.0, 60.0, 60.0) * 4):
        session = sessions[number % len(sessions)]
        calls.append(ensureDeferred(gateway.call(session, "sleep", number, seconds=seconds)))
    watch.send(gateway.bytes(b"GET", b"/readyz"))
    assert (await watch.response()).status == 200
    while (await gateway.call(sessions[0], "echo", 99)).status != 200:
        pass
    gateway.process.kill()
    status = 200
    while status == 200:
        watch.send(gateway.bytes(b"GET", b"/readyz"))
        status = (await watch.response()).status
    assert status == 503
    with pytest.raises(ConnectError):
        # The kernel may have taken one or two before it hears that nobody listens.
        while True:
            (await gateway.connect()).close()
    watch.send(gateway.bytes(b"GET", b"/healthz"))
    assert (await watch.response()).status == 200
    answers = [answer for _, answer in await DeferredList(calls, fireOnOneErrback=True)]
    assert [answer.json["id"] for answer in answers] == list(range(24))
    for number, answer in enumerate(answers):
        if number % 6 < 4:
            assert "result" in answer.json
        else:
            assert answer.json["error"]["data"]["reason"] == "shutting_down"
    for client in streams:
        await client.ended
        assert b"retry: 5000\n\n" in client.received or b"retry: 5000\n\n" in client._buffer
    assert await gateway.process.ended == 0
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.acceptance(108)
@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest_twisted.ensureDeferred
async def test_acceptance_108_a_second_signal_ends_it_now(run: Run, command: Sequence[str]) -> None:
    gateway: Gateway = await run("--", sys.executable, FAULTY, command=command)
    session = await gateway.session()
    answer = await gateway.call(session, "self")
    pid = answer.json["result"]["structuredContent"]["pid"]
    hanging = ensureDeferred(gateway.call(session, "hang"))
    hanging.addErrback(lambda failure: failure.trap(ConnectionClosed))
    await gateway.call(session, "echo")
    gateway.process.kill()
    await deferLater(reactor, 0.1)
    assert not gateway.process.ended.called
    gateway.process.kill()
    assert await gateway.process.ended == 128 + signal.SIGTERM
    await hanging
    for _ in range(100):
        if not alive(pid):
            break
        await deferLater(reactor, 0.05)
    assert not alive(pid)


@pytest.mark.acceptance(109)
@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest_twisted.ensureDeferred
async def test_acceptance_109_sighup_reads_the_file_again(
    run: Run, command: Sequence[str], tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    configured(file, "one")
    gateway: Gateway = await run("--config", str(file), command=command)
    session = await gateway.session()
    pid = (await gateway.call(session, "self")).json["result"]["structuredContent"]["pid"]
    output = gateway.process

    def said(pattern: str) -> Deferred[Any]:
        output.out = output.err = ""
        return output.line(pattern)

    # Two in a row: what is in force in the end is what stands there in the end.
    configured(file, "one", "two")
    told = said(r"in force: added two")
    gateway.process.kill(signal.SIGHUP)
    gateway.process.kill(signal.SIGHUP)
    await told
    # What cannot be read changes nothing, and every mistake is said.
    file.write_text('{"mcpServers": {"one": {"comand": "x"}, "two": {"url": 5}}}')
    told = said(r"mcpServers\.two\.url")
    gateway.process.kill(signal.SIGHUP)
    await told
    assert "nothing changed" in output.out + output.err
    assert 'did you mean "command"' in output.out + output.err
    again = await gateway.call(session, "self")
    assert again.json["result"]["structuredContent"]["pid"] == pid
    configured(file, "two")
    told = said(r"in force: removed one")
    gateway.process.kill(signal.SIGHUP)
    await told
    assert (await gateway.call(session, "self")).status == 404
    await gateway.session()
    gateway.process.kill(signal.SIGTERM)
    assert await gateway.process.ended == (0 if command is SCRIPT else -signal.SIGTERM)
    assert not alive(pid)


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_watched_is_read_again_by_itself(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    configured(file, "one")
    gateway: Gateway = await run("--config", str(file), "--watch")
    told = gateway.process.line(r"in force: added two")
    configured(file, "one", "two")
    await told


@pytest_twisted.ensureDeferred
async def test_without_a_file_sighup_is_the_end_of_a_terminal(run: Run) -> None:
    gateway: Gateway = await run()
    gateway.process.kill(signal.SIGHUP)
    assert await gateway.process.ended == 0


@pytest_twisted.ensureDeferred
async def test_tls_of_which_nothing_was_loaded_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    configured(file, "one")
    gateway: Gateway = await run("--config", str(file))
    file.write_text('{"mcpServers": {"far": {"url": "https://example.com/mcp"}}}')
    told = gateway.process.line("until the process is started again")
    gateway.process.kill(signal.SIGHUP)
    await told
    await gateway.session()


@pytest.mark.acceptance(109)
@pytest_twisted.ensureDeferred
async def test_acceptance_109_twenty_reloads_under_load_fail_nothing(
    run: Run, tmp_path: Path
) -> None:
    """A slice of it; the soak has ten thousand calls."""
    await reloadedUnderLoad(run, tmp_path, calls=1500)


async def reloadedUnderLoad(run: Run, tmp_path: Path, calls: int) -> None:
    """Clients call all the time while the file changes and twenty signals come."""
    file = tmp_path / "servers.json"
    configured(file, "one")
    gateway: Gateway = await run("--config", str(file))
    started, answered = 0, 0

    async def client() -> None:
        nonlocal started, answered
        session = await gateway.session()
        connection = await gateway.connect()
        line = b"Mcp-Session-Id: %b" % session
        while started < calls:
            started += 1
            body = rpc(CALL, started, name="echo", arguments={"text": str(started)})
            connection.send(gateway.bytes(b"POST", b"/mcp", body, line))
            answer = await connection.response()
            assert "result" in answer.json, answer
            answered += 1
        connection.close()

    running = [ensureDeferred(client()) for _ in range(6)]
    for number in range(20):
        while started < calls * (number + 1) / 22:
            await deferLater(reactor, 0.01)
        configured(file, "one", *(["two"] if number % 2 else []), limits={"max_calls": 99 + number})
        gateway.process.kill(signal.SIGHUP)
    await DeferredList(running, fireOnOneErrback=True, consumeErrors=True)
    assert answered == started >= calls
    assert "nothing changed:" not in gateway.process.out + gateway.process.err


@pytest.mark.acceptance(108, 110)
@pytest_twisted.ensureDeferred
async def test_acceptance_108_who_still_waits_to_be_accepted_is_served() -> None:
    """The kernel has connected them; nobody behind a balancer could tell why they are reset."""
    gateway = await startLive(faulty())
    port = int(gateway.base.rpartition(":")[2])
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    stopped = gateway.service.stopService()
    body = hello()
    lines = b"Host: 127.0.0.1:%d\r\nContent-Type: application/json" % port
    request = b"POST /mcp HTTP/1.1\r\n%b\r\nContent-Length: %d\r\n\r\n%b"
    for early in waiting:
        early.sendall(request % (lines, len(body), body))
    await stopped
    for early in waiting:
        with early:
            answer = b"".join(iter(lambda: early.recv(65536), b""))  # noqa: B023
        # All together they may take longer to start their children than the drain lasts.
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")), answer


# Under systemd's socket activation.

_PARENT = """
import os, socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
os.dup2(listening.fileno(), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="x", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gateway.tap", *sys.argv[2:]])
"""
"""What systemd does between its fork and exec."""


@pytest.mark.acceptance(110)
@pytest_twisted.ensureDeferred
async def test_acceptance_110_a_restart_under_socket_activation_refuses_nobody(
    tmp_path: Path,
) -> None:
    file = tmp_path / "servers.json"
    configured(file, "one", limits={"eof_wait": 0.5})
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(512)
        port = held.getsockname()[1]
        os.set_inheritable(held.fileno(), True)

        async def activated() -> Process:
            words = ["--listen", "systemd:domain=INET:index=0", "--allow-public"]
            argv = [sys.executable, "-c", _PARENT, str(_HANDED), *words, "--config", str(file)]
            process = Process()
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            fds = {0: "w", 1: "r", 2: "r", _HANDED: held.fileno()}
            reactor.spawnProcess(  # type: ignore[attr-defined]
                process, argv[0], argv, env=environ, path=str(ROOT), childFDs=fds
            )
            return process

        process = await activated()
        await process.line("is ready")
        gateway = Gateway(process, port)
        kinds: dict[object, int] = {}
        over = False
        waits: list[tuple[int, Deferred[None]]] = []

        def answered(more: int) -> Deferred[None]:
            """Fires when so many more are answered."""
            waits.append((sum(kinds.values()) + more, Deferred()))
            return waits[-1][1]

        async def client(number: int) -> None:
            body = hello(id=number)
            while not over:
                answer = await gateway.ask(body)
                assert answer.json["id"] == number
                kind = "result" if "result" in answer.json else answer.status
                kinds[kind] = kinds.get(kind, 0) + 1
                while waits and sum(kinds.values()) >= waits[0][0]:
                    waits.pop(0)[1].callback(None)

        def failed(failure: Failure) -> Failure:
            while waits:
                waits.pop()[1].errback(failure)
            return failure

        clients = [ensureDeferred(client(number)).addErrback(failed) for number in range(4)]
        for _ in range(3):
            await answered(8)
            process.kill()
            assert await process.ended == 0
            process = await activated()
            await process.line("is ready")
        await answered(8)
        over = True
        await DeferredList(clients, fireOnOneErrback=True, consumeErrors=True)
        process.kill()
        assert await process.ended == 0
    assert kinds.keys() == {"result"}, kinds


_HANDED = 9


@pytest.mark.acceptance(110)
@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "script"])
@pytest.mark.parametrize("what", ["a port that is taken", "a key", "a mistake", "no file"])
@pytest_twisted.ensureDeferred
async def test_acceptance_110_what_cannot_start_says_so_and_is_gone(
    tmp_path: Path, what: str, daemon: bool
) -> None:
    """In one line, before any child is started, and as a daemon, too."""
    file, started = tmp_path / "servers.json", tmp_path / "started"
    child = {"command": "/bin/sh", "args": ["-c", f"touch {started}; exec cat"], "warm": 1}
    if what == "a mistake":
        child["comand"] = "x"
    if what != "no file":
        file.write_text(json.dumps({"mcpServers": {"one": child}}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pem = "privateKey=/nowhere/key.pem:certKey=/nowhere/cert.pem"
        listen = f"ssl:0:{pem}" if what == "a key" else f"tcp:{port}"
        words = ["--listen", f"{listen}:interface=127.0.0.1", "--config", str(file)]
        files = (f"--pidfile={tmp_path}/pid", f"--logfile={tmp_path}/log")
        command = [TWISTD[0], *files, "mcp-gateway"] if daemon else SCRIPT
        process = start([*command, *words], cwd=str(tmp_path))
        assert await process.ended == 1
    said = [line for line in process.err.splitlines() if "mcp-gateway: " in line]
    assert len(said) == 1, process.err
    wanted = {
        "a port that is taken": f"cannot listen on 127.0.0.1:{port}",
        "a key": "cannot listen",
        "a mistake": "comand",
        "no file": "servers.json",
    }
    assert wanted[what] in process.err
    assert "Traceback" not in process.err
    # Who started the daemon hears of it first; then it ends and takes its file along.
    for _ in range(200):
        if not (tmp_path / "pid").exists():
            break
        await deferLater(reactor, 0.05)
    assert not started.exists() and not (tmp_path / "pid").exists()


@pytest.mark.acceptance(110)
@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest.mark.parametrize(
    "listen",
    [
        "systemd:domain=INET:index=0",
        "ssl:0:privateKey=/nowhere/key.pem:certKey=/nowhere/cert.pem:interface=127.0.0.1",
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_110_what_it_cannot_listen_on_ends_it_in_one_line(
    command: Sequence[str], listen: str
) -> None:
    process = start([*command, "--allow-public", "--listen", listen])
    assert await process.ended == 1
    said = process.err + process.out
    assert said.count("mcp-gateway: cannot listen") == 1
    assert "Traceback" not in said
