"""What user code may rely on: the shape of a message, and how its errors are understood."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from mailbox_app import catalogue
from mailbox_app.errors import MailboxError
from mailbox_app.execution.verdict import Verdict, judge
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

    @classmethod
    def told(cls, given: Any) -> list[Self]:
        """The messages a wait's record holds, as `operations/feed.py` wrote them."""
        return [
            cls(**{**one, "id": uuid.UUID(one["id"]), "created_at": datetime.fromisoformat(one["created_at"])})
            for one in given or ()
        ]


# Longest error text that is stored; the whole of it is in the worker's log.
_MAX_MESSAGE = 2_000
_MAX_CODE = 100


def outcome_of(error: BaseException, spec: catalogue.AgentSpec | None = None) -> Retry | Failed:
    """How an agent's exception ends its activation, as `verdict.py` judges it: another attempt, or none.

    The text of an error that is not of our tree may hold anything, a key in a URL for one: it is for operators alone.
    """
    name = type(error).__name__
    judgement = judge(error, spec)
    code = readable(judgement.code)[:_MAX_CODE]
    try:
        text = str(error)
    except Exception as unprintable:  # a team's own __str__
        text = f"its text raised {type(unprintable).__name__}"
    detail = readable(f"{name}: {text}" if text else name)
    message = detail if isinstance(error, MailboxError) else readable(f"the agent raised {name}")
    if judgement.verdict is Verdict.PERMANENT:
        return Failed(code=code, message=message, detail=detail)
    return Retry(code=code, message=message, detail=detail, after=judgement.after)


def readable(text: str) -> str:
    """Any text as one that can be stored: NUL and lone surrogates replaced, cut to a length."""
    clean = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean if len(clean) <= _MAX_MESSAGE else clean[: _MAX_MESSAGE - 1] + "…"


__all__ = ["IncomingMessage", "Outcome", "outcome_of", "readable"]
