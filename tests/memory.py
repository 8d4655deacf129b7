"""What memory a process has, as /proc tells."""

from __future__ import annotations

from pathlib import Path

from attrs import define

__all__ = ["MIB", "Memory"]

MIB = 1024
"""In KiB."""


@define
class Memory:
    """Resident memory of a process, in KiB."""

    pid: int

    def now(self) -> int:
        return self._status("VmRSS:")

    def highest(self) -> int:
        """Since `begin`."""
        return self._status("VmHWM:")

    def begin(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition(name)[2].split()[0])
