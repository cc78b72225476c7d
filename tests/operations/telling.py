"""Every way in which an event comes about: what stands before, the verb, and the events it records, in order.

Each case prepares the rows and returns the verb as a call, so that a test can watch it, or have it fail.
"""

import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, Message, Run
from mailbox_app.operations import (
    cancel,
    checkpoint,
    children,
    claim,
    deliver,
    interrupt,
    keys,
    missing,
    pauses,
    pending,
    post,
    recover,
    replay,
    settle,
    submit,
    threads,
    tick,
)
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import asking, family, scene

Verb = Callable[[], Any]

HOUR = timedelta(hours=1)


def say(of: Any, *texts: str, **more: Any) -> submit.Receipt:
    return post.to_thread(scope=scene.SCOPE, thread_id=of.thread_id, messages=list(texts), **more)


def say_at(of: Any, boundary: str, **more: Any) -> submit.Receipt:
    return say(of, "late", delivery={"boundary": boundary, **more})


def on_thread(of: Any) -> dict[str, Any]:
    return {"scope": scene.SCOPE, "thread_id": of.thread_id}


def finished() -> Claim:
    found = scene.posted_and_taken()
    settle.complete(found, output="done")
    return found


def buried() -> Claim:
    found = scene.posted_and_taken()
    settle.dead_letter(found, code="permanent", message="no")
    return found


def renewed(of: Claim) -> Claim:
    """Its lease was renewed meanwhile: no event is to tell of that."""
    claim.renew(tokens=[of.token])
    return of


# Threads


def a_thread() -> Verb:
    return partial(submit.thread, scope=scene.SCOPE, key="k", title="Refund")


def a_submission() -> Verb:
    return scene.post


def a_scheduled_submission() -> Verb:
    return partial(scene.post, thread_id=finished().thread_id, available_at=scene.database_now() + HOUR)


def a_change() -> Verb:
    return partial(threads.change, **on_thread(finished()), title="Refund", metadata={"a": 1})


def a_change_of_a_thread_nothing_has_arrived_on() -> Verb:
    """It was made by its key, for a message that is still on its way."""
    found = keys.of_threads(scene.SCOPE, ["there"])
    return partial(threads.change, scope=scene.SCOPE, thread_id=found["there"], title="Refund")


def a_deletion() -> Verb:
    return partial(threads.delete, **on_thread(finished()))


def a_deletion_of_a_named_thread() -> Verb:
    return partial(threads.delete, scope=scene.SCOPE, thread_id=a_thread()().pk)


def a_pause() -> Verb:
    return partial(pauses.pause, kind="thread", name=str(finished().thread_id), by="ann", note="wait")


def the_end_of_a_pause() -> Verb:
    pause = a_pause()
    name = pause().pause.name
    return partial(pauses.resume, kind="thread", name=name, by="ann")


def an_interrupt() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    scene.post(thread_id=claimed.thread_id)
    return partial(interrupt.thread, **on_thread(claimed), reason="stop")


def an_interrupt_of_what_waits() -> Verb:
    claimed = scene.posted_and_taken()
    settle.suspend(claimed, scene.wait())
    return partial(interrupt.thread, **on_thread(claimed))


def an_interrupting_submission() -> Verb:
    posted = scene.post("first")
    return partial(scene.post, "second", thread_id=posted.thread_id, if_active="interrupt")


# Activations


def a_start() -> Verb:
    scene.post()
    return scene.taken


def another_attempt() -> Verb:
    settle.nack(renewed(scene.posted_and_taken()), code="transient", message="no", retry_after=0)
    return scene.taken


def a_failure() -> Verb:
    return partial(settle.nack, renewed(scene.posted_and_taken()), code="transient", message="no")


def a_lost_lease() -> Verb:
    scene.expire_lease(scene.posted_and_taken())
    return recover.reclaim


def a_run_that_is_handed_back() -> Verb:
    return partial(settle.hand_back, tokens=[renewed(scene.posted_and_taken()).token])


def a_run_that_is_made_due() -> Verb:
    posted = scene.post(available_at=scene.database_now() + HOUR)
    return partial(tick.run_now, run_id=posted.run_id, by="ann")


