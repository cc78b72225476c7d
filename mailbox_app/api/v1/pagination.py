"""Reading a listing piece by piece: `limit`, cursors and query parameters. There are no totals: counting is a scan."""

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.core import signing
from django.db.models import Model, Q, QuerySet
from rest_framework.request import Request

from mailbox_app.api.v1 import fields
from mailbox_app.api.v1.errors import Malformed
from mailbox_app.errors import InvalidInput
from mailbox_app.operations import inputs

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_MAX_CURSOR = 2**63 - 1
# A number as JSON has it.
_NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,5})?", re.ASCII)
_WHOLE = re.compile(r"-?[0-9]{1,30}", re.ASCII)

RowT = TypeVar("RowT", bound=Model)
ItemT = TypeVar("ItemT")


def parameters(request: Request, *known: str) -> dict[str, str]:
    """The query parameters; one that is not known is refused, so that no misspelt filter shows everything."""
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise InvalidInput(
            unknown[0], "unknown_field", f"there is no parameter {unknown[0]!r:.100}; known are {', '.join(known)}"
        )
    for name in known:
        if len(request.query_params.getlist(name)) > 1:
            raise Malformed("malformed_parameter", f"{name} is given more than once", field=name)
    return {name: str(value) for name, value in request.query_params.items()}


def limit_of(given: dict[str, str]) -> int:
    """How many items to answer with: brought into 1 to 200, 50 unless told."""
    value = given.get("limit")
    if value is None:
        return DEFAULT_LIMIT
    if not _WHOLE.fullmatch(value):
        raise Malformed("malformed_parameter", f"limit must be a whole number, not {value!r:.50}", field="limit")
    return min(max(int(value), 1), MAX_LIMIT)


def number_of(given: dict[str, str], name: str) -> int | None:
    """A cursor that is a number (of an event, of a message)."""
    value = given.get(name)
    if value is None:
        return None
    if not _WHOLE.fullmatch(value) or not 0 <= int(value) <= _MAX_CURSOR:
        raise Malformed("malformed_cursor", f"{name} must be a whole number from 0, not {value!r:.50}", field=name)
    return int(value)


def choice_of(given: dict[str, str], name: str, allowed: Sequence[str]) -> str:
    """One of the allowed words; the first unless told."""
    value = given.get(name, allowed[0])
    if value not in allowed:
        raise InvalidInput(name, "not_a_choice", f"{name} must be one of {', '.join(allowed)}, not {value!r:.50}")
    return value


def page(found: Iterable[ItemT], limit: int) -> tuple[list[ItemT], bool]:
    """The items to show and whether there are more, of up to limit + 1 found ones."""
    items = list(found)
    return items[:limit], len(items) > limit


def seconds_of(given: dict[str, str], name: str, *, otherwise: float, most: float) -> float:
    """How long to wait: brought into 0 to `most`."""
    value = given.get(name)
    if value is None:
        return min(otherwise, most)
    if not _NUMBER.fullmatch(value):
        raise Malformed("malformed_parameter", f"{name} must be a number of seconds, not {value!r:.50}", field=name)
    return min(max(float(value), 0.0), most)


def text_of(given: dict[str, str], name: str) -> str | None:
    """A filter that is text."""
    return inputs.optional_text(name, given.get(name))


def id_of(given: dict[str, str], name: str) -> uuid.UUID | None:
    """A filter that is an id."""
    return inputs.identifier(name, given.get(name))


def instant_of(given: dict[str, str], name: str) -> datetime | None:
    """A filter that is a time."""
    return fields.instant(name, given.get(name))


class Newest:
    """Cursors of a listing by a column that only grows, newest first: signed, so that a mended one is refused.

    `purpose` names listing, scope and filters: a cursor is good for these only. A row that moves to the front while
    somebody reads is not shown twice; it may be passed over, and is then on a new first page.
    """

    def __init__(self, *purpose: Any, by: str = "updated_at") -> None:
        self._by = by
        self._signer = signing.Signer(salt="mailbox.cursor:" + json.dumps(purpose, default=str))

    def after(self, rows: "QuerySet[RowT]", cursor: str | None) -> "QuerySet[RowT]":
        """The rows past the cursor, in order."""
        rows = rows.order_by(f"-{self._by}", "-id")
        if cursor is None:
            return rows
        try:
            stood, row_id = self._signer.unsign_object(cursor)
        except (signing.BadSignature, ValueError) as error:
            raise Malformed(
                "malformed_cursor", "cursor was not made by this listing with these filters", field="cursor"
            ) from error
        reached = stood if isinstance(stood, int) else datetime.fromisoformat(stood)
        # The first condition alone bounds the index scan; the second breaks the tie.
        return rows.filter(Q(**{f"{self._by}__lte": reached}) & (Q(**{f"{self._by}__lt": reached}) | Q(id__lt=row_id)))

    def at(self, row: Any) -> str:
        """The cursor that stands after this row."""
        stands = getattr(row, self._by)
        return self._signer.sign_object([stands if isinstance(stands, int) else stands.isoformat(), str(row.pk)])

    def page(self, rows: "QuerySet[RowT]", cursor: str | None, limit: int) -> dict[str, Any]:
        """One page of these rows, as every listing shows it."""
        items, has_more = page(self.after(rows, cursor)[: limit + 1], limit)
        return {"items": items, "next_cursor": self.at(items[-1]) if has_more else None, "has_more": has_more}
