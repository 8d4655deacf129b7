"""The session registry, its records and their store."""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from stdio_support import Observed
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, SessionEnded, SessionMissed, SessionOpened
from gateway.sessions import ids
from gateway.sessions.ids import looksLikeSessionID, newSessionID, tagOf
from gateway.sessions.record import SCHEMA, SessionRecord
from gateway.sessions.registry import AtCapacity, Session, SessionRegistry
from gateway.sessions.store import (
    Gone,
    ISessionStore,
    Local,
    MemoryStore,
    Remote,
    StoreRefused,
)
from gateway.wire.context import ANONYMOUS, Principal

OTHER = Principal("https://issuer", "somebody", "gateway")


@implementer(ISessionStore)
@define(eq=False)
class ScriptedStore:
    """Does what a test says. held: whether `put` waits in `pending`."""

    refuses: bool = False
    held: bool = False
    log: list[tuple[str, str]] = field(factory=list)
    pending: list[Deferred[None]] = field(factory=list)

    def put(self, record: SessionRecord) -> Deferred[None]:
        self.log.append(("put", record.id))
        if self.refuses:
            return fail(StoreRefused())
        if self.held:
            self.pending.append(Deferred())
            return self.pending[-1]
        return succeed(None)

    def remove(self, id: str) -> Deferred[None]:
        self.log.append(("remove", id))
        return fail(StoreRefused()) if self.refuses else succeed(None)

    def locate(self, id: str) -> Deferred[Remote | Gone]:
        self.log.append(("locate", id))
        return succeed(Remote("elsewhere"))


@define(eq=False)
class Bench:
    """A registry on a Clock."""

    limits: Limits = field(factory=Limits)
    store: Any = field(factory=MemoryStore)
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    registry: SessionRegistry = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.registry = SessionRegistry(self.clock, self.limits, self.store, self.observed)

    def make(self, principal: Principal = ANONYMOUS, *, opened: bool = True) -> Session:
        session = result(self.registry.create("s", 1, principal, "streamable"))
        assert isinstance(session, Session)
        if opened:
            session.opened(self.clock.seconds())
        return session

    def found(self, session: Session) -> bool:
        record = session.record
        return self.registry.find(record.id, record.server, record.principal) is session

    def step(self, seconds: float) -> None:
        """Let time pass as it does: second by second."""
        whole, rest = divmod(seconds, 1.0)
        self.clock.pump([rest] + [1.0] * int(whole))


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred has come to: its result, or its failure's exception."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (one,) = results
    return one.value if isinstance(one, Failure) else one


# Ids.


@pytest.mark.acceptance(34)
def test_acceptance_34_ids_are_unguessable() -> None:
    """A million ids: none twice, 43 visible characters, each bit 50 % give or take 0.5 %."""
    count = 1_000_000
    made = [newSessionID() for _ in range(count)]
    assert len(set(made)) == count
    whole = "".join(made)
    assert len(whole) == 43 * count
    assert all(looksLikeSessionID(id) for id in made[:10_000])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # Each bit of each of the 42 whole characters; the last has four of them.
    for place in range(42):
        column = whole[place::43]
        counts = [column.count(letter) for letter in alphabet]
        assert sum(counts) == count
        for bit in range(6):
            ones = sum(n for letter, n in enumerate(counts) if letter >> bit & 1)
            assert abs(ones / count - 0.5) < 0.005, (place, bit)


@pytest.mark.acceptance(34)
def test_acceptance_34_only_the_operating_system_makes_them() -> None:
    tree = ast.parse(inspect.getsource(ids))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= {"__future__", "secrets", "os", "re", "hashlib"}
    function = inspect.getsource(newSessionID)
    assert "secrets.token_urlsafe(32)" in function


@given(st.text(max_size=60))
def test_nothing_else_looks_like_one(text: str) -> None:
    ours = len(text) == 43 and text.isascii() and text.replace("-", "a").replace("_", "a").isalnum()
    assert looksLikeSessionID(text) is ours
    assert not looksLikeSessionID(newSessionID() + "\n")