def a_wait() -> Verb:
    return partial(settle.suspend, renewed(scene.posted_and_taken()), scene.wait(name="payment"))


def a_wait_for_a_time() -> Verb:
    return partial(settle.suspend, scene.posted_and_taken(), scene.wait("rate_limit", seconds=60.0))


def the_end_of_a_wait() -> Verb:
    claimed, (ticket,) = asking.waiting()
    asking.answer(claimed, ticket)
    return scene.taken


def another_turn() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    say_at(claimed, "on_natural_end")
    return partial(settle.complete, claimed, output="done")


def a_request_to_stop() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    return partial(cancel.run, scope=scene.SCOPE, run_id=claimed.run_id, reason="enough")


# Questions


def a_question() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    return partial(checkpoint.ask, claimed, [asking.question(claimed)])


def a_question_with_a_schema_and_an_end() -> Verb:
    claimed = scene.posted_and_taken()
    question = asking.question(claimed, schema={"type": "object"}, expires_in=60.0, arguments={"cents": 1})
    return partial(checkpoint.ask, claimed, [question])


def an_approval() -> Verb:
    claimed, (ticket,) = asking.waiting()
    return partial(asking.answer, claimed, ticket, payload={"approved": True}, by="ann", decision_id="d-1")


def an_answer_to_who_executes() -> Verb:
    claimed, (ticket,) = asking.asked()
    return partial(asking.answer, renewed(claimed), ticket, action="cancel")


def an_answer_among_several() -> Verb:
    claimed, (ticket, _) = asking.waiting("one", "two")
    return partial(asking.answer, claimed, ticket, payload=[1, "a"])


def an_approval_among_several() -> Verb:
    claimed, (ticket, _) = asking.waiting("one", "two")
    return partial(asking.answer, claimed, ticket, payload={"approved": False})


def no_answer_in_time() -> Verb:
    _, (ticket,) = asking.waiting(expires_in=60.0)
    asking.overdue(ticket)
    return tick.expire_tickets


# Messages


def a_message_of_the_agent() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    return partial(checkpoint.say, claimed, scene.entry("message", verb="say"), "hello")


def a_checkpoint() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    say_at(claimed, "next_step")
    say_at(claimed, "next_step")
    return partial(checkpoint.reach, claimed)


def a_start_again_with_input() -> Verb:
    claimed = scene.posted_and_taken()
    settle.suspend(claimed, scene.wait("user_input"))
    say(claimed, "yes")
    return scene.taken


def an_edit() -> Verb:
    posted = scene.post()
    return partial(pending.edit, **on_thread(posted), message_id=posted.message_ids[0], content="other")


def an_edit_of_what_is_nobodys() -> Verb:
    said = say_at(scene.posted_and_taken(), "on_natural_end")
    return partial(pending.edit, **on_thread(said), message_id=said.message_ids[0], metadata={"a": 1})


def a_withdrawal() -> Verb:
    posted = scene.post()
    return partial(pending.retract, **on_thread(posted), message_id=posted.message_ids[0])


def a_withdrawal_of_what_is_nobodys() -> Verb:
    said = say_at(scene.posted_and_taken(), "on_natural_end")
    return partial(pending.retract, **on_thread(said), message_id=said.message_ids[0])


def the_end_of_a_target() -> Verb:
    claimed = scene.posted_and_taken()
    say_at(claimed, "next_step", target_run_id=str(claimed.run_id))
    return partial(settle.dead_letter, claimed, code="permanent", message="no")


def an_end_that_leaves_something_unread() -> Verb:
    claimed = scene.posted_and_taken()
    say_at(claimed, "next_step")
    return partial(settle.dead_letter, claimed, code="permanent", message="no")


def a_message_that_joins() -> Verb:
    said = say(finished(), "one")
    return partial(say, said, "two")


def another_order() -> Verb:
    first = scene.post("first")
    second = scene.post("second", thread_id=first.thread_id)
    return partial(pending.reorder, **on_thread(first), message_ids=second.message_ids)


