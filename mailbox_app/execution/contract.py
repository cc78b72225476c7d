"""What user code may rely on: the shape of a message, and how its errors are understood."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from mailbox_app.errors import InvalidInput, Permanent, Transient
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


def outcome_of(error: Exception) -> Retry | Failed:
    """How an agent's exception ends its activation, by its type.

    Transient, timeouts, connection errors and whatever is not known: another attempt, after `retry_after` seconds if
    the error names them. Permanent, and input the app refused: none.
    """
    code = error.code if isinstance(error, Transient | Permanent) and type(error).code else type(error).__name__
    message = readable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if isinstance(error, Permanent | InvalidInput):
        return Failed(code=code, message=message)
    after = error.retry_after if isinstance(error, Transient) else None
    return Retry(code=code, message=message, after=after)


def readable(text: str) -> str:
    """Any text as one that can be stored: NUL and lone surrogates replaced, cut to a length."""
    clean = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean if len(clean) <= _MAX_MESSAGE else clean[: _MAX_MESSAGE - 1] + "…"


__all__ = ["IncomingMessage", "Outcome", "outcome_of", "readable"]
