"""What the events of the system say: of each kind when it is recorded, for whom, and the fields of its payload.

docs/events.md is printed from here. A field is added without further ado; one that goes,
or says something else, raises the `version` of its kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mailbox_app.kinds import Kind


class SeenBy(StrEnum):
    """Whom an event is shown to; internal ones to operators alone, in the admin."""

    ALL = "all"
    AS_MESSAGE = "as its message"
    OPERATORS = "operators"


class Correlation(StrEnum):
    """Whose id an event carries as its `correlation_id`."""

    THREAD = "thread"
    RUN = "run"
    DISPATCH = "dispatch"
    MESSAGE = "run, or message where it is nobody's"
    DECISION = "decision, or question where nobody decided"
    CHILD = "child run"
    OUTBOX = "what was sent"


@dataclass(frozen=True)
class Field:
    """One field of a payload. `is_optional`: it may be left out; `is_nullable`: it may be null."""

    name: str
    type: str
    meaning: str
    is_nullable: bool = False
    is_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Described:
    """A kind: when it is recorded, and its payload. `version` is the event's `schema_version`."""

    kind: Kind
    when: str
    fields: tuple[Field, ...]
    correlation: Correlation
    seen_by: SeenBy = SeenBy.ALL
    # Whether it is one of its run's events; else of the thread's alone.
    is_of_run: bool = True
    version: int = 1


_THREAD = Field("thread_id", "id", "the thread")
_RUN = Field("run_id", "id", "the run")
_DISPATCH = Field("dispatch_id", "id", "the activation")
_AGENT = Field("agent", "text", "the run's agent")
_MESSAGE = Field("message_id", "id", "the message")
ACTIVATION = (
    _THREAD,
    _RUN,
    _DISPATCH,
    _AGENT,
    Field("dispatch_epoch", "number", "the thread's epoch when it was queued"),
    Field("attempt_count", "number", "attempts that failed"),
    Field("lost_count", "number", "leases that were lost"),
)
_UNQUEUED = "left out where nothing of it was queued"
_ATTEMPT = Field("attempt", "number", "1 for the first, one more for each that failed or was lost")
_TURN = Field("turn", "number", "1 for the first")
_INPUT = Field("input", "object", "`from_seq`, `to_seq` and `message_ids` of the messages it reads")
_BY = Field("by", "text", "who did it; may be blank")
_REASON = Field("reason", "text", "what the caller gave for it; may be blank")
_TERMINATION = Field("termination", "object", "`type`, and `detail` where there is one")
_ERROR = Field("error", "object", "`code` and `message`")
_QUESTION = (
    _THREAD,
    _RUN,
    Field("dispatch_id", "id", "the activation that asked"),
    Field("ticket_id", "text", "the question"),
    Field("name", "text", "what the agent calls it"),
)
_DECISION = (
    _THREAD,
    _RUN,
    Field("dispatch_id", "id", "the activation that gets the answer, if there is one by now", is_nullable=True),
    Field("ticket_id", "text", "the question"),
    Field("name", "text", "what the agent calls it"),
    Field("decision_id", "text", "the answer; blank if there was none in time"),
    Field("action", "text", "`resume` or `cancel`"),
    Field("result", "anything", "the payload of the answer", is_nullable=True),
    Field("expired", "boolean", "whether nobody has answered in time"),
    Field("answered_by", "text", "who answered; may be blank"),
    Field("delivery_path", "text", "how it reaches the agent: `durable_dispatch`, `live` or `stored`"),
)


def _left_out(field: Field, why: str) -> Field:
    return replace(field, is_optional=True, meaning=f"{field.meaning}; {why}")


def _activation(kind: Kind, when: str, *fields: Field, seen_by: SeenBy = SeenBy.ALL) -> Described:
    given = (*ACTIVATION, *fields)
    return Described(kind=kind, when=when, fields=given, correlation=Correlation.DISPATCH, seen_by=seen_by)


def _thread(kind: Kind, when: str, *fields: Field) -> Described:
    given = (_THREAD, *fields)
    return Described(kind=kind, when=when, fields=given, correlation=Correlation.THREAD, is_of_run=False)


def _question(kind: Kind, when: str, *fields: Field) -> Described:
    return Described(kind=kind, when=when, fields=fields, correlation=Correlation.DECISION)


def _message(kind: Kind, when: str, *fields: Field) -> Described:
    given, seen_by = (_THREAD, *fields), SeenBy.AS_MESSAGE
    return Described(kind=kind, when=when, fields=given, correlation=Correlation.MESSAGE, seen_by=seen_by)


