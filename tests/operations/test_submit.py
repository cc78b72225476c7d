"""submit.run and submit.thread: what is accepted is written whole, what is refused leaves nothing."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now

from mailbox_app import catalogue
from mailbox_app.errors import (
    ActiveRunConflict,
    AlreadyExists,
    DuplicateKey,
    Gone,
    MailboxError,
    ThreadNotFound,
    UnknownAgent,
)
from mailbox_app.models import Message, Run, Thread
from mailbox_app.operations import settle, submit
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def test_a_submission_writes_thread_run_message_dispatch_and_events() -> None:
    receipt = submit.run(
        scope="acme",
        agent="echo",
        messages=["hello", {"role": "system", "content": "be brief", "metadata": {"n": 1}, "sender": "ops"}],
        priority=7,
        max_attempts=3,
        dedupe_key="order-1",
        options={"temperature": 0},
        metadata={"origin": "test"},
    )
    thread, run, dispatch = scene.thread(receipt), scene.run(receipt), scene.dispatch(receipt)
    assert (thread.scope, thread.key, thread.latest_run_id, thread.open_run_id) == ("acme", None, run.pk, None)
    assert (thread.last_seq, thread.last_cursor, thread.next_order, thread.pending_revision) == (0, 2, 4, 2)
    assert scene.flag(receipt) == (True, 7, "mailbox.default", "echo", False, "")
    assert thread.due_at == dispatch.available_at
    assert (run.scope, run.agent, run.status, run.turn, run.order) == ("acme", "echo", "created", 1, 1)
    assert (run.dedupe_key, run.termination, run.started_at) == ("order-1", None, None)
    assert run.activation == {
        "version": 2,
        "origin": "python",
        "adapter": "python",
        "sender": "",
        "run_mode": "background",
        "options": {"temperature": 0},
        "metadata": {"origin": "test"},
    }
    assert (dispatch.agent, dispatch.queue, dispatch.priority, dispatch.order) == ("echo", "mailbox.default", 7, 1)
    assert (dispatch.status, dispatch.epoch, dispatch.max_attempts) == ("queued", 0, 3)
    assert (dispatch.attempt_count, dispatch.lost_count, dispatch.claim_token) == (0, 0, None)
    messages = list(Message.objects.order_by("position"))
    assert [message.pk for message in messages] == receipt.message_ids
    assert [(m.state, m.seq, m.run_id, m.role, m.content) for m in messages] == [
        ("pending", None, run.pk, "user", "hello"),
        ("pending", None, run.pk, "system", "be brief"),
    ]
    assert (messages[1].metadata, messages[1].sender, messages[1].visibility) == ({"n": 1}, "ops", "public")
    assert scene.kinds(receipt) == ["ThreadCreated", "RunQueued"]
    assert scene.last_event(receipt).payload["message_ids"] == [str(pk) for pk in receipt.message_ids]
    assert receipt.status == "created"


def test_a_thread_is_found_by_its_id_in_any_spelling() -> None:
    first = scene.post()
    second = scene.post(thread_id=str(first.thread_id).upper())
    assert second.thread_id == first.thread_id
    assert [scene.run(first).order, scene.run(second).order] == [1, 3]
    assert scene.kinds(first) == ["ThreadCreated", "RunQueued", "RunQueued"]


def test_a_key_names_one_thread_in_its_scope() -> None:
    first, second = scene.post(thread_key="order 17"), scene.post(thread_key="order 17")
    elsewhere = scene.post(thread_key="order 17", scope="globex")
    assert first.thread_id == second.thread_id
    assert elsewhere.thread_id != first.thread_id
    assert scene.thread(first).key == "order 17"


def test_the_key_of_a_deleted_thread_is_free_again() -> None:
    first = scene.post(thread_key="order 17")
    Thread.objects.update(deleted_at=Now())
    assert scene.post(thread_key="order 17").thread_id != first.thread_id


def test_a_blank_agent_is_the_thread_s_last_one_else_the_default(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "default_agent": "echo"}
    first = scene.post(agent="")
    assert scene.run(first).agent == "echo"
    scene.post(agent="analyst", thread_id=first.thread_id)
    assert scene.run(scene.post(agent=" ", thread_id=first.thread_id)).agent == "analyst"
    assert scene.taken().run_id == first.run_id, "a run of another agent, that began since"
    assert scene.run(scene.post(agent="", thread_id=first.thread_id)).agent == "analyst"


def test_an_agent_s_own_wishes_apply_unless_the_caller_has_others() -> None:
    catalogue.add(
        catalogue.AgentSpec(name="picky", function=lambda ctx: None, queue="slow", priority=9, max_attempts=2)
    )
    try:
        wished = scene.dispatch(scene.post(agent="picky"))
        forced = scene.dispatch(scene.post(agent="picky", priority=0, max_attempts=7))
    finally:
        catalogue.remove("picky")
    assert (wished.queue, wished.priority, wished.max_attempts) == ("slow", 9, 2)
    assert (forced.queue, forced.priority, forced.max_attempts) == ("slow", 0, 7)


def test_an_agent_that_only_workers_have_is_known_by_its_registration() -> None:
    given.registration(agent="remote", options={"queue": "gpu", "max_attempts": 2})
    dispatch = scene.dispatch(scene.post(agent="remote"))
    assert (dispatch.queue, dispatch.max_attempts, dispatch.priority) == ("gpu", 2, 128)


def test_the_latest_registration_says_what_an_agent_wishes() -> None:
    given.registration(agent="remote", options={"queue": "new"})
    given.registration(agent="remote", options={"queue": "old"}, seen_at=scene.database_now() - timedelta(hours=1))
    assert scene.dispatch(scene.post(agent="remote")).queue == "new"


def test_an_agent_is_remembered_for_seven_days_after_its_last_worker() -> None:
    remembered = scene.database_now() - timedelta(days=7) + timedelta(minutes=1)
    given.registration(agent="late", seen_at=remembered)
    given.registration(agent="gone", seen_at=remembered - timedelta(minutes=2))
    assert scene.run(scene.post(agent="late")).agent == "late"
    with scene.nothing_changes(), pytest.raises(UnknownAgent, match="'gone'"):
        scene.post(agent="gone")


def test_reject_refuses_while_the_thread_has_an_open_run() -> None:
    first = scene.post()
    queued = scene.post(thread_id=first.thread_id, if_active="reject")
    claim = scene.taken()
    with scene.nothing_changes(), pytest.raises(ActiveRunConflict) as refused:
        scene.post(thread_id=first.thread_id, if_active="reject")
    assert refused.value.facts == {"thread_id": first.thread_id, "run_id": first.run_id}
    settle.nack(claim, code="transient", message="later")
    with scene.nothing_changes(), pytest.raises(ActiveRunConflict):
        scene.post(thread_id=first.thread_id, if_active="reject")
    assert scene.run(queued).status == "created"


def test_a_scheduled_run_wakes_its_thread_and_is_not_due() -> None:
    at = scene.database_now() + timedelta(hours=1)
    posted = scene.post(available_at=at)
    assert (scene.dispatch(posted).available_at, scene.thread(posted).wakes_at) == (at, at)
    assert scene.flag(posted) == scene.WAKING
    assert scene.take() is None


def test_scheduled_work_does_not_hold_up_what_is_due() -> None:
    later = scene.post(available_at=scene.database_now() + timedelta(hours=1), priority=0)
    now = scene.post(thread_id=later.thread_id)
    assert scene.flag(now) == scene.DUE_AND_WAKING
    assert scene.taken().run_id == now.run_id


@pytest.mark.parametrize("age", [timedelta(seconds=1), timedelta(days=700_000)], ids=str)
def test_a_time_in_the_past_means_now_and_goes_before_nobody(age: timedelta) -> None:
    first = scene.post()
    second = scene.post(available_at=scene.database_now() - age)
    assert scene.dispatch(second).available_at >= scene.dispatch(first).available_at
    assert [scene.taken().run_id, scene.taken().run_id] == [first.run_id, second.run_id]


def test_a_dedupe_key_names_its_holder_and_is_free_when_that_is_done() -> None:
    holder = scene.post(dedupe_key="invoice-1")
    for thread_id in (None, holder.thread_id):
        with scene.nothing_changes(), pytest.raises(DuplicateKey) as refused:
            scene.post(dedupe_key="invoice-1", thread_id=thread_id)
        assert refused.value.facts == {"dedupe_key": "invoice-1", "run_id": holder.run_id}
    scene.post(dedupe_key="invoice-1", scope="globex")
    claim = next(one for one in iter(scene.take, None) if one.run_id == holder.run_id)
    with scene.nothing_changes(), pytest.raises(DuplicateKey):
        scene.post(dedupe_key="invoice-1")
    settle.complete(claim)
    assert scene.run(scene.post(dedupe_key="invoice-1")).status == "created"


def test_a_caller_s_own_id_of_a_run_is_taken_once_in_a_scope_and_for_good() -> None:
    holder = scene.post(client_id="run-7")
    assert scene.run(holder).client_id == "run-7"
    for thread_id in (None, holder.thread_id):
        with scene.nothing_changes(), pytest.raises(AlreadyExists) as refused:
            scene.post(client_id="run-7", thread_id=thread_id)
        assert refused.value.facts == {"field": "client_id", "run_id": holder.run_id}
    settle.complete(scene.taken())
    with pytest.raises(AlreadyExists):
        scene.post(client_id="run-7")
    scene.post(client_id="run-7", scope="globex")
    twice = [{"messages": ["one"], "agent": "echo", "client_id": "run-8"}] * 2
    with scene.nothing_changes(), pytest.raises(AlreadyExists):
        submit.many(scope=scene.SCOPE, submissions=twice)


@pytest.mark.parametrize("end", ["dead_letter", "cancelled"])
def test_a_dedupe_key_is_free_however_its_run_ended(end: str) -> None:
    scene.post(dedupe_key="invoice-1")
    claim = scene.taken()
    if end == "cancelled":
        settle.stopped(claim)
    else:
        settle.dead_letter(claim, code="permanent", message="no")
    scene.post(dedupe_key="invoice-1")


def test_a_message_s_client_id_is_taken_once_in_a_scope() -> None:
    message = {"content": "hello", "client_id": "m-1"}
    scene.post(messages=[message])
    with scene.nothing_changes(), pytest.raises(AlreadyExists):
        scene.post(messages=["another", message])
    scene.post(messages=[message], scope="globex")


def test_another_scope_s_thread_is_not_found() -> None:
    posted = scene.post()
    with scene.nothing_changes(), pytest.raises(ThreadNotFound):
        scene.post(thread_id=posted.thread_id, scope="globex")


def test_a_deleted_thread_is_gone() -> None:
    posted = scene.post()
    Thread.objects.update(deleted_at=Now())
    with scene.nothing_changes(), pytest.raises(Gone):
        scene.post(thread_id=posted.thread_id)


def test_a_refusal_leaves_the_caller_s_own_transaction_usable() -> None:
    scene.post(dedupe_key="invoice-1")
    with transaction.atomic():
        before = scene.post("kept")
        with pytest.raises(DuplicateKey):
            scene.post(dedupe_key="invoice-1", thread_key="never made")
        after = scene.post("kept too", thread_id=before.thread_id)
    assert scene.run(after).thread_id == before.thread_id
    assert Run.objects.count() == 3
    assert not Thread.objects.filter(key="never made").exists()


def test_a_thread_without_a_run_is_made_and_then_used() -> None:
    made = submit.thread(scope="acme", key="k", title="Title", metadata={"a": 1})
    row = Thread.objects.get()
    assert (row.pk, row.key, row.title, row.metadata) == (made.pk, "k", "Title", {"a": 1})
    assert (row.last_cursor, row.due_at, row.wakes_at, row.latest_run_id) == (1, None, None, None)
    posted = scene.post(thread_key="k")
    assert posted.thread_id == made.pk
    assert scene.kinds(posted) == ["ThreadCreated", "RunQueued"]
    with scene.nothing_changes(), pytest.raises(AlreadyExists) as refused:
        submit.thread(scope="acme", key="k")
    assert refused.value.facts["key"] == "k"


def test_every_refusal_has_a_code_of_its_own_and_a_sentence() -> None:
    with pytest.raises(MailboxError) as refused:
        scene.post(agent="nobody")
    assert (refused.value.code, refused.value.message) == (
        "unknown_agent",
        "no worker has registered an agent named 'nobody'",
    )


def test_what_is_queued_behind_an_open_run_changes_nothing_of_it() -> None:
    claim = scene.posted_and_taken()
    scheduled = scene.post("later", thread_id=claim.thread_id, available_at=scene.database_now() + timedelta(hours=1))
    before, epoch = scene.tables(), scene.thread(claim).epoch
    posted = scene.post("behind", thread_id=claim.thread_id)
    after = scene.tables()
    for name, rows in before.items():
        if name != "Thread":
            known = {row["id"] for row in rows}
            assert [row for row in after[name] if row["id"] in known] == rows, f"{name} changed"
    assert (scene.thread(claim).epoch, scene.dispatch(posted).epoch) == (epoch, epoch)
    assert (posted.status, posted.interrupted) == ("created", None)
    assert scene.run(scheduled).status == "created"


def test_without_a_word_about_it_a_run_has_as_many_attempts_and_the_place_the_settings_say(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_attempts": 7, "default_priority": 99}
    dispatch = scene.dispatch(scene.post())
    assert (dispatch.max_attempts, dispatch.priority) == (7, 99)


def test_without_a_thread_a_new_one_is_made_for_each_and_their_ids_rise_with_time() -> None:
    ids = [scene.post(thread_id=nobody).thread_id for nobody in (None, None, None)]
    assert (ids, {pk.version for pk in ids}) == (sorted(set(ids)), {7})
