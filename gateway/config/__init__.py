"""Reads the configuration, and tells every mistake in it with its place and a way out."""

from gateway.config.document import ConfigurationError, Problem
from gateway.config.gateway import (
    MAX_SECONDS,
    Configuration,
    GatewaySettings,
    gatewaySettings,
    loadConfiguration,
    readConfiguration,
)
from gateway.config.servers import demoServer, serverFromArguments
from gateway.config.values import isPublic

__all__ = [
    "MAX_SECONDS",
    "Configuration",
    "ConfigurationError",
    "GatewaySettings",
    "Problem",
    "demoServer",
    "gatewaySettings",
    "isPublic",
    "loadConfiguration",
    "readConfiguration",
    "serverFromArguments",
]
