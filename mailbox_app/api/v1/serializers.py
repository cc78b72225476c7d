"""The shapes of answers."""

from typing import Any

from rest_framework import serializers

from mailbox_app.api.v1 import flow
from mailbox_app.api.v1.fields import Anything, Content, Instant, Object, Passed, Word
from mailbox_app.models import (
    BlockedReason,
    Dispatch,
    Event,
    Message,
    Role,
    Run,
    TerminationType,
    Thread,
    Ticket,
    Visibility,
)
from mailbox_app.operations import cancel
from mailbox_app.payloads import DESCRIBED, SeenBy
from mailbox_app.states import DispatchStatus, RunStatus


class InterruptedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    epoch = serializers.IntegerField(help_text="Raised by each interrupt that stopped something.")
    run_id = serializers.UUIDField(allow_null=True, help_text="The open run it stopped, or asked to stop.")
    outcome = Word(
        [outcome.value for outcome in cancel.Outcome],
        named="CancelOutcome",
        allow_null=True,
        help_text="Of that run. `requested`: its worker has been asked and has not stopped yet; `already_done`: it "
        "ended otherwise while that was waited for.",
    )
    superseded_run_ids = serializers.ListField(child=serializers.UUIDField(), help_text="They never start.")
    held_message_ids = serializers.ListField(
        child=serializers.UUIDField(), help_text="Nobody reads them until they are released."
    )
    waits_for = serializers.UUIDField(
        allow_null=True, help_text="The open run, left alone: an answer for it is on its way."
    )


class ReceiptSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField()
    dispatch_id = serializers.UUIDField(
        allow_null=True, help_text="Null only for a `message_id` that comes again after its activations' retention."
    )
    message_ids = serializers.ListField(child=serializers.UUIDField())
    status = Word(RunStatus, help_text="Of the run that will answer.")
    interrupted = InterruptedSerializer(allow_null=True, help_text="With `if_active` of `interrupt`; null otherwise.")


class BatchSerializer(serializers.Serializer[Any]):
    items = ReceiptSerializer(many=True, help_text="In the order of the request.")


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


class RunItemSerializer(serializers.Serializer[Run]):
    """A run in a listing: without what may be large."""

    id = serializers.UUIDField()
    thread_id = serializers.UUIDField()
    agent = serializers.CharField()
    code_version = serializers.CharField(allow_blank=True, help_text="Of the agent; blank until the run starts.")
    status = Word(RunStatus)
    turn = serializers.IntegerField()
    termination = Passed(TerminationSerializer)
    error = Passed(RunErrorSerializer)
    waiting = Object(
        source="waits_for",
        allow_null=True,
        help_text="`reason`, `message`, `name`, `since` while it waits; `ticket_ids`, "
        "`child_run_ids` where it waits for those.",
    )
    resume_at = Instant(allow_null=True)
    metadata = Object()
    origin = serializers.CharField(
        source="shown.origin",
        help_text="The door it was asked for at (`rest`, `python`), or what made it (`durable`, `requeue`, `replay`).",
    )
    adapter = serializers.CharField(
        source="shown.adapter", help_text="The door at which the intent came in first, whatever made this run of it."
    )
    sender = serializers.CharField(source="shown.sender", help_text="Of its messages; blank where they differ.")
    client_id = serializers.CharField(allow_null=True, help_text="The id its caller has given it.")
    dedupe_key = serializers.CharField(allow_null=True)
    parent_run_id = serializers.UUIDField(allow_null=True, help_text="The run that has spawned it.")
    replay_of_id = serializers.UUIDField(allow_null=True)
    created_at = Instant()
    updated_at = Instant()
    started_at = Instant(allow_null=True)
    finished_at = Instant(allow_null=True)


class TicketSerializer(serializers.Serializer[Ticket]):
    """A question that a run has put to a human, and nobody has answered."""

    ticket_id = serializers.CharField(help_text="What an answer names.")
    name = serializers.CharField(allow_blank=True, help_text="As the agent calls it.")
    question = serializers.CharField(allow_blank=True)
    arguments = Object(help_text="What is to be decided.")
    schema = Object(allow_null=True, help_text="JSON Schema of the payload of a `resume`; null: any payload.")
    resume_mode = serializers.CharField(allow_blank=True)
    created_at = Instant()
    expires_at = Instant(allow_null=True, help_text="Then it counts as answered with `cancel`.")


