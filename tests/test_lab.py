"""A slice of the ledger run of the fault laboratory; the long one is in tests/soak."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from lab.book import Asked, Book, Wrong
from lab.faults import FAULTS, HARMLESS, faultsOf
from lab.held import Sample, slopeOf
from lab.ledger import Ledger
from lab.servers import SERVERS
from stdio_support import children

SEED = 20261125


@pytest.mark.acceptance(24, 46, 64, 69, 70, 78, 108, 109)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_every_call_is_answered_once_to_its_caller(tmp_path: Path) -> None:
    """Both eras and three proxies; faults, reloads and a restart; a ledger of 5,000 calls."""
    run = Ledger(seed=SEED, calls=5000, place=tmp_path, restart=2500)
    await run.run()
    print(run)
    assert not run.book.broken, run.wrong
    assert run.book.asked >= 5000
    assert run.book.ended == run.book.asked
    assert len(run.book.outcomes) - len(HARMLESS) >= 40
    results = sum(outcomes["result"] for outcomes in run.book.outcomes.values())
    assert results > 3000, run.table()
    assert not children()


def test_there_are_more_than_forty_kinds_of_fault() -> None:
    assert len({fault.verb for fault in FAULTS}) == len(FAULTS) >= 40
    kinds = {behind for behind, _, _ in SERVERS.values()} - {"steady"}
    for behind in kinds:
        for caller in ("streamable", "modern", "sse"):
            assert faultsOf(behind, caller)


def test_every_kind_of_client_is_asked_something() -> None:
    for caller in ("streamable", "modern", "sse"):
        for behind in ("stdio", "http", "sse", "wire"):
            assert "client-asked" in {fault.verb for fault in faultsOf(behind, caller)}


# A ledger that finds nothing proves nothing: what it would find.


def entered(book: Book, *outcomes: str) -> list[Asked]:
    """Calls of one client that ended so, in order; "" has not ended."""
    calls = [
        Asked(f"modern:own:0:bob:{number}", HARMLESS[0], 1, 0.0) for number in range(len(outcomes))
    ]
    for call, outcome in zip(calls, outcomes, strict=True):
        book.ask(call)
        if outcome:
            book.end(call, outcome, 1.0)
    return calls


@pytest.mark.parametrize(
    ("outcomes", "lines", "wrong"),
    [
        (["result"], ["bob:0 1 c"], ""),
        (["result"], [], "answered, never executed"),
        (["result"], ["bob:0 1 c", "bob:0 1 c"], "executed twice"),
        ([""], ["bob:0 1 c"], "never ended"),
        (["never sent"], ["bob:0 1 c"], "executed, though it was refused"),
        (["not taken"], ["bob:0 1 c"], "executed, though it was refused"),
        (["result"], ["bob:0 1 c", "bob:0? 1 c", "bob:0? 1 c"], "answered what was asked once"),
        (["result"], ["alice:9 1 c", "bob:0 1 c"], "executed in what is alice's"),
        (["result"], ["alice:9 1 -", "bob:0 1 -"], ""),
        (["timeout"] * 4, [], "timed out again"),
    ],
)
def test_the_book_tells_what_is_wrong(
    outcomes: list[str], lines: list[str], wrong: str, tmp_path: Path
) -> None:
    book = Book(promptly=5.0)
    entered(book, *outcomes)
    (tmp_path / "ledger").write_text("".join(f"modern:own:0:{line}\n" for line in lines))
    counts = book.check(tmp_path / "ledger", shared=())
    assert [wrong in text for text in book.wrong] == [True] * bool(wrong)
    assert counts["calls"] == len(outcomes)
    # What is everybody's is nobody's.
    book = Book(promptly=5.0)
    entered(book, *outcomes)
    book.check(tmp_path / "ledger", shared=("own",))
    assert not any("executed in what is" in text for text in book.wrong)


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([{"id": 1, "result": {"structuredContent": {"token": "t"}}}], ""),
        ([{"id": 1.0, "result": {"structuredContent": {"token": "t"}}}], "another's id"),
        ([{"id": 1, "result": {"structuredContent": {"token": "u"}}}], "crossed"),
        ([{"id": 1, "error": {"code": 1, "data": {"token": "u"}}}], "crossed"),
        ([{"method": "notifications/progress", "params": {"message": "u"}}], "crossed"),
        ([{"id": 1, "result": {}}, {"id": 1, "result": {}}], "answered twice"),
        ([], "not answered"),
    ],
)
def test_a_call_is_judged_by_all_that_came(messages: list[dict], wrong: str) -> None:
    asked = Asked("t", HARMLESS[0], 1, 0.0)
    if not wrong:
        assert asked.judge(messages) == "result"
        return
    with pytest.raises(Wrong, match=wrong):
        asked.judge(messages)


def test_slopes_are_those_of_least_squares() -> None:
    samples = [
        Sample(minute * 60.0, 0, 1_000_000 + minute * 1000 // 60, 7, minute % 2, 0, 0, 0)
        for minute in range(61)
    ]
    rss = slopeOf(samples, "rss")
    assert rss.each == pytest.approx(1.024, abs=0.01) and rss.error < 0.01
    assert (slopeOf(samples, "fds").each, slopeOf(samples, "fds").error) == (0.0, 0.0)
    timers = slopeOf(samples, "timers")
    assert abs(timers.each) < 2 * timers.error
    with pytest.raises(ValueError, match="2 samples"):
        slopeOf(samples[:2], "rss")
