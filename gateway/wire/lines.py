"""
Lines out of chunks: what frames messages on stdio.

Rules:

 1. A line ends with LF; one CR right before it belongs to the end, not to the line.
 2. A line may have at most `limit` bytes without its end.
 3. The same bytes give the same lines, however they are cut into chunks.
 4. Time is linear in the bytes fed; memory is at most the limit plus one chunk.

A bytearray takes the unfinished line: a list of chunks would cost more than the chunks where they
are tiny, and joining a bytes object on each read is quadratic.
"""

from __future__ import annotations

from attrs import define, field

__all__ = ["LineSplitter", "LineTooLong"]


class LineTooLong(Exception):
    """
    A line is over the limit; nothing more can be fed.

    lines: the complete lines that stood before it in the chunk.
    """

    def __init__(self, limit: int, lines: list[bytes]) -> None:
        super().__init__(f"a line is over {limit} bytes")
        self.lines = lines


@define(eq=False)
class LineSplitter:
    """
    Splits a stream of bytes into lines.

    limit: bytes a line may have, without its end.
    """

    limit: int
    _unfinished: bytearray = field(factory=bytearray, init=False)
    _broken: bool = field(default=False, init=False)

    def feed(self, data: bytes) -> list[bytes]:
        """
        Take the next chunk.

        Returns: the lines it completed, without their ends.
        Raises: LineTooLong, also for every later chunk.
        """
        if self._broken:
            raise LineTooLong(self.limit, [])
        pieces = data.split(b"\n")
        rest = pieces.pop()
        if pieces and self._unfinished:
            self._unfinished += pieces[0]
            pieces[0] = bytes(self._unfinished)
            self._unfinished = bytearray()
        for index, line in enumerate(pieces):
            if line[-1:] == b"\r":
                pieces[index] = line = line[:-1]
            if len(line) > self.limit:
                raise self._tooLong(pieces[:index])
        if rest:
            self._unfinished += rest
            # One byte more than the limit may still turn out to be the CR of the end.
            over = len(self._unfinished) - self.limit
            if over > 1 or (over == 1 and self._unfinished[-1] != 13):
                raise self._tooLong(pieces)
        return pieces

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line."""
        return len(self._unfinished)

    def _tooLong(self, lines: list[bytes]) -> LineTooLong:
        self._broken = True
        self._unfinished = bytearray()
        return LineTooLong(self.limit, lines)