def test_a_tag_stands_for_an_id_and_tells_nothing_of_it() -> None:
    id = newSessionID()
    assert tagOf(id) == tagOf(id) != tagOf(newSessionID())
    assert len(tagOf(id)) == 8 and int(tagOf(id), 16) >= 0


# The record.

texts = st.text(st.characters(codec="utf-8"), max_size=20)
records = st.builds(
    SessionRecord,
    id=texts,
    server=texts,
    generation=st.integers(0, 2**53),
    principal=st.builds(Principal, texts, texts, texts),
    transport=st.sampled_from(["streamable", "sse"]),
    revision=texts,
    initialize=st.binary(max_size=50),
    capabilities=st.binary(max_size=50),
    initialized=st.booleans(),
    log_level=st.binary(max_size=10),
    subscriptions=st.lists(texts, max_size=5),
    upstream=texts,
)


@given(records)
def test_a_record_comes_back_as_it_was_written(record: SessionRecord) -> None:
    written = record.serialize()
    assert json.loads(written)["schema"] == SCHEMA
    assert SessionRecord.deserialize(written) == record


@pytest.mark.acceptance(90)
@given(st.binary(max_size=200))
def test_acceptance_90_garbage_is_no_record(data: bytes) -> None:
    assert SessionRecord.deserialize(data) is None


json_ = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.acceptance(90)
@given(records, st.data())
def test_acceptance_90_a_damaged_record_is_none(record: SessionRecord, data: st.DataObject) -> None:
    members = json.loads(record.serialize())
    name = data.draw(st.sampled_from(sorted(members)))
    if data.draw(st.booleans()):
        del members[name]
        assert SessionRecord.deserialize(json.dumps(members).encode()) is None
    else:
        members[name] = data.draw(json_)
        found = SessionRecord.deserialize(json.dumps(members).encode())
        assert found is None or isinstance(found, SessionRecord)
    cut = data.draw(st.integers(0, len(record.serialize()) - 1))
    assert SessionRecord.deserialize(record.serialize()[:cut]) is None


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"schema":2}', b"\xff", b'"\xff"', b"null"])
def test_hostile_bytes_are_no_record(data: bytes) -> None:
    assert SessionRecord.deserialize(data) is None


@given(records)
def test_a_newer_schema_is_no_record(record: SessionRecord) -> None:
    members = json.loads(record.serialize())
    members["schema"] = SCHEMA + 1
    assert SessionRecord.deserialize(json.dumps(members).encode()) is None


# Create, find, end.


def test_a_session_is_found_by_its_id_server_and_principal_alone() -> None:
    bench = Bench()
    session = bench.make()
    id = session.record.id
    assert looksLikeSessionID(id)
    assert bench.found(session)
    assert bench.registry.find(id, "t", ANONYMOUS) is None
    assert bench.registry.find(id, "s", OTHER) is None
    assert bench.registry.find(newSessionID(), "s", ANONYMOUS) is None
    assert bench.registry.find("", "s", ANONYMOUS) is None
    assert len(bench.registry) == 1 and list(bench.registry) == [session]
    assert bench.observed.events == [SessionOpened("s", session.tag)]
    assert id not in repr(bench.observed.events)
    bench.registry.end(session, "deleted")


def test_the_end_is_told_once_to_everybody() -> None:
    bench = Bench()
    session = bench.make()
    told: list[str] = []
    session.whenEnded(told.append)
    session.whenEnded(told.append)
    assert result(bench.registry.end(session, "deleted")) is None
    assert result(bench.registry.end(session, "idle")) is None
    session.whenEnded(told.append)
    assert told == ["deleted"] * 3
    assert not bench.found(session) and len(bench.registry) == 0
    assert not bench.store.records
    assert bench.observed.of(SessionEnded) == [SessionEnded("s", session.tag, "deleted")]
    assert not bench.clock.getDelayedCalls()
    assert result(bench.registry.changed(session)) is None
    assert not bench.store.records


