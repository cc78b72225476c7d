"""Let a waiting run go on: what it waited for has come."""

import uuid
from dataclasses import dataclass
from typing import Any

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import Conflict, Gone, RunNotFound
from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import enqueue, inputs, waits
from mailbox_app.states import LIVE_DISPATCH, RunStatus


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """`status`: "resumed", and by which dispatch; or "stored", until the run waits for it."""

    run_id: uuid.UUID
    thread_id: uuid.UUID
    status: str
    dispatch_id: uuid.UUID | None


def run(
    *, scope: str, run_id: uuid.UUID | str, name: str = "", payload: Any = None, resume_id: str | None = None
) -> Resumed:
    """End the run's wait of this name: the agent is called again and `ctx.suspend` returns the payload.

    1. check the input; 2. take the fence; 3. the run waits for it: journal the payload and queue the dispatch that goes
    on; 4. it does not, or not yet: store it for the next wait of that name; 5. after commit, wake a worker.

    A rate limit is over at once. Sent again under its `resume_id`, it changes nothing and gets the first answer. Raises
    InvalidInput, RunNotFound, Gone, and Conflict when the run is done, when the id came with something else, or when
    too many resumes are stored.
    """
    inputs.text("scope", scope)
    found_id = inputs.identifier("run_id", run_id) or uuid.UUID(int=0)
    inputs.text("name", name, may_be_blank=True)
    inputs.optional_text("resume_id", resume_id)
    payload = inputs.document("payload", payload, most_bytes=conf.max_metadata_bytes)
    thread_id = Run.objects.in_scope(scope).filter(pk=found_id).values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    with Thread.objects.fence(thread_id) as thread:
        found = Run.objects.filter(pk=found_id).first()
        if found is None:
            raise Gone(f"run {run_id} has been deleted", run_id=run_id)
        given = {
            "name": name,
            "payload": payload,
            "resume_id": resume_id,
            "digest": waits.digest(name, payload),
            "taken": False,
        }
        answer = _repeated(found, given) or _resumed(thread, found, given)
    hints.tell(thread)
    return answer


def _repeated(found: Run, given: dict[str, Any]) -> Resumed | None:
    if given["resume_id"] is None:
        return None
    before = waits.sent_before(found, given["resume_id"])
    if before is None:
        return None
    if before["digest"] != given["digest"]:
        raise Conflict(f"the resume_id {given['resume_id']!r} came with another name or payload", run_id=found.pk)
    return _answer(found, before)


def _resumed(thread: Thread, found: Run, given: dict[str, Any]) -> Resumed:
    if found.status == RunStatus.DONE:
        raise Conflict(f"run {found.pk} is done", run_id=found.pk)
    dispatch = _ending(thread, found, given)
    given["dispatch_id"] = None if dispatch is None else str(dispatch.pk)
    if dispatch is None:
        thread.change(found, resumes=waits.with_stored(found, given))
    else:
        thread.change(found, resumes=waits.with_taken(found, given), resume_at=None)
    return _answer(found, given)


def _ending(thread: Thread, found: Run, given: dict[str, Any]) -> Dispatch | None:
    """Queue, or bring forward, the dispatch by which the run goes on with what came; None: it does not wait for it."""
    waiting = found.waiting or {}
    if waiting.get("reason") not in waits.REASONS or waiting.get("name") != given["name"]:
        return None
    queued = Dispatch.objects.of_run(found.pk).filter(status__in=LIVE_DISPATCH).first()
    if queued is None:
        waits.record(thread, found, waiting["entry"], given["payload"])
        after = waits.last_dispatch(found)
        return enqueue.resume(thread=thread, run=found, after=after, at=thread.locked_at)
    if found.resume_at is None:
        return None  # it goes on already
    waits.change_record(thread, found, waiting["entry"], given["payload"])
    thread.change(queued, available_at=thread.locked_at)
    return queued


def _answer(found: Run, one: dict[str, Any]) -> Resumed:
    dispatch_id = one["dispatch_id"]
    return Resumed(
        run_id=found.pk,
        thread_id=found.thread_id,
        status="stored" if dispatch_id is None else "resumed",
        dispatch_id=None if dispatch_id is None else uuid.UUID(dispatch_id),
    )
