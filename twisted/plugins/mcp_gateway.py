"""The twistd sub-command `mcp-gateway`."""

from twisted.application.service import ServiceMaker

mcp_gateway = ServiceMaker(
    "MCP gateway",
    "gateway.tap",
    "A multi-transport gateway for MCP, the Model Context Protocol.",
    "mcp-gateway",
)
