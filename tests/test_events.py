"""The event log: what can be resumed, by whom, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.guard.limits import Limits
from gateway.sessions.events import EventLog

NUMBERED = Limits(max_logged_events=4, max_logged_bytes=100, logged_for=60.0, max_answer=1000)


def test_what_came_after_an_event_of_its_own_stream_and_of_no_other() -> None:
    log = EventLog(Limits())
    one, two = log.open("one"), log.open("two")
    ids = [log.append(one, b"a", 0.0), log.append(two, b"x", 0.0), log.append(one, b"b", 0.0)]
    found = log.find(ids[0], 1.0)
    assert found == (one, 1)
    assert log.after(*found) == ("", [(ids[2], b"b")])
    assert found[0].owner == "one"
    assert log.after(*log.find(ids[2], 1.0)) == ("", [])


def test_the_priming_id_is_before_the_first_event() -> None:
    log = EventLog(Limits())
    stream = log.open(None)
    primed = log.idOf(stream, 0)
    id = log.append(stream, b"a", 0.0)
    assert log.after(*log.find(primed, 0.0)) == ("", [(id, b"a")])


@pytest.mark.acceptance(75)
@given(st.binary(max_size=60))
def test_acceptance_75_no_made_up_id_names_anything(id: bytes) -> None:
    log = EventLog(Limits())
    log.append(log.open(None), b"a", 0.0)
    assert log.find(id, 0.0) is None


@pytest.mark.acceptance(75)
def test_acceptance_75_another_sessions_id_names_nothing() -> None:
    mine, theirs = EventLog(Limits()), EventLog(Limits())
    mine.append(mine.open(None), b"a", 0.0)
    id = theirs.append(theirs.open(None), b"a", 0.0)
    assert theirs.find(id, 0.0) is not None
    assert mine.find(id, 0.0) is None
    # Nor does the number of an event that has not been.
    stream = theirs.open(None)
    assert theirs.find(theirs.idOf(stream, 1), 0.0) is None


@pytest.mark.acceptance(76)
def test_acceptance_76_max_logged_events_a_gap_is_known() -> None:
    log = EventLog(NUMBERED)
    stream = log.open(None)
    ids = [log.append(stream, b"%d" % n, 0.0) for n in range(6)]
    lost, kept = log.after(*log.find(ids[0], 0.0))
    assert lost == "max_logged_events"
    assert [data for _, data in kept] == [b"2", b"3", b"4", b"5"]
    assert log.after(*log.find(ids[1], 0.0))[0] == ""


@pytest.mark.acceptance(76)
def test_acceptance_76_max_logged_bytes() -> None:
    log = EventLog(NUMBERED)
    stream = log.open(None)
    primed = log.idOf(stream, 0)
    for _ in range(3):
        log.append(stream, b"x" * 40, 0.0)
    lost, kept = log.after(*log.find(primed, 0.0))
    assert (lost, len(kept)) == ("max_logged_bytes", 2)


@pytest.mark.acceptance(76)
def test_acceptance_76_the_final_answer_outlives_the_window() -> None:
    log = EventLog(NUMBERED)
    call, other = log.open(None), log.open(None)
    primed = log.idOf(call, 0)
    log.append(call, b"answer" * 50, 0.0, final=True)
    for n in range(50):
        log.append(other, b"%d" % n, 0.0)
    assert log.after(*log.find(primed, 59.0)) == ("", [(log.idOf(call, 1), b"answer" * 50)])
    assert log.find(primed, 60.0) is None


def test_the_answers_have_a_bound_of_their_own() -> None:
    log = EventLog(NUMBERED)
    first = log.open(None)
    primed = log.idOf(first, 0)
    log.append(first, b"x" * 900, 0.0, final=True)
    assert log.find(primed, 0.0) is not None
    log.append(log.open(None), b"x" * 900, 0.0, final=True)
    assert log.find(primed, 0.0) is None
    assert len(log) == 1


def test_a_cut_stream_can_be_resumed_for_a_while_and_is_then_forgotten() -> None:
    log = EventLog(NUMBERED)
    streams = [log.open(None) for _ in range(3)]
    primed = [log.idOf(stream, 0) for stream in streams]
    for stream in streams:
        log.cut(stream, 0.0)
    log.resumed(streams[1])
    assert log.find(primed[0], 59.0) is not None
    assert log.find(primed[0], 60.0) is None
    assert log.find(primed[1], 60.0) is not None


def test_the_number_of_cut_streams_is_bounded() -> None:
    log = EventLog(NUMBERED)
    streams = [log.open(None) for _ in range(5)]
    for stream in streams:
        log.cut(stream, 0.0)
    assert log.find(log.idOf(streams[0], 0), 0.0) is None
    assert log.find(log.idOf(streams[1], 0), 0.0) is not None


def test_the_number_of_answers_is_bounded_too() -> None:
    log = EventLog(NUMBERED)
    for _ in range(100):
        log.append(log.open(None), b"", 0.0, final=True)
    assert len(log) == 4


def test_a_stream_that_ended_with_nothing_kept_is_forgotten() -> None:
    log = EventLog(Limits())
    stream = log.open(None)
    primed = log.idOf(stream, 0)
    log.close(stream)
    assert log.find(primed, 0.0) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=30)), max_size=40))
def test_the_bounds_hold_and_what_is_kept_is_a_suffix(events: list[tuple[int, bytes]]) -> None:
    log = EventLog(NUMBERED)
    streams = [log.open(n) for n in range(3)]
    sent: list[list[bytes]] = [[], [], []]
    for which, data in events:
        log.append(streams[which], data, 0.0)
        sent[which].append(data)
    assert len(log) <= 4
    for which, stream in enumerate(streams):
        lost, kept = log.after(stream, 0)
        assert [data for _, data in kept] == sent[which][len(sent[which]) - len(kept) :]
        assert bool(lost) == (len(kept) < len(sent[which]))


def test_a_session_that_is_over_keeps_nothing() -> None:
    log = EventLog(Limits())
    stream, running = log.open("a"), log.open("b")
    log.append(stream, b"x" * 1000, 0.0, final=True)
    id = log.append(running, b"y" * 1000, 0.0)
    log.forget()
    assert (len(log), log.streams) == (0, 0)
    assert log.find(id, 0.0) is None
    # What still comes harms nobody.
    log.append(running, b"z", 0.0, final=True)
    log.close(stream)
    log.cut(running, 0.0)
    log.expire(1000.0)
    assert len(log) == 0
