"""The nouns. A status changes only through `move()`; a thread's things change only under its `fence()`."""

from mailbox_app.models.agent_version import AgentVersion
from mailbox_app.models.api import ApiToken, IdempotencyKey, token_digest
from mailbox_app.models.base import uuid7
from mailbox_app.models.dispatch import UNCLAIMED, DeadLetter, Dispatch, Resolution
from mailbox_app.models.event import TERMINAL_KINDS, Event, Kind
from mailbox_app.models.journal import JournalEntry
from mailbox_app.models.limit import Limit, LimitKind, Permit
from mailbox_app.models.message import Boundary, Granularity, Message, ReadAt, Role, Visibility
from mailbox_app.models.outbox import Outbox, OutboxKind
from mailbox_app.models.outbox import written as outbox_written
from mailbox_app.models.pause import Pause, PauseKind
from mailbox_app.models.ready import BlockedReason
from mailbox_app.models.run import Run, TerminationType
from mailbox_app.models.thread import Thread
from mailbox_app.models.ticket import Ticket
from mailbox_app.models.worker import AgentRegistration, Maintenance
from mailbox_app.models.writes import NOW, ask, columns, loader, read

__all__ = [
    "NOW",
    "TERMINAL_KINDS",
    "UNCLAIMED",
    "AgentRegistration",
    "AgentVersion",
    "ApiToken",
    "BlockedReason",
    "Boundary",
    "DeadLetter",
    "Dispatch",
    "Event",
    "Granularity",
    "IdempotencyKey",
    "JournalEntry",
    "Kind",
    "Limit",
    "LimitKind",
    "Maintenance",
    "Message",
    "Outbox",
    "OutboxKind",
    "Pause",
    "PauseKind",
    "Permit",
    "ReadAt",
    "Resolution",
    "Role",
    "Run",
    "TerminationType",
    "Thread",
    "Ticket",
    "Visibility",
    "ask",
    "columns",
    "loader",
    "outbox_written",
    "read",
    "token_digest",
    "uuid7",
]
