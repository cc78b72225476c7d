"""A run's live text, as far as Redis keeps it: for who looks now and then, without a subscription."""

import contextlib
import json
import uuid
from dataclasses import dataclass
from typing import Any

from mailbox_app import channel, saying


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What an activation has said in its turn that no durable message holds; `start` and `closed` count characters."""

    turn: int
    attempt: int
    start: int
    text: str
    # How much of all it said in its turn is in messages.
    closed: int

    @property
    def end(self) -> int:
        """Characters it has said in its turn."""
        return self.start + len(self.text)


def kept(run_id: uuid.UUID, fence: int) -> Kept | None:
    """The live text of a run's activation; None if it has said nothing, or Redis is away."""
    key = channel.PREFIX + saying.KEPT.format(run_id=run_id, fence=fence)
    [found] = channel.send([("LRANGE", key, 0, -1)]) or [None]
    return _joined([piece for piece in map(_read, found or ()) if piece is not None])


def _joined(pieces: list[dict[str, Any]]) -> Kept | None:
    if not pieces:
        return None
    turn = max(piece["turn"] for piece in pieces)
    start = end = closed = attempt = 0
    said = ""
    for piece in pieces:
        if piece["turn"] < turn:
            continue
        if piece["offset"] != end:  # something between was dropped
            said, start = "", piece["offset"]
        said += piece["text"]
        end = piece["offset"] + len(piece["text"])
        closed, attempt = max(closed, piece["closed"]), piece["attempt"]
    open_from = min(max(start, closed), end)
    return Kept(turn=turn, attempt=attempt, start=open_from, text=said[open_from - start :], closed=closed)


def _read(data: Any) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, TypeError, KeyError):  # somebody else's
        given = json.loads(data)
        numbers = {name: int(given[name]) for name in ("attempt", "offset", "closed")}
        return {**numbers, "turn": int(given.get("turn", 1)), "text": str(given["text"])}
    return None
