"""Children that come, crash and go, through a whole gateway: nothing of them is left."""

from __future__ import annotations

import pytest
import pytest_twisted
from cycles import Cycles, processes, settled
from stdio_support import alive

from gateway.observe.observer import CircuitOpened, LinkLost


@pytest.mark.acceptance(59)
@pytest_twisted.ensureDeferred
async def test_acceptance_59_aHundredCyclesLeaveNothing() -> None:
    """A thousand run in the soak."""
    cycles = await Cycles.started()
    gateway = cycles.gateway
    await cycles.run(6)
    before = await settled(gateway, lambda now: now["processes"] == 1 and not now["sessions"])
    # The reaper is what is left.
    assert before["processes"] == 1 and before["zombies"] == 0
    await cycles.run(100)

    def flat(now: dict[str, int]) -> bool:
        # A timer that was on its way out when the first count was made may be gone since.
        return all(now[kind] <= before[kind] for kind in before)

    after = await settled(gateway, flat)
    assert flat(after), (before, after)
    assert cycles.crashes > 10
    assert len(gateway.recorder.of(LinkLost)) >= cycles.crashes
    assert gateway.recorder.of(CircuitOpened) == []
    pids = [int(pid) for pid, _ in processes()]
    await gateway.stop()
    assert not any(alive(pid) for pid in pids)
