"""A client of revision 2026-07-28: every request says who it is, and each may be another's."""

from __future__ import annotations

from typing import Any

from .book import Asked, Wrong
from .caller import PRINCIPALS, Connection
from .posting_caller import PostingCaller
from .questions import CAPABILITIES, tokenOf

__all__ = ["ModernCaller"]

JSON = dict[str, Any]
MODERN = "2026-07-28"
_ROUNDS = 3
"""How often it is asked in one call at most."""


class ModernCaller(PostingCaller):
    """It has no session; its calls are those of all principals in turn."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "modern"

    def asking(self) -> str:
        return PRINCIPALS[self.count % len(PRINCIPALS)]

    def who(self, message: JSON | None) -> str:
        assert message is not None
        token: str = message["params"]["arguments"]["token"]
        return token.split(":")[3]

    def fields(self, message: JSON | None) -> dict[str, str]:
        assert message is not None
        return {"MCP-Protocol-Version": MODERN, "Mcp-Method": message["method"], "Mcp-Name": "do"}

    def meta(self, asked: Asked) -> JSON:
        return {
            "progressToken": asked.id,
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": (
                CAPABILITIES if asked.fault.does == "asks" else {}
            ),
        }

    @property
    def passed(self) -> bool:
        """Whether its bytes go straight through."""
        return self.behind in ("http", "wire") and self.server.endswith("modern")

    def wrong(self, asked: Asked, why: object) -> None:
        # Straight through: what a server says instead of an answer is its own affair.
        breaks = asked.fault.breaks or self.behind == "wire"
        if self.passed and isinstance(why, Wrong) and breaks and "crossed" not in str(why):
            self.ended(asked, "what the server said, passed on")
        else:
            super().wrong(asked, why)

    async def _client_asked(self, client: Connection, asked: Asked) -> bool:
        message = self.message(asked)
        self.mayBeAsked(asked)
        for _ in range(_ROUNDS):
            asked.began = self.plan.now()
            client.answering = False
            client.send(self.posted(message))
            messages, alive = await self.received(client, asked)
            answer = messages[-1] if messages else {}
            result = answer.get("result", {})
            if messages is None or result.get("resultType") != "input_required":
                if messages is not None:
                    self.ended(asked, asked.judge(messages))
                return alive
            questions = result.get("inputRequests", {})
            if [tokenOf(one) for one in questions.values()] != [asked.token]:
                raise Wrong(f"{asked.token}: crossed, asked {questions}")
            answers = {key: self.inquired(one) for key, one in questions.items()}
            # All else is the same: the state is of that call.
            state = {"requestState": result["requestState"]} if "requestState" in result else {}
            message["params"] |= {"inputResponses": answers, **state}
            if not alive:
                client.reset()
                await client.ended
                client = await self.connect()
        raise Wrong(f"{asked.token}: asked again and again")