DESCRIBED: dict[Kind, Described] = {
    one.kind: one
    for one in (
        _thread(
            Kind.THREAD_CREATED,
            "The thread is made; always its first event.",
            Field("key", "text", "the caller's own name for it", is_nullable=True),
            Field("title", "text", "may be blank"),
        ),
        _thread(
            Kind.THREAD_UPDATED,
            "Its title or its metadata was changed.",
            Field("title", "text", "as it is now"),
            Field("changed", "texts", "what was changed: `title`, `metadata`"),
        ),
        _thread(
            Kind.THREAD_DELETED,
            "It was deleted; always its last event.",
            Field("key", "text", "the name it had, which is free again", is_nullable=True),
            Field("child_strategy", "text", "what became of the threads below it"),
        ),
        _thread(
            Kind.THREAD_PAUSED,
            "It was paused: nothing of it starts.",
            _BY,
            Field("note", "text", "why; may be blank"),
        ),
        _thread(Kind.THREAD_RESUMED, "Its pause was ended.", _BY),
        _thread(
            Kind.THREAD_INTERRUPTED,
            "What was open or due on it was stopped, after the events of each run that was.",
            Field("epoch", "number", "the thread's new epoch"),
            _REASON,
            Field("run_id", "id", "the open run that was ended or asked to stop", is_nullable=True),
            Field("superseded_run_ids", "ids", "queued runs that ended by it"),
            Field("held_message_ids", "ids", "messages that nobody reads until they are released"),
        ),
        _activation(
            Kind.RUN_QUEUED,
            "A run is accepted: it, its messages and its dispatch are written.",
            Field("message_ids", "ids", "what it was given to read"),
            Field("available_at", "time", "when it may start, if not at once", is_nullable=True),
            Field("replay_of", "id", "the run that it does again; only of a replay", is_optional=True),
        ),
        _activation(Kind.RUN_STARTED, "A worker begins it, and reads its input.", _ATTEMPT, _TURN, _INPUT),
        _activation(Kind.RUN_RESUMED, "A worker goes on with it: another attempt, or after a wait.", _ATTEMPT, _TURN),
        _activation(
            Kind.RUN_RESCHEDULED,
            "Its activation is queued again, or for another time.",
            Field("reason", "text", "`retry_backoff`, `expired_lease_reclaimed`, `handed_back` or `run_now`"),
            _left_out(_ERROR, "only of `retry_backoff`"),
            Field("retry_in_seconds", "number", "only of `retry_backoff`", is_optional=True),
        ),
        _activation(
            Kind.RUN_SUSPENDED,
            "It waits for somebody or something, and has no worker meanwhile.",
            _TURN,
            Field("termination", "object", "`type` is `suspended`, `detail` the reason of the wait"),
            Field("name", "text", "what the agent calls the wait; may be blank"),
            Field("message", "text", "what the agent says of it; may be blank"),
            Field("wait_until", "time", "the wait ends at last"),
            Field("resume_at", "time", "it goes on by itself", is_nullable=True),
        ),
        _activation(
            Kind.TURN_STARTED, "Input was there when it would have ended: it goes on, and reads that.", _TURN, _INPUT
        ),
        _activation(Kind.RUN_CANCEL_REQUESTED, "Its worker was asked to stop, by a cancel.", _REASON),
        _activation(Kind.RUN_INTERRUPTED, "Its worker was asked to stop, by an interrupt.", _REASON),
        _question(
            Kind.TOOL_PERMISSION_REQUESTED,
            "It has put a question to a human.",
            *_QUESTION,
            Field("question", "text", "for whoever answers"),
            Field("arguments", "object", "what it is about"),
            Field("schema", "object", "the JSON Schema an answer must keep to", is_nullable=True),
            Field("resume_mode", "text", "what becomes of the answer: for the team's own code"),
            Field("expires_at", "time", "it can be answered until then", is_nullable=True),
        ),
        _question(Kind.DECISION_RECEIVED, "A question has its answer, or got none in time.", *_DECISION),
        _question(
            Kind.TOOL_PERMISSION_RESOLVED,
            "After that, where the payload of the answer says `approved`: true or false.",
            *(replace(one, type="object", is_nullable=False) if one.name == "result" else one for one in _DECISION),
            Field("approved", "boolean", "what it says"),
        ),
        _message(
            Kind.MESSAGE_COMMITTED,
            "A message entered the log: a run has said it, or read it in the midst of a turn.",
            _RUN,
            _MESSAGE,
            Field("message_seq", "number", "its number in the log"),
            Field("producer_run_id", "id", "the run, if it has said it; null if it has read it", is_nullable=True),
            Field("role", "text", "`user`, `assistant`, `system` or `tool`"),
            Field("content", "anything", "text, or a list of parts"),
        ),
        _message(
            Kind.MESSAGE_EDITED,
            "A pending message was changed; what it says is not told.",
            _MESSAGE,
            Field("revision", "number", "its new revision"),
            Field("changed", "texts", "what was changed"),
        ),
        _message(
            Kind.MESSAGE_RETRACTED,
            "A pending message was withdrawn, or its target ended: nobody will read it.",
            _MESSAGE,
            Field("reason", "text", "`target_ended`, or what the caller gave; may be blank"),
        ),
        _message(
            Kind.MESSAGE_REQUEUED,
            "The run that was to read it, whose event this is, has not: another run will.",
            _MESSAGE,
            Field("run_id", "id", "the run that will read it"),
        ),
        _activation(
            Kind.MESSAGES_JOINED,
            "Something was said before the run started: it reads that too.",
            Field("message_ids", "ids", "what was said"),
        ),
        _thread(
            Kind.MESSAGES_REORDERED,
            "Pending messages were put in another order.",
            Field("message_ids", "ids", "those that were moved to the front"),
            Field("run_ids", "ids", "queued runs that moved with them"),
            Field("pending_revision", "number", "of the pending zone now"),
        ),
        _activation(
            Kind.CHILD_SPAWNED,
            "It has spawned a run.",
            Field("child_run_id", "id", "the run"),
            Field("child_thread_id", "id", "its own thread"),
            _MESSAGE,
        ),
        Described(
            kind=Kind.CHILD_ENDED,
            when="A run that it spawned has ended. Once it is done itself, an event of the thread alone.",
            fields=(
                _THREAD,
                Field("run_id", "id", "the run that spawned it, if it is still there", is_nullable=True),
                Field("child_run_id", "id", "the run that has ended"),
                Field("child_thread_id", "id", "its thread", is_nullable=True),
                Field("agent", "text", "its agent", is_nullable=True),
                Field("termination", "object", "how it ended: `type`, `detail`", is_nullable=True),
                Field("error", "object", "`code` and `message`", is_nullable=True),
            ),
            correlation=Correlation.CHILD,
        ),
        Described(
            kind=Kind.DELIVERY_FAILED,
            when="What it sent to another thread will not arrive.",
            fields=(
                _THREAD,
                Field("outbox_id", "id", "what was sent"),
                Field("target_thread_id", "id", "where to"),
                Field("message_id", "text", "the sender's name for the message", is_nullable=True),
                Field("attempt_count", "number", "how often it was tried"),
                _ERROR,
            ),
            correlation=Correlation.OUTBOX,
        ),
        _activation(
            Kind.RUN_FINISHED,
            "It is done, after its answer was committed.",
            _TERMINATION,
            Field("final_output", "anything", "what the agent returned, unless that is nothing", is_optional=True),
        ),
        _activation(
            Kind.RUN_ERRORED, "It is done, with an error; its activation is a dead letter.", _TERMINATION, _ERROR
        ),
        Described(
            kind=Kind.RUN_CANCELLED,
            when="It is done: cancelled, interrupted, or left with nothing to read.",
            fields=(
                *(one if one in (_THREAD, _RUN, _AGENT) else _left_out(one, _UNQUEUED) for one in ACTIVATION),
                _left_out(_TERMINATION, "of one that began, or that somebody cancelled"),
                _left_out(_REASON, "unless its worker has ended it"),
            ),
            correlation=Correlation.DISPATCH,
        ),
        _activation(Kind.RUN_TERMINATED, "It is done, stopped by a rule: nobody ended its wait in time.", _TERMINATION),
        _activation(Kind.RUN_MADE_DUE, "Somebody had it start now.", _BY, seen_by=SeenBy.OPERATORS),
        _activation(
            Kind.DEAD_LETTER_REPLAYED,
            "Somebody had a dead letter run again.",
            _BY,
            Field("fresh", "boolean", "whether without what was done before"),
            Field("replayed_as", "id", "the new run"),
            seen_by=SeenBy.OPERATORS,
        ),
        _activation(
            Kind.DEAD_LETTER_DISCARDED,
            "Somebody said that a dead letter needs nothing more.",
            _BY,
            _REASON,
            seen_by=SeenBy.OPERATORS,
        ),
    )
}


