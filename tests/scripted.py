"""The scripted server, where the tests look for it."""

from gateway.testing.scripted import (
    RESULT,
    ScriptedHTTPLink,
    ScriptedLink,
    ScriptedServer,
    Sent,
    message,
)

__all__ = ["RESULT", "ScriptedHTTPLink", "ScriptedLink", "ScriptedServer", "Sent", "message"]
