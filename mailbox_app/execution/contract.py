"""What user code may rely on: the shape of a message, and how its errors are understood."""

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from mailbox_app.errors import InvalidInput, MailboxError, Permanent, Stop, Transient
from mailbox_app.models import Message
from mailbox_app.outcomes import Failed, Outcome, Retry


@dataclass(frozen=True, kw_only=True)
class IncomingMessage:
    """A committed message as an agent sees it. `content` is text or a list of parts, `text` its text alone."""

    id: uuid.UUID
    seq: int
    role: str
    content: Any
    text: str
    metadata: Mapping[str, Any]
    sender: str
    created_at: datetime

    @classmethod
    def of(cls, row: Message) -> Self:
        return cls(
            id=row.pk,
            seq=row.seq or 0,
            role=row.role,
            content=row.content,
            text=row.text,
            metadata=row.metadata,
            sender=row.sender,
            created_at=row.created_at,
        )


# Longest error text that is stored; the whole of it is in the worker's log.
_MAX_MESSAGE = 2_000
_MAX_CODE = 100
# A longer wait is a mistake, and a far longer one no timestamp can hold.
_LONGEST_RETRY_SECONDS = 7 * 86_400.0


def outcome_of(error: BaseException) -> Retry | Failed:
    """How an agent's exception ends its activation, by its type.

    Transient, timeouts, connection errors and whatever is not known: another attempt, after `retry_after` seconds if
    the error names them. Permanent, and input the app refused: none. The text of an error that is not of our tree may
    hold anything, a key in a URL for one: it is for operators alone.
    """
    name = type(error).__name__
    code = readable(str((isinstance(error, MailboxError | Stop) and error.code) or name))[:_MAX_CODE]
    try:
        text = str(error)
    except Exception as unprintable:  # a team's own __str__
        text = f"its text raised {type(unprintable).__name__}"
    detail = readable(f"{name}: {text}" if text else name)
    message = detail if isinstance(error, MailboxError) else readable(f"the agent raised {name}")
    if isinstance(error, Permanent | InvalidInput):
        return Failed(code=code, message=message, detail=detail)
    after = _wait(error.retry_after) if isinstance(error, Transient) else None
    return Retry(code=code, message=message, detail=detail, after=after)


def _wait(retry_after: Any) -> float | None:
    """A team's retry_after in seconds; None, the ordinary backoff, for what is no number (a header's text may be)."""
    try:
        seconds = float(retry_after)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RETRY_SECONDS)


def readable(text: str) -> str:
    """Any text as one that can be stored: NUL and lone surrogates replaced, cut to a length."""
    clean = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean if len(clean) <= _MAX_MESSAGE else clean[: _MAX_MESSAGE - 1] + "…"


__all__ = ["IncomingMessage", "Outcome", "outcome_of", "readable"]
