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
