"""What a caller hands in, checked and brought into the form that is stored; the only place that knows the limits.

Everything is refused here, before a transaction begins: PostgreSQL must never be the one to find a NUL byte or a lone
surrogate, least of all in the middle of a group. Raises InvalidInput, which names the field.
"""

import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.models import Role, Visibility

MAX_NAME = 200
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# Deeper than any honest document, and well below where the recursion of a JSON parser ends.
_MAX_DEPTH = 100
# Python refuses to write or read an integer of more than 4,300 digits.
_MAX_INTEGER_BITS = 10_000


@dataclass(frozen=True, kw_only=True)
class NewMessage:
    """One message to be appended. `content`: text, or a list of parts ({"type": "text", "text": …} and others)."""

    content: Any
    role: str = Role.USER
    client_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sender: str = ""
    visibility: str = Visibility.PUBLIC


@contextmanager
def within(place: str) -> Iterator[None]:
    """Put the place in front of the fields an InvalidInput names."""
    try:
        yield
    except InvalidInput as error:
        for one in error.errors:
            one["field"] = f"{place}.{one['field']}" if one["field"] else place
        raise


def text(name: str, value: Any, *, most: int = MAX_NAME, may_be_blank: bool = False) -> str:
    """A string PostgreSQL can store, at most `most` characters."""
    if not isinstance(value, str):
        raise InvalidInput(name, "not_a_string", f"{name} must be a string, not {type(value).__name__}")
    if not may_be_blank and not value.strip():
        raise InvalidInput(name, "blank", f"{name} must not be blank")
    if len(value) > most:
        raise InvalidInput(name, "too_long", f"{name} has {len(value)} characters, at most {most} are allowed")
    found = _UNSTORABLE.search(value)
    if found:
        what = "a NUL character" if found.group() == "\x00" else "a lone surrogate"
        raise InvalidInput(name, "unstorable_text", f"{name} holds {what} at position {found.start()}")
    return value


def scope(value: Any) -> str:
    """The name of a tenant: `text` without control characters, for it is shown in logs, lists and metrics."""
    found = text("scope", value)
    if _CONTROL.search(found):
        raise InvalidInput("scope", "control_character", "scope must hold no control characters")
    return found


def optional_text(name: str, value: Any) -> str | None:
    """`text`, or None for None."""
    return None if value is None else text(name, value)


def document(name: str, value: Any, *, most_bytes: int) -> Any:
    """A JSON value PostgreSQL can store, at most `most_bytes` of UTF-8 JSON; returned as JSON would give it back."""
    _walk(name, value, 0)
    # `default` meets nothing but mappings that are no dict: all else was refused.
    encoded = json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)
    size = len(encoded.encode())
    if size > most_bytes:
        raise InvalidInput(name, "too_large", f"{name} is {size} bytes of JSON, at most {most_bytes} are allowed")
    return json.loads(encoded)


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A JSON object within `max_metadata_bytes`; None is {}."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(name, "not_an_object", f"{name} must be an object, not {type(value).__name__}")
    return dict(document(name, dict(value), most_bytes=conf.max_metadata_bytes))


def whole(name: str, value: Any, *, least: int, most: int) -> int:
    """An integer within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(name, "not_an_integer", f"{name} must be an integer, not {value!r:.50}")
    if not least <= value <= most:
        raise InvalidInput(name, "out_of_range", f"{name} must be from {least} to {most}, not {value}")
    return value


def duration(name: str, value: Any, *, most: float) -> float:
    """A number of seconds, from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(name, "not_a_number", f"{name} must be a number of seconds, not {value!r:.50}")
    if not 0 <= value <= most:
        raise InvalidInput(name, "out_of_range", f"{name} must be from 0 to {most}, not {value}")
    return float(value)


