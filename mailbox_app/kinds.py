"""The names of the events the system records. What each says, and when: `mailbox_app/payloads.py`."""

from django.db.models import TextChoices


class Kind(TextChoices):
    """Events the system records. An agent's own kinds (`ctx.emit`) must not be among them."""

    THREAD_CREATED = "ThreadCreated"
    THREAD_UPDATED = "ThreadUpdated"
    THREAD_DELETED = "ThreadDeleted"
    THREAD_PAUSED = "ThreadPaused"
    THREAD_RESUMED = "ThreadResumed"
    THREAD_INTERRUPTED = "ThreadInterrupted"
    RUN_QUEUED = "RunQueued"
    RUN_STARTED = "RunStarted"
    RUN_RESUMED = "RunResumed"
    RUN_RESCHEDULED = "RunRescheduled"
    RUN_SUSPENDED = "RunSuspended"
    TURN_STARTED = "TurnStarted"
    RUN_CANCEL_REQUESTED = "RunCancelRequested"
    RUN_INTERRUPTED = "RunInterrupted"
    # A question to a human, and its answer.
    TOOL_PERMISSION_REQUESTED = "ToolPermissionRequested"
    TOOL_PERMISSION_RESOLVED = "ToolPermissionResolved"
    DECISION_RECEIVED = "MailboxDecisionReceived"
    MESSAGE_COMMITTED = "MessageCommitted"
    MESSAGE_EDITED = "MessageEdited"
    MESSAGE_RETRACTED = "MessageRetracted"
    MESSAGE_REQUEUED = "MessageRequeued"
    MESSAGES_JOINED = "MessagesJoined"
    MESSAGES_REORDERED = "MessagesReordered"
    # On the thread of the run that spawned it.
    CHILD_SPAWNED = "ChildRunSpawned"
    CHILD_ENDED = "ChildRunEnded"
    DELIVERY_FAILED = "DeliveryFailed"
    RUN_FINISHED = "RunFinished"
    RUN_ERRORED = "RunErrored"
    RUN_CANCELLED = "RunCancelled"
    # Stopped by a rule: a wait that nobody ended in time.
    RUN_TERMINATED = "RunTerminated"
    # What operators did.
    RUN_MADE_DUE = "RunMadeDue"
    DEAD_LETTER_REPLAYED = "DeadLetterReplayed"
    DEAD_LETTER_DISCARDED = "DeadLetterDiscarded"


# After one of these a run says nothing more.
TERMINAL_KINDS = (Kind.RUN_FINISHED, Kind.RUN_ERRORED, Kind.RUN_CANCELLED, Kind.RUN_TERMINATED)
