"""The shapes of requests, for the schema: null is as good as absent.

They only describe: `operations/inputs.py` judges what comes in, as it does for callers in Python, without the
framework's leniency ("5" is no number).
"""

from typing import Any

from rest_framework import serializers

from mailbox_app.api.v1.fields import Content, Object, Word
from mailbox_app.models import Boundary, Granularity, LimitKind, PauseKind, Role, Visibility
from mailbox_app.models.limit import LONGEST_PERIOD_SECONDS, MOST_AT_ONCE, MOST_STARTS
from mailbox_app.operations import delivery


class NewMessageSerializer(serializers.Serializer[Any]):
    content = Content(help_text="Text, or a list of parts.")
    role = Word(Role, required=False, help_text="`user` unless given.")
    client_id = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="An id of your own, unique in your scope."
    )
    metadata = Object(required=False, allow_null=True)
    sender = serializers.CharField(required=False, max_length=200)
    visibility = Word(Visibility, required=False, help_text="`public` unless given.")


class DeliverySerializer(serializers.Serializer[Any]):
    """Where in a run's life the messages are read; what `if_active` says need not be said again."""

    boundary = Word(
        Boundary,
        required=False,
        allow_null=True,
        help_text="`interrupt` stops the open run; it reads this at its `next_step`, at its natural end as its next "
        "turn (`on_natural_end`), or as the `resume_input` it waits for; `new_run` comes after it.",
    )
    granularity = Word(Granularity, required=False, allow_null=True, help_text="`one` is read alone.")
    barrier = serializers.BooleanField(
        required=False, allow_null=True, help_text="What is said later is read later, and never together with this."
    )
    target_run_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="For this run, which must be the open one, and no other."
    )
    fallback = Word(
        [Boundary.NEW_RUN.value],
        named="Fallback",
        required=False,
        allow_null=True,
        help_text="What becomes of it when its target ends first; it is retracted unless given.",
    )


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
        delivery.IF_ACTIVE,
        named="IfActive",
        required=False,
        allow_null=True,
        help_text="While the thread has an open run: wait for it (`enqueue`, the default), or be refused (`reject`). "
        "`steer`: have it read this at its next step. `interrupt`: stop it and all that is due behind it, and come "
        "next.",
    )
    expected_run_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Refuse this (409) unless that run is the thread's open one."
    )
    delivery = DeliverySerializer(required=False, allow_null=True)
    priority = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=255, help_text="0 goes first; 128 unless given."
    )
    available_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Not before this time (RFC 3339), at most 366 days ahead."
    )
    dedupe_key = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="No second run holds it until this one is done."
    )
    client_id = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=200,
        help_text="An id of your own for the run, unique in your scope; `GET /runs?client_id=` finds it.",
    )
    max_attempts = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=1000)
    config_version = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=100,
        help_text="A published version of the agent's configuration; the latest unless given.",
    )
    options = Object(required=False, allow_null=True, help_text="For the agent: `ctx.options`.")
    metadata = Object(required=False, allow_null=True, help_text="Yours; handed back with the run.")


class NewBatchSerializer(serializers.Serializer[Any]):
    runs = serializers.ListField(child=NewRunSerializer(), min_length=1)


class NewInputsSerializer(serializers.Serializer[Any]):
    messages = serializers.ListField(child=NewMessageSerializer(), min_length=1)


class PostSerializer(NewInputsSerializer):
    agent = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="Unless given: the agent of the thread's last run."
    )
    if_active = Word(
        delivery.IF_ACTIVE, named="IfActive", required=False, allow_null=True, help_text="As for `POST /runs`."
    )
    expected_run_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Refuse this (409) unless that run is the thread's open one."
    )
    message_id = serializers.CharField(
        required=False,
        allow_null=True,
        max_length=200,
        help_text="The message's id at its sender: however often it comes, it is said once. With one message alone.",
    )
    delivery = DeliverySerializer(required=False, allow_null=True)


class CancelSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, max_length=200, help_text="Told with the run's events."
    )


class MessageChangeSerializer(serializers.Serializer[Any]):
    content = Content(required=False, allow_null=True, help_text="Takes the place of all it said.")
    metadata = Object(required=False, allow_null=True, help_text="Takes the place of all there was.")
    revision = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, help_text="Refuse unless the message still is at this revision."
    )


class PendingGuardSerializer(serializers.Serializer[Any]):
    pending_revision = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        help_text="Refuse unless what is pending on the thread still is at this revision.",
    )


class OrderSerializer(PendingGuardSerializer):
    message_ids = serializers.ListField(
        child=serializers.UUIDField(), min_length=1, help_text="They come first, in this order; the others keep theirs."
    )


class ReleaseSerializer(PendingGuardSerializer):
    message_ids = serializers.ListField(
        child=serializers.UUIDField(), required=False, allow_null=True, min_length=1, help_text="All unless given."
    )


class DiscardSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, max_length=200, help_text="Kept for operators."
    )


class ReplaySerializer(serializers.Serializer[Any]):
    fresh = serializers.BooleanField(
        required=False, allow_null=True, help_text="Without the dead run's journal: every step is done again."
    )


class DeadLetterFilterSerializer(serializers.Serializer[Any]):
    agent = serializers.CharField(required=False, allow_null=True, max_length=200)
    queue = serializers.CharField(required=False, allow_null=True, max_length=200)
    code = serializers.CharField(required=False, allow_null=True, max_length=200, help_text="The error's `code`.")
    created_after = serializers.DateTimeField(required=False, allow_null=True)
    created_before = serializers.DateTimeField(required=False, allow_null=True)


class ReplayManySerializer(ReplaySerializer):
    filter = DeadLetterFilterSerializer(help_text="An empty one matches all.")
    limit = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=200, help_text="50 unless given."
    )


class NewPauseSerializer(serializers.Serializer[Any]):
    kind = Word(PauseKind)
    name = serializers.CharField(max_length=200, help_text="The agent's or queue's, known or not; the thread's id.")
    note = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, max_length=500, help_text="Why, for all who look."
    )


class NewLimitSerializer(serializers.Serializer[Any]):
    kind = Word(LimitKind)
    name = serializers.CharField(max_length=200, help_text="The agent's or the scope's, known or not.")
    most = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=MOST_AT_ONCE,
        help_text="Runs that execute at once. This, or `starts` and `seconds`, or all.",
    )
    starts = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=MOST_STARTS,
        help_text="Of an agent alone: how often it starts within `seconds`, attempts and resumes too.",
    )
    seconds = serializers.FloatField(
        required=False, allow_null=True, min_value=1, max_value=LONGEST_PERIOD_SECONDS, help_text="With `starts`."
    )
    note = serializers.CharField(
        required=False, allow_null=True, allow_blank=True, max_length=500, help_text="Why, for all who look."
    )


class ThreadChangeSerializer(serializers.Serializer[Any]):
    title = serializers.CharField(required=False, allow_null=True, allow_blank=True, max_length=500)
    metadata = Object(required=False, allow_null=True, help_text="Takes the place of all there was.")


class NewThreadSerializer(serializers.Serializer[Any]):
    key = serializers.CharField(
        required=False, allow_null=True, max_length=200, help_text="Your own name for it, unique in your scope."
    )
    title = serializers.CharField(required=False, allow_null=True, allow_blank=True, max_length=500)
    metadata = Object(required=False, allow_null=True)