def a_release() -> Verb:
    posted = scene.post()
    interrupt.thread(**on_thread(posted))
    return partial(pending.release, **on_thread(posted))


# Other threads


def a_child() -> Verb:
    return partial(family.spawn, renewed(scene.posted_and_taken()))


def the_end_of_a_child() -> Verb:
    _, child = family.with_child()
    settle.complete(scene.taken(), output="done")
    assert Run.objects.done().filter(pk=child.pk).exists()
    return children.batch


def the_failure_of_a_child() -> Verb:
    family.with_child()
    settle.dead_letter(scene.taken(), code="permanent", message="no")
    return children.batch


def the_end_of_a_child_whose_parent_is_done() -> Verb:
    parent = scene.posted_and_taken()
    family.spawn(parent)
    settle.complete(parent)
    settle.complete(scene.taken())
    return children.batch


def the_end_of_a_child_nobody_knows_any_more() -> Verb:
    parent, child = family.with_child()
    settle.complete(scene.taken())
    Dispatch.objects.all().delete()
    Run.objects.filter(pk=child.pk).delete()
    Run.objects.filter(pk=parent.run_id).delete()
    type(scene.thread(parent)).objects.filter(pk=parent.thread_id).update(open_run_id=None)
    return children.batch


def sending(to: Any) -> Verb:
    claimed = renewed(scene.posted_and_taken())
    names = {"message_id": "m-1", "agent": "echo", "sender": "echo", "source_run_id": str(claimed.run_id)}
    body = {"content": "psst", "role": "user", "metadata": {}, **names}
    slot = scene.entry("message", verb="send")
    return partial(deliver.send, claimed, slot, thread_id=to, thread_key=None, payload=body)


def a_message_to_another_thread() -> Verb:
    """Its row in the outbox and its record are all there is of it before it is delivered."""
    return sending(given.thread(scope=scene.SCOPE).pk)


def a_delivery() -> Verb:
    a_message_to_another_thread()()
    return deliver.batch


def a_message_to_nowhere() -> Verb:
    sending(uuid.uuid4())()
    return deliver.batch


def an_errand_that_fails_too_often() -> Verb:
    source, target = (scene.thread(finished()) for _ in range(2))
    tried = conf.max_deliveries - 1
    given.outbox(kind="wake", source_thread=source, target_thread_id=target.pk, attempt_count=tried, payload={})
    return children.batch


# Ends


def an_end() -> Verb:
    return partial(settle.complete, renewed(scene.posted_and_taken()), output="done")


def an_end_without_a_word() -> Verb:
    return partial(settle.complete, scene.posted_and_taken())


def a_permanent_failure() -> Verb:
    return partial(settle.dead_letter, renewed(scene.posted_and_taken()), code="permanent", message="no")


def work_nobody_can_run() -> Verb:
    posted = scene.post()
    Dispatch.objects.filter(pk=posted.dispatch_id).update(unrunnable_since=Now() - timedelta(days=3))
    return missing.expire


def a_cancellation() -> Verb:
    return partial(cancel.run, scope=scene.SCOPE, run_id=scene.post().run_id, reason="enough")


def a_cancellation_of_what_waits() -> Verb:
    claimed = scene.posted_and_taken()
    settle.suspend(claimed, scene.wait())
    return partial(cancel.run, scope=scene.SCOPE, run_id=claimed.run_id)


def a_cancelled_thread() -> Verb:
    posted = scene.post()
    scene.post(thread_id=posted.thread_id)
    return partial(cancel.thread, **on_thread(posted))


def a_worker_that_stops() -> Verb:
    claimed = renewed(scene.posted_and_taken())
    scene.ask_to_cancel(claimed)
    return partial(settle.stopped, claimed)


def nothing_to_read() -> Verb:
    posted = scene.post()
    Message.objects.filter(pk__in=posted.message_ids).update(state="retracted", retract_reason="withdrawn")
    return scene.take


def a_wait_nobody_ends() -> Verb:
    claimed = scene.posted_and_taken()
    settle.suspend(claimed, scene.wait())
    Run.objects.filter(pk=claimed.run_id).update(wait_until=Now() - timedelta(seconds=1))
    return tick.expire_waits


