"""What servers ask their clients amid a call, and what these answer. Pure."""

from __future__ import annotations

__all__ = ["CAPABILITIES", "answerTo", "tokenOf"]

CAPABILITIES = {"sampling": {}, "elicitation": {}, "roots": {}}
"""What a client declares that is to be asked."""


def tokenOf(asked: dict) -> str:
    """The token of the call in which this was asked."""
    params = asked.get("params") or {}
    if asked["method"] == "sampling/createMessage":
        return str(params["messages"][0]["content"]["text"])
    if asked["method"] == "elicitation/create":
        return str(params["message"])
    return str(params["_meta"]["lab/token"])


def answerTo(asked: dict) -> dict:
    """The result of a question: it names the token."""
    token = tokenOf(asked)
    if asked["method"] == "sampling/createMessage":
        content = {"type": "text", "text": token}
        return {"role": "assistant", "content": content, "model": "lab"}
    if asked["method"] == "elicitation/create":
        return {"action": "accept", "content": {"token": token}}
    return {"roots": [{"uri": f"file:///{token}"}]}