def reference() -> str:
    """Every kind as Markdown: a table of them all, and one of each payload."""
    lines = ["| kind | when | event of | seen by | `correlation_id` is of the |", "|---|---|---|---|---|"]
    for one in DESCRIBED.values():
        of = "run" if one.is_of_run else "thread"
        lines.append(f"| [`{one.kind}`](#{one.kind.lower()}) | {one.when} | {of} | {one.seen_by} | {one.correlation} |")
    lines += ["", "## Payloads", "", "**Of an activation**, in each kind that says so:", "", *_table(ACTIVATION)]
    for one in DESCRIBED.values():
        own = [field for field in one.fields if field not in ACTIVATION]
        has_all = one.fields[: len(ACTIVATION)] == ACTIVATION
        lines += ["", f"### {one.kind}", ""]
        if one.version > 1:
            lines += [f"Its `schema_version` is {one.version}.", ""]
        if has_all:
            lines += ["Of an activation" + (", and:" if own else "."), ""]
        lines += _table(own if has_all else one.fields)
    return "\n".join(lines) + "\n"


def _table(fields: Sequence[Field]) -> Iterator[str]:
    if fields:
        yield from ("| field | type | what it says |", "|---|---|---|")
    for one in fields:
        type_ = f"{one.type} or null" if one.is_nullable else one.type
        yield f"| `{one.name}`{', may be left out' if one.is_optional else ''} | {type_} | {one.meaning} |"
