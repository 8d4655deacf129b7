"""A slice of the ledger run; the long one is in tests/soak."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from ledger import Ledger


@pytest.mark.acceptance(24)
@pytest_twisted.ensureDeferred
async def test_acceptance_24_every_call_is_answered_once_to_its_caller(tmp_path: Path) -> None:
    """Acceptance 24, ledger: three proxies at once, equal ids, crashing and garbling servers."""
    run = Ledger(seed=20261122, calls=540, clients=2, file=tmp_path / "ledger")
    await run.run()
    run.check()
    assert run.asked == 540
    assert run.outcomes["result"] > 300, run
