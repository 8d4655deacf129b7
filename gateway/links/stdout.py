"""
The stdout of a child: one message a line, in UTF-8, and whatever else it writes there.

A line that is no message is noise: skipped, counted, logged once a minute. Only where it looks like
the answer to something, who hears the messages is told so.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define, field

from gateway.links.serverlog import ServerLog
from gateway.wire.envelope import Message, NotAMessage, NotJSON, decode, salvageID
from gateway.wire.lines import LineSplitter, LineTooLong

__all__ = ["Stdout"]


class _Hearer(Protocol):
    """Who hears the messages. Each of these may close the Stdout."""

    def messageReceived(self, message: Message) -> None:
        """It wrote a message."""

    def answerSpoilt(self, id: bytes) -> None:
        """It wrote a line that is no message, but would be the answer to this request."""

    def lineTooLong(self) -> None:
        """It wrote a line over the limit; nothing after that can be understood."""


@define(eq=False, repr=False)
class Stdout:
    """
    What one child writes. Life: made with it → `feed` → closed by who hears it.

    limit: bytes of a line. closed: whether nobody hears any more.
    """

    _hearer: _Hearer
    _log: ServerLog
    _lines: LineSplitter = field(converter=LineSplitter)
    closed: bool = field(default=False, init=False)

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        if self.closed:
            return
        broken = False
        try:
            lines = self._lines.feed(data)
        except LineTooLong as error:
            lines, broken = error.lines, True
        for line in lines:
            if not line or line.isspace():
                continue
            try:
                message = decode(line)
            except NotJSON as error:
                self._skipped(line, [salvageID(line)], str(error))
            except NotAMessage as error:
                self._skipped(line, [error.answered], str(error))
            else:
                if isinstance(message, Message):
                    self._hearer.messageReceived(message)
                else:
                    self._batchReceived(message, line)
            if self.closed:
                return
        if broken:
            self._hearer.lineTooLong()

    def _batchReceived(self, batch: list[Message | NotAMessage], line: bytes) -> None:
        bad = []
        for member in batch:
            if isinstance(member, Message):
                self._hearer.messageReceived(member)
            else:
                bad.append(member)
            if self.closed:
                return
        if bad or not batch:
            why = str(bad[0]) if bad else "an empty batch"
            self._skipped(line, [member.answered for member in bad], why)

    def _skipped(self, line: bytes, ids: list[bytes | None], why: str) -> None:
        self._log.noise(line, why)
        # A log line may quote a message, and JSON that is no message may have an id, too.
        start = line.lstrip(b" \t\xef\xbb\xbf")[:1]
        if start not in (b"{", b"[") or b'"jsonrpc"' not in line:
            return
        for id in ids:
            if id is not None and not self.closed:
                self._hearer.answerSpoilt(id)