class RunSerializer(RunItemSerializer):
    final_output = Anything(allow_null=True)
    input = Object()
    output = Object()
    options = Object()
    steps = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    dispatch = DispatchSerializer(source="latest_dispatch", allow_null=True, help_text="Null once it was pruned.")
    tickets = TicketSerializer(many=True, source="open_tickets", help_text="Its open questions, the oldest first.")
    pauses = flow.PauseSerializer(many=True, help_text="That keep it from starting now, the oldest first.")
    limits = flow.KeepingLimitSerializer(many=True, help_text="That is reached and keeps it from starting now.")


class RunPageSerializer(serializers.Serializer[Any]):
    items = RunItemSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class CancelledSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField()
    outcome = Word(
        [outcome.value for outcome in cancel.Outcome],
        named="CancelOutcome",
        help_text="`requested`: its worker has been asked and has not stopped yet; `already_done`: it ended otherwise.",
    )
    status = Word(RunStatus)
    termination = Passed(TerminationSerializer)


class ClearedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    cancelled_run_ids = serializers.ListField(child=serializers.UUIDField(), help_text="They have ended cancelled.")
    requested_run_id = serializers.UUIDField(
        allow_null=True, help_text="The run whose worker has been asked, and has not stopped yet."
    )


class MadeDueSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField()
    dispatch_id = serializers.UUIDField()
    changed = serializers.BooleanField(help_text="False: it could start already.")


class ActivationSerializer(DispatchSerializer):
    """One activation of a run: its delivery and what came of it."""

    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField()
    agent = serializers.CharField()
    cancel_requested_at = Instant(allow_null=True)
    claimed_at = Instant(allow_null=True)
    termination = Passed(TerminationSerializer)
    error = Passed(RunErrorSerializer)
    resolution = serializers.CharField(allow_blank=True, help_text="`replayed` or `discarded`; blank otherwise.")
    resolved_at = Instant(allow_null=True)
    created_at = Instant()


class ActivationPageSerializer(serializers.Serializer[Any]):
    items = ActivationSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class DeadLetterSerializer(ActivationSerializer):
    """A dispatch that failed for good."""

    last_error = serializers.CharField(allow_null=True, help_text="The whole error; null for all but the staff.")


class DeadLetterPageSerializer(serializers.Serializer[Any]):
    items = DeadLetterSerializer(many=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="Opaque; null on the last page.")
    has_more = serializers.BooleanField()


class ReplayedSerializer(serializers.Serializer[Any]):
    thread_id = serializers.UUIDField()
    run_id = serializers.UUIDField(help_text="The new run.")
    dispatch_id = serializers.UUIDField()
    replay_of = serializers.UUIDField(help_text="The run whose dead letter it was.")
    status = Word(RunStatus)


class RefusedReplaySerializer(serializers.Serializer[Any]):
    dispatch_id = serializers.UUIDField()
    code = serializers.CharField()


class ReplayBatchSerializer(serializers.Serializer[Any]):
    replayed = ReplayedSerializer(many=True)
    refused = RefusedReplaySerializer(many=True, help_text="They are left as they are.")
    has_more = serializers.BooleanField(help_text="More match than were gone through: ask again.")


_KINDS = ", ".join(one.kind for one in DESCRIBED.values() if one.seen_by is not SeenBy.OPERATORS)


class EventSerializer(serializers.Serializer[Event]):
    cursor = serializers.IntegerField(help_text="Its number in the thread, in commit order.")
    kind = serializers.CharField(help_text=f"One of the agent's own, or {_KINDS}.")
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
    parent_id = serializers.UUIDField(allow_null=True, help_text="The thread of the run that has spawned its first.")
    last_seq = serializers.IntegerField(help_text="Messages in its log.")
    last_cursor = serializers.IntegerField(help_text="The latest event's cursor.")
    open_run_id = serializers.UUIDField(allow_null=True)
    latest_run_id = serializers.UUIDField(allow_null=True)
    blocked_reason = serializers.CharField(
        allow_blank=True,
        help_text=f"Why what is queued does not start: {', '.join(BlockedReason.values)}; or blank. `scope_limit`: the "
        "limit of its scope is reached; the limit of an agent is no block, see `limits`.",
    )
    created_at = Instant()
    updated_at = Instant()


class ThreadDetailSerializer(ThreadSerializer):
    """A thread, with what keeps it from going on."""

    pauses = flow.PauseSerializer(many=True, help_text="That keep it from going on now, the oldest first.")
    limits = flow.KeepingLimitSerializer(many=True, help_text="That is reached and keeps it from going on now.")


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