def test_one_that_breaks_does_not_keep_the_end_from_others(
    expectedFailures: list[dict[str, Any]],
) -> None:
    bench = Bench()
    session = bench.make()
    told: list[str] = []

    def breaks(reason: str) -> None:
        raise ValueError(reason)

    session.whenEnded(breaks)
    session.whenEnded(told.append)
    bench.registry.end(session, "deleted")
    assert told == ["deleted"]


def test_a_changed_record_goes_to_the_store() -> None:
    bench = Bench()
    session = bench.make()
    session.record.revision = "2025-06-18"
    assert result(bench.registry.changed(session)) is None
    written = SessionRecord.deserialize(bench.store.records[session.record.id])
    assert written == session.record
    bench.registry.end(session, "deleted")


# The store.


def test_the_stores_are_what_they_say() -> None:
    assert verifyObject(ISessionStore, MemoryStore())
    assert verifyObject(ISessionStore, ScriptedStore())
    assert result(MemoryStore().locate("x")) == Gone()
    assert result(MemoryStore().remove("x")) is None


def test_a_store_that_refuses_leaves_nothing_behind() -> None:
    bench = Bench(store=ScriptedStore(refuses=True))
    assert isinstance(result(bench.registry.create("s", 1, ANONYMOUS, "sse")), StoreRefused)
    assert len(bench.registry) == 0
    assert not bench.observed.events
    assert not bench.clock.getDelayedCalls()


def test_a_session_is_made_once_the_store_has_it() -> None:
    bench = Bench(Limits(max_sessions=1), store=ScriptedStore(held=True))
    made: list[Session] = []
    bench.registry.create("s", 1, ANONYMOUS, "sse").addCallback(made.append)
    assert not made and not bench.observed.events
    assert isinstance(result(bench.registry.create("s", 1, ANONYMOUS, "sse")), AtCapacity)
    bench.store.pending[0].callback(None)
    (session,) = made
    assert bench.observed.of(SessionOpened)
    bench.registry.end(session, "deleted")


def test_to_cancel_the_making_of_a_session_leaves_nothing_behind() -> None:
    bench = Bench(store=ScriptedStore(held=True))
    making = bench.registry.create("s", 1, ANONYMOUS, "sse")
    making.cancel()
    assert isinstance(result(making), CancelledError)
    assert len(bench.registry) == 0 and not bench.clock.getDelayedCalls()


def test_a_record_that_stays_in_the_store_is_logged(
    expectedFailures: list[dict[str, Any]],
) -> None:
    bench = Bench(store=ScriptedStore())
    session = bench.make()
    bench.store.refuses = True
    assert result(bench.registry.end(session, "deleted")) is None
    assert len(bench.registry) == 0


def test_locate_asks_the_store_for_well_formed_unknown_ids_only() -> None:
    bench = Bench(store=ScriptedStore())
    session = bench.make()
    id, unknown = session.record.id, newSessionID()
    bench.store.log.clear()
    locate = bench.registry.locate
    assert result(locate(id, "s", ANONYMOUS)) == Local()
    assert not bench.observed.of(SessionMissed)
    for missing, server, principal in [
        (id, "t", ANONYMOUS),
        (id, "s", OTHER),
        ("x", "s", ANONYMOUS),
        ("x" * 4096, "s", ANONYMOUS),
        (unknown + "\n", "s", ANONYMOUS),
    ]:
        assert result(locate(missing, server, principal)) == Gone()
    assert bench.store.log == []
    assert result(locate(unknown, "s", ANONYMOUS)) == Remote("elsewhere")
    assert bench.store.log == [("locate", unknown)]
    assert len(bench.observed.of(SessionMissed)) == 6
    bench.registry.end(session, "deleted")


# Caps.


