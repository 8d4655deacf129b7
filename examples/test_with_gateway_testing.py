"""
A host's unit test of its own service, with a gateway in memory.

    python -m pytest examples/test_with_gateway_testing.py
"""

from gateway.testing import MemoryGateway, ScriptedServer


def test_my_service_lists_the_tools():
    server = ScriptedServer("tools")
    gateway = MemoryGateway([server])
    client = gateway.client("tools")
    client.initialize()

    asked = client.post(client.request(2, "tools/list"))
    server.newest.reply(server.newest.last("tools/list"), b'{"tools":[]}')

    assert asked.json()["result"] == {"tools": []}
    assert gateway.stop().called
