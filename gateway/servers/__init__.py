"""Configured MCP servers: they own links and supervise what runs behind them."""
