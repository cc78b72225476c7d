"""The live text of a run, put together from its pieces: those that arrive, and those that were kept for who is late."""

import uuid
from enum import StrEnum
from typing import Any

from mailbox_app.api.v1.stream_rows import frame
from mailbox_app.saying import MOST_TEXT


class Came(StrEnum):
    """What a piece was."""

    NEW = "new"
    OLD = "old"  # known already, closed, or of an activation that is over
    AHEAD = "ahead"  # something between is missing


class RunText:
    """What the latest activation of a run has said in its turn and no durable message holds yet.

    Pieces and events come by two ways, each of which may be the quicker. A piece names the last event before it:
    `after`; so a message closes what was said before it and nothing else. `closed_at`: the last message that is known.
    """

    def __init__(self, run_id: uuid.UUID, *, fence: int, closed_at: int = 0) -> None:
        self.run_id, self.fence, self.turn, self.attempt = run_id, fence, 0, 0
        # 0: the one who says it does not know.
        self.after = 0
        self._closed_at = closed_at
        self._text, self._start, self._closed = "", 0, 0
        self._told: dict[int, bytes] = {}

    @property
    def activation(self) -> str:
        """Another one whenever the agent begins anew: after a retry, a wait, a lost lease, and with each turn."""
        return f"{self.fence}.{self.turn}"

    @property
    def end(self) -> int:
        """Characters said so far."""
        return self._start + len(self._text)

    def tail(self, offset: int) -> tuple[int, str]:
        """What there is from an offset on, and where that begins."""
        start = max(offset, self._start)
        return start, self._text[start - self._start :]

    def told(self, offset: int) -> bytes:
        """What there is from an offset on, as it is sent, if anything: made once for all who are there."""
        if offset not in self._told:
            start, text = self.tail(offset)
            about = {"run_id": str(self.run_id), "attempt": self.attempt, "activation": self.activation}
            self._told[offset] = frame("delta", {**about, "offset": start, "text": text}) if text else b""
        return self._told[offset]

    def close(self, cursor: int) -> None:
        """What was said before this event is in a durable message."""
        self._told.clear()
        self._closed_at = max(self._closed_at, cursor)
        if self.after < cursor:
            self._cut(self.end)

    def add(self, piece: dict[str, Any], *, anyhow: bool = False) -> Came:
        """Put a piece where it belongs; one that comes too early is refused, unless taken `anyhow`."""
        try:
            fence, attempt, closed = int(piece["fence"]), int(piece["attempt"]), int(piece["closed"])
            offset, text = int(piece["offset"]), str(piece["text"])
            turn, after = int(piece.get("turn", 1)), int(piece.get("after", 0))
        except (KeyError, TypeError, ValueError):
            return Came.OLD  # not one of ours
        if (fence, turn) < (self.fence, self.turn):
            return Came.OLD
        self._told.clear()
        if (fence, turn) > (self.fence, self.turn):
            self.fence, self.turn, self.after = fence, turn, 0
            self._text, self._start, self._closed = "", 0, 0
        self.attempt = attempt
        if closed > self._closed:
            self._cut(closed)
        if 0 < after < self._closed_at and offset + len(text) > self._closed:  # the message was quicker than the text
            self._cut(offset + len(text))
        self.after = max(self.after, after)
        if offset < self._closed:
            text, offset = text[self._closed - offset :], self._closed
        if not text:
            return Came.OLD
        if not self._text and anyhow:
            self._start = offset
        if offset > self.end:
            if not anyhow:
                return Came.AHEAD
            self._text, self._start = "", offset
        return self._join(offset, text)

    def _join(self, offset: int, text: str) -> Came:
        before, end = self.end, offset + len(text)
        if offset < self._start and end >= self._start:  # the beginning, at last
            self._text = text[: self._start - offset] + self._text
            self._start = offset
        if end > self.end:
            self._text = self._text[: offset - self._start] + text
        if len(self._text) > MOST_TEXT:
            self._start += len(self._text) - MOST_TEXT
            self._text = self._text[-MOST_TEXT:]
        return Came.NEW if self.end > before else Came.OLD

    def _cut(self, offset: int) -> None:
        self._closed = offset
        self._text = self._text[max(0, offset - self._start) :]
        self._start = max(self._start, offset)
