"""A slice of the run with clients of both eras; the long one is in tests/soak."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from mixed_eras import SERVES, MixedEras
from stdio_support import children


@pytest.mark.parametrize("serves", SERVES)
@pytest_twisted.ensureDeferred
async def test_no_call_is_crossed_or_lost_between_the_eras(serves: str, tmp_path: Path) -> None:
    run = MixedEras(serves=serves, seed=20260728, calls=600, file=tmp_path / "ledger")
    await run.run()
    run.check()
    print(run)
    assert len(run.asked) == 600
    assert not children()


@pytest.mark.parametrize("serves", SERVES)
@pytest_twisted.ensureDeferred
async def test_each_call_to_a_server_that_exits_ends_once(serves: str, tmp_path: Path) -> None:
    run = MixedEras(serves=serves, seed=20260729, calls=600, file=tmp_path / "ledger", faults=True)
    await run.run()
    run.check()
    print(run)
    assert len(run.asked) == 600
    assert len(run.served) > 300
    assert not children()
