"""Accept work: a message posted to a thread becomes a run that will answer it, in one transaction."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, OperationalError, connection, transaction

from mailbox_app import catalogue, hints, tracing
from mailbox_app.conf import conf
from mailbox_app.errors import ActiveRunConflict, AlreadyExists, DuplicateKey, InvalidInput, Retryable, UnknownAgent
from mailbox_app.models import AgentRegistration, Run, Thread
from mailbox_app.operations import emit, enqueue, inputs
from mailbox_app.states import RunStatus

IF_ACTIVE = ("enqueue", "reject")
_FURTHEST = timedelta(days=366)
# SQLSTATE of deadlock_detected and serialization_failure.
_LOST_TO_ANOTHER = ("40P01", "40001")
_DEADLOCK_ATTEMPTS = 3
# In the order of the hashes, so that two submissions with several keys take them alike. The ORM has no advisory locks.
_RESERVE = """
    SELECT pg_advisory_xact_lock(hash)
    FROM (SELECT DISTINCT hashtextextended(name, 0) AS hash FROM unnest(%(names)s::text[]) AS name ORDER BY 1) AS hashes
"""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a caller gets for an accepted submission."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    dispatch_id: uuid.UUID
    message_ids: list[uuid.UUID]
    status: str


def run(
    *,
    scope: str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    agent: str = "",
    thread_id: uuid.UUID | str | None = None,
    thread_key: str | None = None,
    if_active: str = "enqueue",
    priority: int | None = None,
    available_at: datetime | None = None,
    dedupe_key: str | None = None,
    max_attempts: int | None = None,
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    origin: str = "python",
) -> Receipt:
    """Queue a run that answers the messages; it is durable when the transaction, maybe the caller's own, commits.

    1. check the input; 2. reserve its unique keys, find or make the thread; 3. take its fence; 4. resolve the agent and
    refuse what must be refused; 5. write messages, run, dispatch and event; 6. after commit, wake a worker.

    `thread_id` names an existing thread, `thread_key` one that is made if it is missing; neither: a new thread. A blank
    `agent` is the thread's last run's, else the setting `default_agent`. `if_active`: "enqueue", or "reject" while the
    thread has an open run. `priority` is 0 (first) to 255.

    Raises InvalidInput, UnknownAgent, ThreadNotFound, Gone, ActiveRunConflict, DuplicateKey, AlreadyExists, Retryable;
    each leaves nothing behind.
    """
    scope = inputs.text("scope", scope)
    checked = inputs.messages(messages)
    agent = inputs.text("agent", agent, may_be_blank=True).strip()
    wanted_id = inputs.identifier("thread_id", thread_id)
    wanted_key = inputs.optional_text("thread_key", thread_key)
    if wanted_id is not None and wanted_key is not None:
        raise InvalidInput("thread_key", "contradiction", "thread_id and thread_key must not be given together")
    inputs.choice("if_active", if_active, IF_ACTIVE)
    if priority is not None:
        inputs.whole("priority", priority, least=0, most=255)
    if max_attempts is not None:
        inputs.whole("max_attempts", max_attempts, least=1, most=1000)
    inputs.instant("available_at", available_at)
    dedupe_key = inputs.optional_text("dedupe_key", dedupe_key)
    options, metadata = inputs.mapping("options", options), inputs.mapping("metadata", metadata)

    def specify(thread: Thread) -> enqueue.RunSpec:
        name = agent or _last_agent(thread)
        wishes = agent_options(name)
        if available_at is not None and available_at - thread.locked_at > _FURTHEST:
            raise InvalidInput("available_at", "too_far", "available_at must be within 366 days from now")
        return enqueue.RunSpec(
            agent=name,
            queue=wishes.get("queue") or conf.default_queue,
            priority=_first(priority, wishes.get("priority"), conf.default_priority),
            max_attempts=_first(max_attempts, wishes.get("max_attempts"), conf.max_attempts),
            # What lies in the past is for now, and goes before nobody who came earlier.
            available_at=None if available_at is None else max(available_at, thread.locked_at),
            dedupe_key=dedupe_key,
            origin=origin,
            options=options,
            metadata=metadata,
        )

    unique = [f"dedupe_key:{dedupe_key}"] if dedupe_key is not None else []
    unique += [f"client_id:{one.client_id}" for one in checked if one.client_id is not None]

    def write() -> Receipt:
        with transaction.atomic():
            _reserve(scope, unique)
            with Thread.objects.fence(_thread(scope, wanted_id, wanted_key), scope=scope) as thread:
                spec = specify(thread)
                if if_active == "reject" and thread.open_run_id is not None:
                    raise ActiveRunConflict(
                        f"thread {thread.pk} has the open run {thread.open_run_id}",
                        thread_id=thread.pk,
                        run_id=thread.open_run_id,
                    )
                if thread.last_cursor == 0:
                    emit.thread_created(thread)
                queued = enqueue.run(thread=thread, messages=checked, spec=spec)
            hints.tell(thread)
        return Receipt(
            thread_id=thread.pk,
            run_id=queued.run.pk,
            dispatch_id=queued.dispatch.pk,
            message_ids=queued.message_ids,
            status=RunStatus.CREATED,
        )

    with tracing.submit_span(agent=agent or None) as note:
        try:
            receipt = _again_if_deadlocked(write)
        except IntegrityError as error:
            raise _refusal(error, scope, dedupe_key) from error
        note(thread_id=receipt.thread_id, run_id=receipt.run_id, dispatch_id=receipt.dispatch_id)
        return receipt


def thread(
    *,
    scope: str,
    key: str | None = None,
    title: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Thread:
    """Create a thread without a run. Raises InvalidInput, and AlreadyExists for a key in use."""
    fields = {
        "scope": inputs.text("scope", scope),
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


def agent_options(name: str) -> dict[str, Any]:
    """What the agent asks for, from its code here or from a worker's registration. Raises UnknownAgent."""
    spec = catalogue.find(name)
    if spec is not None:
        return catalogue.options(spec)
    registered = AgentRegistration.objects.filter(agent=name).remembered(conf.agent_memory_seconds)
    latest = registered.order_by("-seen_at", "-id").first()
    if latest is None:
        raise UnknownAgent(name)
    return dict(latest.options)