@pytest.mark.acceptance(41)
def test_acceptance_41_sessions_are_capped_and_a_freed_slot_is_usable_at_once() -> None:
    bench = Bench(Limits(max_sessions=3, max_sessions_per_principal=2))
    first, second = bench.make(), bench.make()
    assert isinstance(result(bench.registry.create("s", 1, ANONYMOUS, "sse")), AtCapacity)
    assert bench.observed.of(BoundReached) == [BoundReached("max_sessions_per_principal")]
    third = bench.make(OTHER)
    assert isinstance(result(bench.registry.create("s", 1, OTHER, "sse")), AtCapacity)
    assert bench.observed.of(BoundReached)[-1] == BoundReached("max_sessions")
    assert all(bench.found(session) for session in (first, second, third))
    bench.registry.end(first, "deleted")
    assert bench.registry.hasRoom(ANONYMOUS)
    fourth = bench.make()
    for session in (second, third, fourth):
        bench.registry.end(session, "deleted")
    assert bench.registry.hasRoom(OTHER) and not len(bench.registry.load)


@pytest.mark.acceptance(44)
def test_acceptance_44_nothing_is_left_of_many_sessions() -> None:
    bench = Bench()
    for _ in range(3):
        made = [bench.make() for _ in range(1000)]
        assert len(bench.clock.getDelayedCalls()) == 1
        for session in made:
            bench.registry.end(session, "deleted")
        assert len(bench.registry) == 0 and not bench.store.records
        assert not bench.clock.getDelayedCalls()


# Deadlines.


def ended(bench: Bench, session: Session, reason: str) -> bool:
    """Whether the sweep ended a session for this reason."""
    limit = BoundReached("session_" + reason, "s")
    event = SessionEnded("s", session.tag, reason)
    return limit in bench.observed.events and event in bench.observed.events


@pytest.mark.acceptance(40)
def test_acceptance_40_a_session_never_used_is_over_after_a_minute() -> None:
    bench = Bench()
    session, used = bench.make(), bench.make()
    bench.step(59.5)
    assert bench.found(session)
    used.use(bench.clock.seconds())
    bench.clock.rightNow += 0.5
    assert not bench.found(session), "nobody waits for the sweep"
    bench.step(1.0)
    assert ended(bench, session, "unused")
    assert bench.found(used)
    bench.registry.end(used, "deleted")


@pytest.mark.acceptance(40)
def test_acceptance_40_an_idle_session_is_over_after_half_an_hour() -> None:
    bench = Bench()
    session = bench.make()
    session.use(0.0)
    for _ in range(3):
        bench.step(1799.0)
        assert bench.found(session)
        session.use(bench.clock.seconds())
    bench.step(1799.5)
    assert bench.found(session)
    bench.step(1.5)
    assert ended(bench, session, "idle") and not bench.found(session)


@pytest.mark.acceptance(40)
@pytest.mark.parametrize("holder", ["stream", "call"])
def test_acceptance_40_an_open_stream_or_a_running_call_is_use(holder: str) -> None:
    bench = Bench()
    session = bench.make()
    begin, finish = (
        (session.streamOpened, session.streamClosed)
        if holder == "stream"
        else (session.callStarted, session.callEnded)
    )
    begin(bench.clock.seconds())
    begin(bench.clock.seconds())
    finish(bench.clock.seconds())
    bench.step(5000.0)
    assert bench.found(session)
    finish(bench.clock.seconds())
    bench.step(1799.0)
    assert bench.found(session)
    bench.step(2.0)
    assert ended(bench, session, "idle")


@pytest.mark.acceptance(40)
def test_acceptance_40_after_a_day_running_calls_finish_first() -> None:
    bench = Bench(Limits(session_absolute=100.0, session_idle=1000.0))
    session, streaming = bench.make(), bench.make()
    streaming.streamOpened(0.0)
    session.callStarted(90.0)
    bench.step(101.0)
    assert ended(bench, streaming, "absolute")
    assert not bench.found(session), "no new request finds it"
    assert not session.ended and session.running == 1
    bench.step(50.0)
    assert not session.ended
    session.callEnded(bench.clock.seconds())
    bench.step(1.0)
    assert ended(bench, session, "absolute")


@pytest.mark.acceptance(40)
def test_acceptance_40_time_counts_from_the_end_of_the_handshake() -> None:
    bench = Bench()
    session = bench.make(opened=False)
    bench.step(3000.0)
    assert not session.ended
    session.opened(bench.clock.seconds())
    bench.step(59.0)
    assert bench.found(session)
    bench.step(2.0)
    assert ended(bench, session, "unused")
