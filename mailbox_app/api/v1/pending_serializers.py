"""The shapes of answers about what a thread has not read."""

from typing import Any

from rest_framework import serializers

from mailbox_app.api.v1.fields import Content, Instant, Object, Word
from mailbox_app.models import Boundary, Granularity, Message, Role, Visibility


class PendingMessageSerializer(serializers.Serializer[Message]):
    id = serializers.UUIDField()
    client_id = serializers.CharField(allow_null=True)
    thread_id = serializers.UUIDField()
    position = serializers.IntegerField(help_text="Its place among what is pending.")
    revision = serializers.IntegerField(help_text="Raised by each change; the guard of the next one.")
    held = serializers.BooleanField(help_text="An interrupt has held it: nobody reads it until it is released.")
    role = Word(Role)
    content = Content()
    visibility = Word(Visibility)
    sender = serializers.CharField(allow_blank=True)
    metadata = Object()
    run_id = serializers.UUIDField(
        allow_null=True, help_text="The run that will read it, or would have; null: whoever comes."
    )
    boundary = Word(Boundary, help_text="Where in a run's life it may first be read.")
    granularity = Word(Granularity, help_text="`one`: it is read alone.")
    barrier = serializers.BooleanField(help_text="Nothing behind it is read before it.")
    target_run_id = serializers.UUIDField(allow_null=True, help_text="The only run it is for.")
    fallback = serializers.CharField(allow_blank=True, help_text="Where it is read once that run has ended; or blank.")
    created_at = Instant()


class EditedSerializer(serializers.Serializer[Any]):
    message = PendingMessageSerializer()
    pending_revision = serializers.IntegerField()


class RetractedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    message_id = serializers.UUIDField()
    cancelled_run_id = serializers.UUIDField(
        allow_null=True, help_text="The run that has ended, because it was to read nothing else."
    )
    withdrawn_dispatch_id = serializers.UUIDField(
        allow_null=True, help_text="By which a waiting run would have gone on with it; the run goes on waiting."
    )
    pending_revision = serializers.IntegerField()


class ReorderedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    message_ids = serializers.ListField(
        child=serializers.UUIDField(), help_text="Those that stand somewhere else than before, in their order."
    )
    run_ids = serializers.ListField(child=serializers.UUIDField(), help_text="The queued runs that do.")
    pending_revision = serializers.IntegerField()


class PendingPageSerializer(serializers.Serializer[Any]):
    items = PendingMessageSerializer(many=True)
    pending_revision = serializers.IntegerField(help_text="Raised by each change; the guard of the next one.")
    next_cursor = serializers.IntegerField(help_text="Pass it as `after` to go on.")
    has_more = serializers.BooleanField()


class ReleasedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    message_ids = serializers.ListField(child=serializers.UUIDField(), help_text="Those that were held until now.")
    run_ids = serializers.ListField(child=serializers.UUIDField(), help_text="The new runs that will read them.")
    pending_revision = serializers.IntegerField()
