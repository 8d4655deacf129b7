"""Other programs that do the same job, where they are installed; README.md tells how."""

from __future__ import annotations

from benchmarks.peers.found import NAMES, PLACE, Peers, find

__all__ = ["NAMES", "PLACE", "Peers", "find"]
