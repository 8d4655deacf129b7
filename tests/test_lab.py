"""A slice of the ledger run of the fault laboratory; the long one is in tests/soak."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from lab.faults import FAULTS, HARMLESS, faultsOf
from lab.ledger import Ledger
from lab.servers import SERVERS
from stdio_support import children

SEED = 20261125


@pytest.mark.acceptance(24, 46, 64, 69, 70, 78)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_every_call_is_answered_once_to_its_caller(tmp_path: Path) -> None:
    """Acceptance 24, 46, 64, 69, 70, 78, ledger: both eras, three proxies, faults everywhere."""
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
