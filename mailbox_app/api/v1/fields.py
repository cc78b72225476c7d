"""The kinds of values in requests and answers, as the schema names them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.db.models import TextChoices
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from mailbox_app.errors import InvalidInput

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


class Word(serializers.CharField):
    """A string limited to the words of an enumeration, which the schema shows under the enumeration's name."""

    def __init__(self, words: type[TextChoices] | Sequence[str], *, named: str = "", **options: Any) -> None:
        self.named = named or words.__name__  # type: ignore[union-attr]
        self.words = list(words)
        super().__init__(**options)


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


class Passed(serializers.JSONField):
    """A stored JSON object or null, handed on as it is; the serializer describes it."""

    def __init__(self, shape: type[serializers.Serializer[Any]], **options: Any) -> None:
        self.shape = shape
        super().__init__(allow_null=True, **options)


class Instant(serializers.DateTimeField):
    """A time, RFC 3339 in UTC whatever the project's formats are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(format="iso-8601", default_timezone=UTC, **options)
