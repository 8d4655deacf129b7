"""
Two gateways in one process: one for everybody here, one whose callers must bring a token.

    python examples/two_gateways.py
"""

import sys
from pathlib import Path

from twisted.application.service import MultiService
from twisted.internet import reactor
from zope.interface import implementer

from gateway.config import readConfiguration
from gateway.guard.authentication import IAuthenticator
from gateway.service import GatewayService
from gateway.wire.context import ANONYMOUS, Principal
from gateway.wire.exchange import RequestHead

DEMO = str(Path(__file__).resolve().parents[1] / "gateway" / "demo.py")
SETTINGS = {
    "mcpServers": {"demo": {"command": sys.executable, "args": [DEMO]}},
    "gateway": {"listen": ["tcp:0:interface=127.0.0.1"]},
}


@implementer(IAuthenticator)
class Named:
    """Whoever says a name is taken at their word; a real one verifies a token."""

    def authenticate(self, head: RequestHead) -> Principal:
        name = head.header(b"x-name")
        return Principal("example", name.decode("latin-1"), "") if name else ANONYMOUS


both = MultiService()
gateways = [
    GatewayService(readConfiguration(SETTINGS), reactor),
    GatewayService(readConfiguration(SETTINGS), reactor, authenticator=Named()),
]
for gateway in gateways:
    gateway.setServiceParent(both)
both.startService()
for gateway in gateways:
    for port in gateway.ports:
        print(f"http://127.0.0.1:{port.getHost().port}/mcp", flush=True)
reactor.addSystemEventTrigger("before", "shutdown", both.stopService)
reactor.run()