def instant(name: str, value: Any) -> datetime | None:
    """A time with a zone, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidInput(name, "not_a_time", f"{name} must be a time with a zone, not {value!r:.50}")
    return value


def identifier(name: str, value: Any) -> uuid.UUID | None:
    """A UUID (object or text), or None."""
    if value is None or isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(name, "not_an_id", f"{name} must be a UUID, not {value!r:.50}") from None


def messages(given: Sequence[NewMessage | Mapping[str, Any] | str]) -> list[NewMessage]:
    """At least one message, each checked; a str is a user's text, a mapping has the fields of NewMessage."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise InvalidInput("messages", "not_a_list", "messages must be a list")
    if not given:
        raise InvalidInput("messages", "empty", "messages must hold at least one message")
    if len(given) > conf.max_messages:
        raise InvalidInput(
            "messages", "too_many", f"messages holds {len(given)} entries, at most {conf.max_messages} are allowed"
        )
    checked = [_message(f"messages[{index}]", one) for index, one in enumerate(given)]
    ids = [one.client_id for one in checked if one.client_id is not None]
    if len(ids) != len(set(ids)):
        raise InvalidInput("messages", "duplicate_id", "messages holds the same client_id twice")
    return checked


def content(name: str, value: Any) -> Any:
    """What a message says: text, or a list of parts."""
    return _content(name, value)


def _message(name: str, given: NewMessage | Mapping[str, Any] | str) -> NewMessage:
    if isinstance(given, str):
        given = NewMessage(content=given)
    elif isinstance(given, Mapping):
        unknown = sorted(map(_printable, set(given) - set(NewMessage.__dataclass_fields__)))
        if unknown:
            raise InvalidInput(f"{name}.{unknown[0]}", "unknown_field", f"{name} has no field {unknown[0]!r}")
        if "content" not in given:
            raise InvalidInput(f"{name}.content", "required", f"{name}.content is required")
        given = NewMessage(**given)
    elif not isinstance(given, NewMessage):
        raise InvalidInput(name, "not_an_object", f"{name} must be an object, not {type(given).__name__}")
    return NewMessage(
        content=_content(f"{name}.content", given.content),
        role=_choice(f"{name}.role", given.role, Role.values),
        client_id=optional_text(f"{name}.client_id", given.client_id),
        metadata=mapping(f"{name}.metadata", given.metadata),
        sender=text(f"{name}.sender", given.sender, may_be_blank=True),
        visibility=_choice(f"{name}.visibility", given.visibility, Visibility.values),
    )


def _content(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise InvalidInput(name, "blank", f"{name} must not be blank")
    elif isinstance(value, list | tuple):
        if not value:
            raise InvalidInput(name, "blank", f"{name} must hold at least one part")
        for index, part in enumerate(value):
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str) or not part["type"].strip():
                raise InvalidInput(
                    f"{name}[{index}]", "not_a_part", f"{name}[{index}] must be an object with a non-blank 'type'"
                )
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise InvalidInput(f"{name}[{index}].text", "not_a_string", f"{name}[{index}].text must be a string")
    else:
        raise InvalidInput(name, "not_content", f"{name} must be a string or a list of parts")
    return document(name, value, most_bytes=conf.max_content_bytes)


def _choice(name: str, value: Any, allowed: list[str]) -> str:
    if value not in allowed or not isinstance(value, str):
        code = "blank" if isinstance(value, str) and not value.strip() else "not_a_choice"
        raise InvalidInput(name, code, f"{name} must be one of {', '.join(allowed)}, not {value!r:.50}")
    return str(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the allowed strings."""
    return _choice(name, value, list(allowed))


def _walk(name: str, value: Any, depth: int) -> None:
    """Refuse what JSON or PostgreSQL's jsonb cannot hold, with the path to it."""
    if depth > _MAX_DEPTH:
        raise InvalidInput(name, "too_deep", f"{name} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        found = _UNSTORABLE.search(value)
        if found:
            what = "a NUL character" if found.group() == "\x00" else "a lone surrogate"
            raise InvalidInput(name, "unstorable_text", f"{name} holds {what} at position {found.start()}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(name, "not_json", f"{name} has a key that is no string: {key!r:.50}")
            _walk(name, key, depth + 1)
            _walk(f"{name}.{key[:50]}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _walk(f"{name}[{index}]", item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(name, "not_json", f"{name} is {value}, which JSON cannot hold")
    elif isinstance(value, int):
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise InvalidInput(name, "not_json", f"{name} is an integer of more than {_MAX_INTEGER_BITS} bits")
    elif value is not None:
        raise InvalidInput(name, "not_json", f"{name} is a {type(value).__name__}, which JSON cannot hold")


def _printable(key: Any) -> str:
    """Any mapping's key as text that can be shown and sent."""
    return str(key)[:100].encode("utf-8", "backslashreplace").decode()
