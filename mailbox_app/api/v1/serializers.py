"""The shapes of requests and answers.

Answers are made by these; requests are only described by them, for the schema: `operations/inputs.py` judges what comes
in, as it does for callers in Python, without the framework's leniency ("5" is no number).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.db.models import TextChoices
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from mailbox_app.errors import InvalidInput
from mailbox_app.models import Dispatch, Event, Message, Role, Run, TerminationType, Thread, Visibility
from mailbox_app.operations import submission
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


# What comes in. `required` and `allow_null` say what the views do: null is as good as absent.


class NewMessageSerializer(serializers.Serializer[Any]):
    content = Content(help_text="Text, or a list of parts.")
    role = Word(Role, required=False, help_text="`user` unless given.")
    client_id = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="An id of your own, unique in your scope."
    )
    metadata = Object(required=False, allow_null=True)
    sender = serializers.CharField(required=False, max_length=200)
    visibility = Word(Visibility, required=False, help_text="`public` unless given.")


class NewRunSerializer(serializers.Serializer[Any]):
    messages = serializers.ListField(child=NewMessageSerializer(), min_length=1)
    agent = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="Unless given: the agent of the thread's last run."
    )
    thread_id = serializers.UUIDField(required=False, allow_null=True, help_text="An existing thread.")
    thread_key = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="A thread by your own name; made if it is missing."
    )
    if_active = Word(
        submission.IF_ACTIVE,
        named="IfActive",
        required=False,
        allow_null=True,
        help_text="While the thread has an open run: wait for it (`enqueue`, the default), or be refused (`reject`).",
    )
    priority = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=255, help_text="0 goes first; 128 unless given."
    )
    available_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Not before this time (RFC 3339), at most 366 days ahead."
    )
    dedupe_key = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="No second run holds it until this one is done."
    )
    max_attempts = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=1000)
    options = Object(required=False, allow_null=True, help_text="For the agent: `ctx.options`.")
    metadata = Object(required=False, allow_null=True, help_text="Yours; handed back with the run.")


class NewThreadSerializer(serializers.Serializer[Any]):
    key = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="Your own name for it, unique in your scope."
    )
    title = serializers.CharField(required=False, allow_null=True, allow_blank=True, max_length=500)
    metadata = Object(required=False, allow_null=True)


# What goes out.


class ReceiptSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField()
    dispatch_id = serializers.UUIDField()
    message_ids = serializers.ListField(child=serializers.UUIDField())
    status = Word(RunStatus)


class DispatchSerializer(serializers.Serializer[Dispatch]):
    """The latest activation of a run: delivery, not outcome."""

    id = serializers.UUIDField()
    status = Word(DispatchStatus)
    queue = serializers.CharField()
    priority = serializers.IntegerField()
    attempt_count = serializers.IntegerField(help_text="Failures so far.")
    lost_count = serializers.IntegerField(help_text="Workers lost so far.")
    max_attempts = serializers.IntegerField()
    available_at = Instant(help_text="Not started before; the next attempt's time while it backs off.")
    lease_until = Instant(allow_null=True)
    completed_at = Instant(allow_null=True)


class TerminationSerializer(serializers.Serializer[Any]):
    type = Word(TerminationType)
    detail = Anything(allow_null=True, required=False)


class RunErrorSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    message = serializers.CharField()


class RunSerializer(serializers.Serializer[Run]):
    id = serializers.UUIDField()
    thread_id = serializers.UUIDField()
    agent = serializers.CharField()
    code_version = serializers.CharField(allow_blank=True, help_text="Of the agent; blank until the run starts.")
    status = Word(RunStatus)
    turn = serializers.IntegerField()
    termination = Passed(TerminationSerializer)
    final_output = Anything(allow_null=True)
    error = Passed(RunErrorSerializer)
    waiting = Object(allow_null=True, help_text="`reason` and `message` while it waits.")
    resume_at = Instant(allow_null=True)
    input = Object()
    output = Object()
    options = Object()
    metadata = Object()
    dedupe_key = serializers.CharField(allow_null=True)
    parent_run_id = serializers.UUIDField(allow_null=True)
    replay_of_id = serializers.UUIDField(allow_null=True)
    steps = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    dispatch = DispatchSerializer(source="latest_dispatch", allow_null=True, help_text="Null once it was pruned.")
    created_at = Instant()
    updated_at = Instant()
    started_at = Instant(allow_null=True)
    finished_at = Instant(allow_null=True)


class EventSerializer(serializers.Serializer[Event]):
    cursor = serializers.IntegerField(help_text="Its number in the thread, in commit order.")
    kind = serializers.CharField()
    payload = Anything()
    run_id = serializers.UUIDField(allow_null=True)
    dispatch_id = serializers.UUIDField(allow_null=True)
    schema_version = serializers.IntegerField()
    correlation_id = serializers.CharField(allow_blank=True)
    created_at = Instant()


class EventPageSerializer(serializers.Serializer[Any]):
    items = EventSerializer(many=True)
    next_cursor = serializers.IntegerField(help_text="Pass it as `cursor` to go on, also when there is no more yet.")
    has_more = serializers.BooleanField()


class ThreadSerializer(serializers.Serializer[Thread]):
    id = serializers.UUIDField()
    key = serializers.CharField(allow_null=True)
    title = serializers.CharField(allow_blank=True)
    metadata = Object()
    parent_id = serializers.UUIDField(allow_null=True)
    last_seq = serializers.IntegerField(help_text="Messages in its log.")
    last_cursor = serializers.IntegerField(help_text="The latest event's cursor.")
    open_run_id = serializers.UUIDField(allow_null=True)
    latest_run_id = serializers.UUIDField(allow_null=True)
    created_at = Instant()
    updated_at = Instant()


class ThreadPageSerializer(serializers.Serializer[Any]):
    items = ThreadSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class MessageSerializer(serializers.Serializer[Message]):
    id = serializers.UUIDField()
    client_id = serializers.CharField(allow_null=True)
    thread_id = serializers.UUIDField()
    seq = serializers.IntegerField(help_text="Its number in the thread's log: 1, 2, 3 … without gaps.")
    role = Word(Role)
    content = Content()
    visibility = Word(Visibility)
    sender = serializers.CharField(allow_blank=True)
    metadata = Object()
    run_id = serializers.UUIDField(allow_null=True, help_text="The run that read it.")
    producer_run_id = serializers.UUIDField(allow_null=True, help_text="The run that said it.")
    created_at = Instant()


class MessagePageSerializer(serializers.Serializer[Any]):
    items = MessageSerializer(many=True)
    next_cursor = serializers.IntegerField(
        allow_null=True, help_text="Pass it as `after` (`before` with `order=desc`) to go on."
    )
    has_more = serializers.BooleanField()


class FieldErrorSerializer(serializers.Serializer[Any]):
    field = serializers.CharField(help_text="Such as `messages[0].content`.")
    code = serializers.CharField()
    message = serializers.CharField()


class ProblemSerializer(serializers.Serializer[Any]):
    """Problem details (RFC 9457), with facts such as `run_id` as further members."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField(help_text="Stable; decide by it.")
    errors = FieldErrorSerializer(many=True, required=False)  # type: ignore[assignment]
