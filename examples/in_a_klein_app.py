"""
A gateway in a Klein app, under /tools/.

    python examples/in_a_klein_app.py [PORT]
"""

import sys
from pathlib import Path

from klein import Klein
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web.server import Site

from gateway.config import readConfiguration
from gateway.service import GatewayService

DEMO = str(Path(__file__).resolve().parents[1] / "gateway" / "demo.py")
SETTINGS = {
    "mcpServers": {"demo": {"command": sys.executable, "args": [DEMO]}},
    "gateway": {"allowed_hosts": ["127.0.0.1:*"]},
}

app = Klein()
gateway = GatewayService(readConfiguration(SETTINGS), reactor, listen=False)


@app.route("/")
def home(request):
    return "the host's own page\n"


@app.route("/tools/", branch=True)
def tools(request):
    return gateway.resource()


def listening(port):
    print(f"http://127.0.0.1:{port.getHost().port}/tools/servers/demo/mcp", flush=True)


gateway.startService()
reactor.addSystemEventTrigger("before", "shutdown", gateway.stopService)
port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
endpoint = TCP4ServerEndpoint(reactor, port, interface="127.0.0.1")
endpoint.listen(Site(app.resource())).addCallback(listening)
reactor.run()
