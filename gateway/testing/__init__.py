"""
What embedders need to test their own services: no sockets, no processes, no real time.

    server = ScriptedServer("tools")                    # plays an MCP server
    gateway = MemoryGateway([server])                   # a whole gateway, on a Clock
    client = gateway.client("tools")                    # speaks Streamable HTTP, in memory
    client.initialize()
    asked = client.post(client.request(2, "tools/list"))
    server.newest.reply(server.newest.last("tools/list"), b'{"tools":[]}')
    assert asked.json()["result"] == {"tools": []}
    gateway.stop()
"""

from gateway.testing.memory import Exchanged, MemoryClient, MemoryGateway
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent

__all__ = [
    "Exchanged",
    "MemoryClient",
    "MemoryGateway",
    "ScriptedLink",
    "ScriptedServer",
    "Sent",
]
