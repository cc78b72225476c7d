"""Accept work: a message posted to a thread becomes a run that will answer it, in one transaction."""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from django.db import IntegrityError, OperationalError, transaction

from mailbox_app import hints, tracing
from mailbox_app.conf import conf
from mailbox_app.errors import AlreadyExists, DuplicateKey, InvalidInput, Retryable
from mailbox_app.models import Boundary, Run, Thread
from mailbox_app.operations import accept, agents, emit, inputs, keys, room, submission
from mailbox_app.operations.accept import Receipt as Receipt
from mailbox_app.operations.submission import Submission

# SQLSTATE of deadlock_detected and serialization_failure.
_LOST_TO_ANOTHER = ("40P01", "40001")
_DEADLOCK_ATTEMPTS = 3


def run(
    *,
    scope: str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    agent: str = "",
    thread_id: uuid.UUID | str | None = None,
    thread_key: str | None = None,
    if_active: str | None = None,
    expected_run_id: uuid.UUID | str | None = None,
    delivery: Mapping[str, Any] | None = None,
    priority: int | None = None,
    available_at: datetime | None = None,
    dedupe_key: str | None = None,
    client_id: str | None = None,
    max_attempts: int | None = None,
    config_version: str = "",
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    origin: str = "python",
) -> Receipt:
    """Queue a run that answers the messages; it is durable when the transaction, maybe the caller's own, commits.

    1. check the input; 2. reserve its unique keys, find or make the thread; 3. take its fence; 4. resolve the agent and
    refuse what must be refused; 5. write messages, run, dispatch and event; 6. after commit, wake a worker.

    `thread_id` names an existing thread, `thread_key` one that is made if it is missing; neither: a new thread. A blank
    `agent` is the thread's last run's, else the setting `default_agent`. `if_active`: "enqueue" (None); "reject" while
    the thread has an open run; "steer" has an open run of that agent read the messages at its next step, and what it
    comes not to read get a run of its own; "interrupt" stops what is open or due on the thread, as `interrupt.thread`
    does, and reads what that has not read before its own messages. `expected_run_id`: only while that run is the open
    one. `delivery` says more than `if_active` does, as `delivery.Delivery` has it. `priority` is 0 (first) to 255.
    `client_id` is the caller's own name for the run, which no other of the scope ever has. `config_version` names a
    published AgentVersion; blank: the latest one, if there is any.

    Raises InvalidInput, UnknownAgent, ThreadNotFound, Gone, ActiveRunConflict, DuplicateKey, AlreadyExists,
    DeliveryBlockedByBarrier, MailboxFull, Retryable; each leaves nothing behind.
    """
    given = locals()
    return write([submission.check(**given)])[0]


def many(
    *, scope: str, submissions: Sequence[Mapping[str, Any]], origin: str = "python", most: int | None = None
) -> list[Receipt]:
    """Queue many runs in one transaction, all or none; each submission has the arguments of `run` but scope and origin.

    Receipts come in the order of the submissions, and on one thread the runs are queued in that order. `most`: how many
    are allowed (None: `max_batch_runs`). Raises what `run` does; the fields of an InvalidInput begin with `runs[3].`.
    """
    limit = conf.max_batch_runs if most is None else most
    if isinstance(submissions, str | bytes | Mapping) or not isinstance(submissions, Sequence) or not submissions:
        raise InvalidInput("runs", "empty", "runs must be a list of at least one submission")
    if len(submissions) > limit:
        raise InvalidInput("runs", "too_many", f"runs holds {len(submissions)} entries, at most {limit} are allowed")
    checked = []
    for index, one in enumerate(submissions):
        with inputs.within(f"runs[{index}]"):
            if not isinstance(one, Mapping):
                raise InvalidInput("", "not_an_object", f"must be an object, not {type(one).__name__}")
            unknown = sorted(str(name) for name in set(one) - submission.ARGUMENTS)
            if unknown:
                raise InvalidInput(unknown[0], "unknown_field", f"there is no field {unknown[0]!r:.100}")
            if "messages" not in one:
                raise InvalidInput("messages", "required", "messages is required")
            checked.append(submission.check(**{**one, "scope": scope, "origin": origin}))
    return write(checked, is_batch=True)


def messages(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    boundary: str,
    origin: str = "python",
) -> Receipt:
    """Say something to the thread's open run: it reads it at its next checkpoint (`next_step`), or when it would end
    (`on_natural_end`), as its next turn. Without an open run: `run`.

    Should the run end otherwise before it has read them, they get a run of their own. Raises what `run` does.
    """
    wanted = inputs.choice("boundary", boundary, (Boundary.NEXT_STEP, Boundary.ON_NATURAL_END))
    how = {"boundary": wanted}
    given = submission.check(scope=scope, thread_id=thread_id, messages=messages, delivery=how, origin=origin)
    return write([given])[0]