def a_replay() -> Verb:
    return partial(replay.one, dispatch_id=buried().dispatch_id, by="ann")


def a_discard() -> Verb:
    return partial(replay.discard, dispatch_id=buried().dispatch_id, by="ann", reason="old")


ENDED = "MessageCommitted RunFinished"

CASES: dict[Callable[[], Verb], str] = {
    a_thread: "ThreadCreated",
    a_submission: "ThreadCreated RunQueued",
    a_scheduled_submission: "RunQueued",
    a_change: "ThreadUpdated",
    a_change_of_a_thread_nothing_has_arrived_on: "ThreadCreated ThreadUpdated",
    a_deletion: "ThreadDeleted",
    a_deletion_of_a_named_thread: "ThreadDeleted",
    a_pause: "ThreadPaused",
    the_end_of_a_pause: "ThreadResumed",
    an_interrupt: "RunCancelled RunInterrupted ThreadInterrupted",
    an_interrupt_of_what_waits: "RunCancelled ThreadInterrupted",
    an_interrupting_submission: "RunCancelled ThreadInterrupted RunQueued MessageRequeued",
    a_start: "RunStarted",
    another_attempt: "RunResumed",
    a_failure: "RunRescheduled",
    a_lost_lease: "RunRescheduled",
    a_run_that_is_handed_back: "RunRescheduled",
    a_run_that_is_made_due: "RunRescheduled RunMadeDue",
    a_wait: "RunSuspended",
    a_wait_for_a_time: "RunSuspended",
    the_end_of_a_wait: "RunResumed",
    another_turn: "MessageCommitted TurnStarted",
    a_request_to_stop: "RunCancelRequested",
    a_question: "ToolPermissionRequested",
    a_question_with_a_schema_and_an_end: "ToolPermissionRequested",
    an_approval: "MailboxDecisionReceived ToolPermissionResolved",
    an_answer_to_who_executes: "MailboxDecisionReceived",
    an_answer_among_several: "MailboxDecisionReceived",
    an_approval_among_several: "MailboxDecisionReceived ToolPermissionResolved",
    no_answer_in_time: "MailboxDecisionReceived",
    a_message_of_the_agent: "MessageCommitted",
    a_checkpoint: "MessageCommitted MessageCommitted",
    a_start_again_with_input: "MessageCommitted RunResumed",
    an_edit: "MessageEdited",
    an_edit_of_what_is_nobodys: "MessageEdited",
    a_withdrawal: "MessageRetracted RunCancelled",
    a_withdrawal_of_what_is_nobodys: "MessageRetracted",
    the_end_of_a_target: "RunErrored MessageRetracted",
    an_end_that_leaves_something_unread: "RunErrored RunQueued MessageRequeued",
    a_message_that_joins: "MessagesJoined",
    another_order: "MessagesReordered",
    a_release: "RunQueued MessageRequeued",
    a_child: "ThreadCreated RunQueued ChildRunSpawned",
    the_end_of_a_child: "ChildRunEnded",
    the_failure_of_a_child: "ChildRunEnded",
    the_end_of_a_child_whose_parent_is_done: "ChildRunEnded",
    the_end_of_a_child_nobody_knows_any_more: "ChildRunEnded",
    a_message_to_another_thread: "",
    a_delivery: "ThreadCreated RunQueued",
    a_message_to_nowhere: "DeliveryFailed",
    an_errand_that_fails_too_often: "DeliveryFailed",
    an_end: ENDED,
    an_end_without_a_word: "RunFinished",
    a_permanent_failure: "RunErrored",
    work_nobody_can_run: "RunErrored",
    a_cancellation: "RunCancelled",
    a_cancellation_of_what_waits: "RunCancelled",
    a_cancelled_thread: "RunCancelled RunCancelled",
    a_worker_that_stops: "RunCancelled",
    nothing_to_read: "RunCancelled",
    a_wait_nobody_ends: "RunTerminated",
    a_replay: "DeadLetterReplayed RunQueued",
    a_discard: "DeadLetterDiscarded",
}
