"""A multi-transport gateway for MCP, the Model Context Protocol, on Twisted."""

__version__ = "0.1.0"

__all__ = ["__version__"]
