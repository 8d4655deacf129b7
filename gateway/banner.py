"""What a gateway says when it is ready: its URLs, and a line to paste into a client."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IListeningPort

import gateway
from gateway.config import Configuration

__all__ = ["banner"]


def _base(port: IListeningPort) -> str | None:
    """The origin of a listening port as a client on this machine writes it."""
    address = port.getHost()
    number = getattr(address, "port", None)
    if number is None:
        return None
    host: str = getattr(address, "host", "")
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    secure = "TLS" in type(port).__name__ or getattr(port, "_type", "") == "TLS"
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{number}" if ":" in host else f"{scheme}://{host}:{number}"


def banner(configuration: Configuration, ports: Sequence[IListeningPort]) -> str:
    """The text for the ports that listen."""
    bases = [base for base in map(_base, ports) if base is not None]
    lines = [f"mcp-gateway {gateway.__version__} is ready."]
    if not bases:
        return "\n".join([*lines, *(f"  listening on {port.getHost()}" for port in ports)])
    width = max(len(server.name) for server in configuration.servers)
    for base in bases:
        for server in configuration.servers:
            url = f"{base}/servers/{server.name}"
            lines.append(f"  {server.name:<{width}}  {url}/mcp  (Streamable HTTP)")
            lines.append(f"  {'':<{width}}  {url}/sse  (HTTP+SSE)")
    lines.append("Paste into a terminal to add it to Claude Code:")
    for server in configuration.servers:
        url = f"{bases[0]}/servers/{server.name}/mcp"
        lines.append(f"  claude mcp add --transport http {server.name} {url}")
    lines += [f"note: {notice}" for notice in configuration.notices]
    return "\n".join(lines)
