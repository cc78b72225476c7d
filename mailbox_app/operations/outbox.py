"""Bring an outbox row to its end: what it says is done to its target, or it is given up and its source told why."""

import logging
from collections.abc import Callable
from datetime import timedelta

from django.db import InterfaceError
from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.errors import Gone, NotFound, Refused
from mailbox_app.models import Outbox, Thread
from mailbox_app.operations import emit, settle
from mailbox_app.states import ABANDON, OutboxStatus
from mailbox_app.telemetry import observe


def end(row: Outbox, deliver: Callable[[], bool]) -> bool:
    """Deliver the row, or give it up; False if it is still pending: it has a later try, or its target was held."""
    try:
        return deliver()
    except Refused as refusal:
        return _fail(row, code=refusal.code, message=refusal.message, is_final=True)
    except InterfaceError:
        raise
    except Exception as error:  # whatever it is: the rows of other threads must not wait for it
        observe("delivery.failed", level=logging.WARNING, outbox_id=row.pk, error=type(error).__name__)
        return _fail(row, code="undeliverable", message=f"delivery failed: {type(error).__name__}", is_final=False)


def _fail(row: Outbox, *, code: str, message: str, is_final: bool) -> bool:
    """Count a failed delivery: a dead letter with an event on the source thread, or another try later (False)."""
    is_final = is_final or row.attempt_count + 1 >= conf.max_deliveries
    try:
        with Thread.objects.fence(row.source_thread_id) as source:
            # Who delivers holds another fence: the row itself decides who of the two was first.
            locked = Outbox.objects.select_for_update(no_key=True, of=("self",)).filter(pk=row.pk).first()
            if locked is None or locked.status != OutboxStatus.PENDING or locked.attempt_count != row.attempt_count:
                return locked is None or locked.status != OutboxStatus.PENDING
            counted = {"attempt_count": locked.attempt_count + 1, "last_error": f"{code}: {message}"}
            if is_final:
                source.move(locked, ABANDON, completed_at=source.locked_at, **counted)
                emit.delivery_failed(source, locked, code=code, message=message)
            else:
                delay = timedelta(seconds=settle.backoff(locked.attempt_count + 1))
                source.change(locked, available_at=source.locked_at + delay, **counted)
    except (NotFound, Gone):  # nobody is left to be told
        Outbox.objects.filter(pk=row.pk).move(ABANDON, completed_at=Now(), last_error=f"{code}: {message}")
        return True
    if is_final:
        facts = {"outbox_id": row.pk, "thread_id": row.source_thread_id, "code": code}
        observe("delivery.abandoned", level=logging.WARNING, **facts)
    return is_final
