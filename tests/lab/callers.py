"""The clients of a run, by what they speak."""

from __future__ import annotations

from .caller import Caller
from .modern_caller import ModernCaller
from .sse_caller import SSECaller
from .streamable_caller import StreamableCaller

__all__ = ["KINDS"]

KINDS: dict[str, type[Caller]] = {
    "streamable": StreamableCaller,
    "modern": ModernCaller,
    "sse": SSECaller,
}
