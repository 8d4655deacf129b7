"""The Site of our own listener: what is no proxy's path goes through it, to the Klein app."""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

__all__ = ["GatewaySite"]


class _BodilessRequest(Request):
    """A Request that nobody reads a body of, and for which "*" is a path like any other."""

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def process(self) -> None:
        if self.path == b"*":
            self.path = b"/*"
        super().process()


class GatewaySite(Site):
    """The Site of our own listener."""

    noisy = False

    def __init__(self, resource: IResource, reactor: Any) -> None:
        super().__init__(resource, requestFactory=_BodilessRequest, reactor=reactor)
        self.displayTracebacks = False

    def log(self, request: http.Request) -> None:
        """No access log by default: observers hear what happens, and a line costs as a call."""