def _reserve(scope: str, names: Sequence[str]) -> None:
    """Wait here, before the fence, for whoever is writing the same unique keys: a thread must not wait for another one.

    The keys' own constraints decide; this lock, held until the transaction ends, only moves the waiting.
    """
    if names:
        with connection.cursor() as cursor:
            cursor.execute(_RESERVE, {"names": [f"mailbox:{scope}:{name}" for name in names]})


def _thread(scope: str, thread_id: uuid.UUID | None, key: str | None) -> uuid.UUID:
    """The id of the thread meant, made if it may be; the row is not locked yet."""
    if thread_id is not None:
        return thread_id
    if key is None:
        return Thread.objects.create(scope=scope).pk
    # ON CONFLICT DO NOTHING waits for whoever is inserting the same key; the next statement sees the winner's row.
    Thread.objects.bulk_create([Thread(scope=scope, key=key)], ignore_conflicts=True)
    return Thread.objects.in_scope(scope).not_deleted().values_list("pk", flat=True).get(key=key)


def _last_agent(thread: Thread) -> str:
    if thread.latest_run_id is not None:
        latest = Run.objects.filter(pk=thread.latest_run_id).values_list("agent", flat=True).first()
        if latest:
            return latest
    return str(conf.default_agent)


def _again_if_deadlocked(write: Callable[[], Receipt]) -> Receipt:
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


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _constraint(error: IntegrityError) -> str | None:
    return getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)


def _refusal(error: IntegrityError, scope: str, dedupe_key: str | None) -> Exception:
    """The refusal a unique constraint stands for; the error itself for any other."""
    match _constraint(error):
        case "run_dedupe_key_unique_while_not_done":
            rows = Run.objects.in_scope(scope).filter(dedupe_key=dedupe_key).not_done()
            holder = rows.values_list("pk", flat=True).first()
            return DuplicateKey(
                f"run {holder} holds the dedupe key {dedupe_key!r}", dedupe_key=dedupe_key, run_id=holder
            )
        case "message_client_id_unique_in_scope":
            return AlreadyExists("a message with one of these client_ids exists", field="messages.client_id")
        case _:
            return error
