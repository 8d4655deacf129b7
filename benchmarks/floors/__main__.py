"""
`python -m benchmarks.floors KIND PORT [--shared | --upstream PORT --bodies PORT]`: one floor.
"""

from __future__ import annotations

import argparse

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from benchmarks.floors.proxy import ProxyFloor
from benchmarks.floors.sse import SSEFloor
from benchmarks.floors.streamable import StreamableFloor


class _QuietSite(Site):
    """The stock Site, but for its access log."""

    def log(self, request: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("streamable", "sse", "proxy"))
    parser.add_argument("port", type=int)
    parser.add_argument("--script", default="", help="the stdio server")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--upstream", type=int, default=0)
    parser.add_argument("--bodies", type=int, default=0, help="the upstream of /bodies")
    given = parser.parse_args()
    resource: Resource
    if given.kind == "proxy":
        resource = ProxyFloor(reactor, given.upstream)
        resource.bodies = ProxyFloor(reactor, given.bodies)
    else:
        floor = {"streamable": StreamableFloor, "sse": SSEFloor}[given.kind]
        resource = floor(reactor, given.script, given.shared)
    reactor.listenTCP(given.port, _QuietSite(resource), 4096, "127.0.0.1")
    reactor.run()


main()
