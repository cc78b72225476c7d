"""Say something: to a thread, whoever answers it there, or to one run."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction

from mailbox_app import hints
from mailbox_app.errors import ActiveRunConflict, Gone, InvalidInput, RunNotFound
from mailbox_app.models import Boundary, Dispatch, Run, Thread
from mailbox_app.operations import deliver, feed, inputs, keys, submission, submit
from mailbox_app.operations.delivery import Delivery
from mailbox_app.operations.submit import Receipt as Receipt


def to_thread(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    agent: str = "",
    if_active: str | None = None,
    expected_run_id: uuid.UUID | str | None = None,
    message_id: str | None = None,
    delivery: Mapping[str, Any] | None = None,
    origin: str = "python",
    by: str = "",
) -> Receipt:
    """Say something to a thread; the receipt names the run that will answer it, as far as can be known.

    A run that waits for input (`ctx.suspend("user_input")`) goes on with it, if it is of that agent or none is named.
    Else the messages join the run in which what was said before waits to be read, or get one of their own; but for
    `if_active` and `delivery`, which mean what they do for `submit.run`. `message_id` (with one message and nothing
    else) makes it durable: however often it comes, it is said once. `by` names the caller, for `cancel.run`.

    Raises what `submit.run` and `deliver.message` do; each leaves nothing behind.
    """
    if message_id is not None:
        others = {"if_active": if_active, "expected_run_id": expected_run_id, "delivery": delivery}
        return _durable(
            scope, thread_id, messages, agent, inputs.text("message_id", message_id), origin, without=others
        )
    given = submission.check(
        scope=scope,
        thread_id=thread_id,
        messages=messages,
        agent=agent,
        if_active=if_active,
        expected_run_id=expected_run_id,
        delivery=delivery,
        origin=origin,
    )
    if given.thread_id is None:
        raise InvalidInput("thread_id", "required", "thread_id is required")
    given.is_posted, given.by = True, by
    return submit.write([given])[0]


def to_run(
    *,
    scope: str,
    run_id: uuid.UUID | str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    origin: str = "python",
) -> Receipt:
    """Say something to an open run: it reads it at its next step or, if it waits for input, goes on with it.

    What it does not come to read is its next turn or, if it ends otherwise, gets a run of its own. Raises InvalidInput,
    RunNotFound, Gone, AlreadyExists, and ActiveRunConflict when the run is not the open one of its thread.
    """
    found_id = inputs.identifier("run_id", run_id) or uuid.UUID(int=0)
    thread_id = Run.objects.in_scope(inputs.text("scope", scope)).filter(pk=found_id)
    found = thread_id.values_list("thread_id", flat=True).first()
    if found is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    given = submission.check(scope=scope, thread_id=found, messages=messages, origin=origin)
    how = Delivery(boundary=Boundary.NEXT_STEP)
    try:
        with transaction.atomic():
            keys.reserve([given])
            with Thread.objects.fence(found, scope=scope) as thread:
                run = Run.objects.filter(pk=found_id).first()
                if run is None:
                    raise Gone(f"run {run_id} has been deleted", run_id=run_id)
                if thread.open_run_id != run.pk:
                    stands = f"run {run.pk} is {run.status}, and not open"
                    raise ActiveRunConflict(stands, thread_id=thread.pk, run_id=thread.open_run_id)
                fed = feed.open_run(thread=thread, run=run, messages=given.messages, delivery=how)
            hints.tell(thread)
    except IntegrityError as error:
        raise submit.refusal(error, [given]) from error
    return Receipt(
        thread_id=thread.pk,
        run_id=run.pk,
        dispatch_id=fed.dispatch.pk,
        message_ids=[message.pk for message in fed.messages],
        status=run.status,
    )


def _durable(
    scope: str,
    thread_id: uuid.UUID | str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    agent: str,
    message_id: str,
    origin: str,
    *,
    without: Mapping[str, Any],
) -> Receipt:
    """Say it once per `message_id`, in a run of its own; what else could be asked for contradicts that."""
    for name, value in without.items():
        if value is not None and (name, value) != ("if_active", "enqueue"):
            raise InvalidInput(name, "contradiction", f"{name} and message_id must not be given together")
    said = inputs.messages(messages)
    if len(said) != 1:
        raise InvalidInput("messages", "too_many", f"message_id is that of one message, not of {len(said)}")
    if said[0].client_id is not None:
        raise InvalidInput("messages[0].client_id", "contradiction", "message_id is the message's client_id")
    sent = deliver.message(
        scope=scope,
        thread_id=thread_id,
        message_id=message_id,
        content=said[0].content,
        role=said[0].role,
        agent=agent,
        metadata=said[0].metadata,
        sender=said[0].sender,
        visibility=said[0].visibility,
        origin=origin,
    )
    status = Run.objects.values_list("status", flat=True).get(pk=sent.run_id)
    latest = Dispatch.objects.of_run(sent.run_id).order_by("-created_at", "-id").values_list("pk", flat=True).first()
    return Receipt(
        thread_id=sent.thread_id,
        run_id=sent.run_id,
        dispatch_id=latest,
        message_ids=[sent.message_id],
        status=status,
    )
