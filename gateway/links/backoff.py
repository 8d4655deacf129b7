"""How long to wait before the next attempt: exponential, with jitter."""

from __future__ import annotations

import random

from gateway.guard.limits import Limits

__all__ = ["backOff", "jittered"]


def backOff(limits: Limits, failures: int) -> float:
    """Seconds to wait after so many failures in a row, from `respawn_first` to `respawn_last`."""
    return min(limits.respawn_last, limits.respawn_first * 2.0 ** min(failures - 1, 16))


def jittered(delay: float) -> float:
    """A delay that does not fall together with everybody else's."""
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
