"""The bytes and words of MCP, sans-IO: no Twisted, no clock, no socket."""