def write(submissions: list[Submission], *, is_batch: bool = False) -> list[Receipt]:
    """Write all of it in one transaction, again if PostgreSQL fails it to break a deadlock."""

    def write() -> list[Receipt]:
        with transaction.atomic():
            keys.reserve(submissions)
            threads = _threads(submissions)
            with Thread.objects.hold(list({id(thread): thread for thread in threads}.values())) as held:
                receipts = []
                space, latest = room.Room(), functools.cache(agents.latest_version)
                for index, (one, thread) in enumerate(zip(submissions, threads, strict=True)):
                    with inputs.within(f"runs[{index}]") if is_batch else nullcontext():
                        receipts.append(accept.one(one, thread, space=space, latest_version=latest))
            hints.tell(*held)
        return receipts

    names = {one.agent for one in submissions}
    with tracing.submit_span(agent=names.pop() or None if len(names) == 1 else None) as note:
        try:
            receipts = _again_if_deadlocked(write)
        except IntegrityError as error:
            raise refusal(error, submissions) from error
        first = receipts[0]
        note(thread_id=first.thread_id, run_id=first.run_id, dispatch_id=first.dispatch_id)
        return receipts


def thread(
    *,
    scope: str,
    key: str | None = None,
    title: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Thread:
    """Create a thread without a run. Raises InvalidInput, and AlreadyExists for a key in use."""
    fields = {
        "scope": inputs.scope(scope),
        "key": inputs.optional_text("key", key),
        "title": inputs.text("title", title, most=500, may_be_blank=True),
        "metadata": inputs.mapping("metadata", metadata),
    }
    try:
        with transaction.atomic(), Thread.objects.fence(Thread.objects.create(**fields).pk) as created:
            emit.thread_created(created)
    except IntegrityError as error:
        if _constraint(error) == "thread_key_unique_in_scope":
            raise AlreadyExists(f"a thread with the key {key!r} exists", field="key", key=key) from error
        raise
    return created


def _threads(submissions: Sequence[Submission]) -> list[Thread]:
    """The thread of each submission: locked, or made here and not written yet. The same one for the same id or key."""
    scope = submissions[0].scope
    wanted_keys = sorted({one.thread_key for one in submissions if one.thread_key is not None})
    ids = {one.thread_id for one in submissions if one.thread_id is not None}
    of_key = keys.of_threads(scope, wanted_keys) if wanted_keys else {}
    wanted = ids | set(of_key.values())
    locked = {thread.pk: thread for thread in Thread.objects.lock(sorted(wanted), scope=scope)} if wanted else {}
    return [
        locked[one.thread_id]
        if one.thread_id is not None
        else locked[of_key[one.thread_key]]
        if one.thread_key is not None
        else Thread(scope=scope)
        for one in submissions
    ]


def _again_if_deadlocked(write: Callable[[], list[Receipt]]) -> list[Receipt]:
    """Call it until PostgreSQL breaks no deadlock by failing it; in a caller's transaction it may fail only once."""
    is_ours = not transaction.get_connection().in_atomic_block
    for attempts_left in reversed(range(_DEADLOCK_ATTEMPTS)):
        try:
            return write()
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) not in _LOST_TO_ANOTHER:
                raise
            if not (is_ours and attempts_left):
                raise Retryable("another transaction was in the way; roll back and try again") from error
    raise AssertionError("unreachable")


def _constraint(error: IntegrityError) -> str | None:
    return getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)


def refusal(error: IntegrityError, submissions: Sequence[Submission]) -> Exception:
    """The refusal a unique constraint stands for; the error itself for any other."""
    match _constraint(error):
        case "run_dedupe_key_unique_while_not_done":
            keys = [one.dedupe_key for one in submissions if one.dedupe_key is not None]
            held = Run.objects.in_scope(submissions[0].scope).filter(dedupe_key__in=keys).not_done()
            key, holder = held.values_list("dedupe_key", "pk").first() or (_repeated(keys), None)
            return DuplicateKey(f"run {holder} holds the dedupe key {key!r}", dedupe_key=key, run_id=holder)
        case "run_client_id_unique_in_scope":
            names = [one.client_id for one in submissions if one.client_id is not None]
            known = Run.objects.in_scope(submissions[0].scope).filter(client_id__in=names)
            name, holder = known.values_list("client_id", "pk").first() or (_repeated(names), None)
            return AlreadyExists(f"run {holder} has the client_id {name!r}", field="client_id", run_id=holder)
        case "message_client_id_unique_in_scope":
            return AlreadyExists("a message with one of these client_ids exists", field="messages.client_id")
        case _:
            return error


def _repeated(keys: Sequence[str]) -> str:
    return next((key for place, key in enumerate(keys) if key in keys[:place]), "")
