"""`observe(name, **fields)`: one structured log line and one in-process signal. Nothing else in the app logs.

Fields are ids, counts, codes and seconds, never a payload. Receivers of `observed` get `name` and `fields` and must be
quick; what they raise is logged, not passed on. `running(…)` names the run whose agent is being called, so that
`RunFilter` can put its ids on every line that is logged meanwhile, the team's own included.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.dispatch import Signal

observed = Signal()
_logger = logging.getLogger("mailbox")
# The ids of the run that is being executed here: {"thread_id": …, "run_id": …, "dispatch_id": …}.
_ids: ContextVar[dict[str, str] | None] = ContextVar("mailbox_run_ids", default=None)


def observe(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell that something happened: `observe("dispatch.claimed", dispatch_id=…, worker=…)`."""
    if _logger.isEnabledFor(level):
        extra = {"mailbox_event": name, "mailbox": fields}
        _logger.log(level, "%s %s", name, json.dumps(fields, default=str, sort_keys=True), extra=extra)
    for receiver, answer in observed.send_robust(sender=None, name=name, fields=fields):
        if isinstance(answer, Exception):
            _logger.error("telemetry receiver %r failed on %s: %r", receiver, name, answer)


def observe_on_commit(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """`observe` once the transaction that is open now has committed; what is rolled back is never told."""
    after_commit(partial(observe, name, level=level, **fields))


@contextmanager
def running(**ids: Any) -> Iterator[None]:
    """Name the run that is being executed, by its ids, for whatever is logged inside the block."""
    before = _ids.set({name: str(value) for name, value in ids.items()})
    try:
        yield
    finally:
        _ids.reset(before)


class RunFilter(logging.Filter):
    """Put the ids of the current run on the record, as `mailbox_run`; lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add, never refuse."""
        if not hasattr(record, "mailbox_run"):
            record.mailbox_run = _ids.get() or {}
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, event, the event's fields, the ids of the run.

    The app's own lines have their name as `event`; any other line has its text as `message`, as its author wrote it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; what JSON does not know is written as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line |= getattr(record, "mailbox_run", None) or {}
        event = getattr(record, "mailbox_event", None)
        if event is None:
            line["message"] = record.getMessage()
        else:
            line["event"] = event
            # What the line is made of cannot be overwritten by a field of the same name.
            line = {**getattr(record, "mailbox", {}), **line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def after_commit(do: Callable[..., object], *args: Any) -> None:
    """Call it once the transaction is committed; what it raises is logged by Django, and fails nobody.

    Not as a partial: Django 5.2 asks what failed for a name that partials lack, and would raise that instead.
    """

    def call() -> None:
        do(*args)

    transaction.on_commit(call, robust=True)
