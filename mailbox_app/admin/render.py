"""How values look in the admin: cut, escaped, linked. Everything returned is safe to put into a page."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F, Func, Model, TextField
from django.db.models.functions import Left
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from mailbox_app.models import Dispatch

# An operator reads the beginning; the API gives the whole.
CELL_CHARACTERS = 200
DOCUMENT_CHARACTERS = 4_000

NOTHING = "-"


# What every system event repeats and its row or page shows anyway.
_REPEATED = "'{thread_id,run_id,dispatch_id,agent,dispatch_epoch}'::text[]"


def excerpt(field: str) -> Left:
    """The beginning of a JSON column as text (of a string: without quotes), so that no more leaves the database."""
    return _excerpt(field, "%(expressions)s")


def excerpt_of_payload(field: str) -> Left:
    """The beginning of an event's payload, without what stands beside it."""
    return _excerpt(
        field,
        f"CASE jsonb_typeof(%(expressions)s) WHEN 'object' THEN %(expressions)s - {_REPEATED} ELSE %(expressions)s END",
    )


def _excerpt(field: str, document: str) -> Left:
    text = Func(F(field), template=f"(({document}) #>> '{{}}')", output_field=TextField())
    return Left(text, CELL_CHARACTERS + 1)


def cell(text: str | None) -> str:
    """A text on one line of a table: its beginning."""
    if not text:
        return NOTHING
    return text if len(text) <= CELL_CHARACTERS else f"{text[:CELL_CHARACTERS]}…"


def document(value: Any) -> str | SafeString:
    """A document or a long text by itself, in its own lines."""
    if value is None or value in ("", {}, []):
        return NOTHING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    if len(text) > DOCUMENT_CHARACTERS:
        text = f"{text[:DOCUMENT_CHARACTERS]}…\n({DOCUMENT_CHARACTERS:,} of {len(text):,} characters)"
    return format_html("<pre>{}</pre>", text)


def instant(value: datetime | None) -> str:
    """A time to the millisecond: the order of events matters more than their date format."""
    if value is None:
        return NOTHING
    return timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def when(value: datetime | None) -> str:
    """A time, and how far it is from now by this process's clock."""
    if value is None:
        return NOTHING
    seconds = (value - timezone.now()).total_seconds()
    return f"{instant(value)} ({f'in {_span(seconds)}' if seconds > 0 else f'{_span(-seconds)} ago'})"


def after(start: datetime, value: datetime) -> str:
    """A time as the distance from a start: where the seconds went is read off a column of these."""
    seconds = (value - start).total_seconds()
    return f"{'-' if seconds < 0 else '+'}{_span(abs(seconds))}"


def _span(seconds: float) -> str:
    if seconds < 100:
        text = f"{seconds:.3f} s"
    elif seconds < 6000:
        text = f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    elif seconds < 48 * 3600:
        text = f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    else:
        text = f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def short_id(value: UUID | None) -> str:
    """The end of an id: the beginning of a time-ordered one is the same for all rows of an hour."""
    return NOTHING if value is None else value.hex[-8:]


def link(model: type[Model], pk: Any, text: object = None) -> str | SafeString:
    """A link to a row's page; only the text where the admin site has none."""
    if pk is None:
        return NOTHING
    shown = str(pk) if text is None else str(text)
    try:
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[pk])
    except NoReverseMatch:
        return shown
    return format_html('<a href="{}">{}</a>', url, shown)


def link_id(model: type[Model], pk: UUID | None) -> str | SafeString:
    """A link that shows the end of the id."""
    return link(model, pk, short_id(pk))


def attempts(dispatch: Dispatch) -> str:
    """Failures so far, of how many it may have, and how often its worker was lost."""
    failed = f"{dispatch.attempt_count} of {dispatch.max_attempts}"
    return f"{failed}, lost {dispatch.lost_count}" if dispatch.lost_count else failed
