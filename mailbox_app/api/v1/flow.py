"""The shapes of answers about what keeps work from starting: pauses and limits."""

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from mailbox_app.api.v1.fields import Instant, Word
from mailbox_app.api.v1.permissions import is_staff
from mailbox_app.models import Limit, LimitKind, Pause, PauseKind


class PauseSerializer(serializers.Serializer[Pause]):
    """Nothing of it starts until somebody resumes it."""

    kind = Word(PauseKind)
    name = serializers.CharField(help_text="The agent's or queue's; the thread's id.")
    note = serializers.CharField(allow_blank=True)
    paused_by = serializers.CharField(allow_blank=True)
    paused_at = Instant()


class PausePageSerializer(serializers.Serializer[Any]):
    items = PauseSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class KeepingLimitSerializer(serializers.Serializer[Limit]):
    """So many runs of it execute at once, or so many start within a time."""

    kind = Word(LimitKind)
    name = serializers.CharField(help_text="The agent's or the scope's.")
    most = serializers.IntegerField(allow_null=True, help_text="Runs that execute at once; null: no bound.")
    held = serializers.IntegerField(
        allow_null=True, help_text="Runs that hold one of those places now; null for all but the staff."
    )
    starts = serializers.IntegerField(allow_null=True, help_text="How often one starts within `seconds`.")
    seconds = serializers.FloatField(allow_null=True)
    note = serializers.CharField(allow_blank=True)


class LimitSerializer(KeepingLimitSerializer):
    held = serializers.IntegerField(help_text="Runs that hold one of those places now.")
    is_settling = serializers.BooleanField(
        help_text="Runs claimed before it was set go on: they take a place without holding it, or are too many."
    )
    set_by = serializers.CharField(allow_blank=True)
    set_at = Instant()


class LimitPageSerializer(serializers.Serializer[Any]):
    items = LimitSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


def told(request: Request, limits: Sequence[Limit]) -> Sequence[Limit]:
    """The limits as the caller may see them: how busy an agent is tells of others' work."""
    if not is_staff(request):
        for limit in limits:
            limit.held = None  # type: ignore[attr-defined]
    return limits
