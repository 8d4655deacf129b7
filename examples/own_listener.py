"""
A gateway beside another service of the host, each with its own listener.

    twistd -n -y examples/own_listener.py
"""

import sys
from pathlib import Path

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Daytime

from gateway.config import readConfiguration
from gateway.service import GatewayService

DEMO = str(Path(__file__).resolve().parents[1] / "gateway" / "demo.py")

application = Application("host")

daytime = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
StreamServerEndpointService(daytime, Factory.forProtocol(Daytime)).setServiceParent(application)

# The three lines:
servers = {"demo": {"command": sys.executable, "args": [DEMO]}}
settings = {"mcpServers": servers, "gateway": {"listen": ["tcp:0:interface=127.0.0.1"]}}
GatewayService(readConfiguration(settings), reactor).setServiceParent(application)
