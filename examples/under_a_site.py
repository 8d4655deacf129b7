"""
A gateway under a host's own Site, at /tools/, beside other resources.

    python examples/under_a_site.py [PORT]
"""

import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from gateway.config import readConfiguration
from gateway.service import GatewayService

DEMO = str(Path(__file__).resolve().parents[1] / "gateway" / "demo.py")
SETTINGS = {
    "mcpServers": {"demo": {"command": sys.executable, "args": [DEMO]}},
    # Required here: the names by which clients reach the Site.
    "gateway": {"allowed_hosts": ["127.0.0.1:*", "mcp.example.com"]},
}

root = Resource()
root.putChild(b"", Data(b"the host's own page\n", "text/plain"))

# The three lines:
gateway = GatewayService(readConfiguration(SETTINGS), reactor, listen=False)
root.putChild(b"tools", gateway.resource())
gateway.startService()

reactor.addSystemEventTrigger("before", "shutdown", gateway.stopService)


def listening(port):
    print(f"http://127.0.0.1:{port.getHost().port}/tools/servers/demo/mcp", flush=True)


port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
TCP4ServerEndpoint(reactor, port, interface="127.0.0.1").listen(Site(root)).addCallback(listening)
reactor.run()
