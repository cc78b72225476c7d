"""The shapes of requests and answers.

Answers are made by these; requests are only described by them, for the schema: `operations/inputs.py` judges what comes
in, as it does for callers in Python, without the framework's leniency ("5" is no number).
"""

import re
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from mailbox_app.errors import InvalidInput
from mailbox_app.models import Dispatch, Message, Role, Run, TerminationType, Visibility
from mailbox_app.states import DispatchStatus, RunStatus

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def instant(name: str, value: Any) -> datetime | None:
    """An RFC 3339 time, in UTC."""
    if value is None:
        return None
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise InvalidInput(
        name, "not_a_time", f"{name} must be an RFC 3339 time such as 2031-05-01T09:30:00Z, not {value!r:.50}"
    )


def words(choices: Any, *, default: str | None = None) -> Any:
    """A string field limited to these words, as the schema shows it."""
    shown: dict[str, Any] = {"type": "string", "enum": list(getattr(choices, "values", choices))}
    return extend_schema_field(shown if default is None else {**shown, "default": default})(_Word)


class _Word(serializers.CharField):
    pass


@extend_schema_field({"type": "object", "additionalProperties": True})
class Object(serializers.JSONField):
    """A JSON object."""


@extend_schema_field({})
class Anything(serializers.JSONField):
    """Any JSON value."""


@extend_schema_field(
    {
        "oneOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"type": {"type": "string"}, "text": {"type": "string"}},
                    "required": ["type"],
                    "additionalProperties": True,
                },
            },
        ]
    }
)
class Content(serializers.JSONField):
    """Text, or a list of parts."""


class Instant(serializers.DateTimeField):
    """A time, RFC 3339 in UTC whatever the project's formats are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(format="iso-8601", default_timezone=UTC, **options)
