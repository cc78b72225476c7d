"""threads: retitled, or deleted once nothing on them is left to do."""

import uuid
from typing import Any

import pytest

from mailbox_app.errors import Gone, InvalidInput, ThreadBusy, ThreadNotFound
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import cancel, settle, submit, threads
from tests.operations import scene

pytestmark = pytest.mark.django_db


def delete(of: Any) -> None:
    threads.delete(scope=scene.SCOPE, thread_id=of.thread_id)


def test_title_and_metadata_are_changed_apart_and_told_once() -> None:
    posted = scene.post()
    threads.change(scope=scene.SCOPE, thread_id=posted.thread_id, title="T")
    threads.change(scope=scene.SCOPE, thread_id=posted.thread_id, metadata={"a": 1})
    row = scene.thread(posted)
    assert (row.title, row.metadata) == ("T", {"a": 1})
    event = scene.last_event(posted)
    assert (event.kind, event.payload["changed"], event.payload["title"]) == ("ThreadUpdated", ["metadata"], "T")
    with scene.nothing_changes():
        threads.change(scope=scene.SCOPE, thread_id=posted.thread_id, title="T", metadata={"a": 1})
        threads.change(scope=scene.SCOPE, thread_id=posted.thread_id)
    assert scene.taken().run_id == posted.run_id


def test_a_change_that_is_refused_changes_nothing() -> None:
    posted = scene.post()
    with scene.nothing_changes():
        for wrong, error in (
            ({"title": "x" * 501}, InvalidInput),
            ({"metadata": {"a": float("nan")}, "title": "T"}, InvalidInput),
            ({"scope": "other", "title": "T"}, ThreadNotFound),
            ({"thread_id": uuid.uuid4(), "title": "T"}, ThreadNotFound),
        ):
            with pytest.raises(error):
                threads.change(**{"scope": scene.SCOPE, "thread_id": posted.thread_id, **wrong})


def test_a_thread_with_queued_or_open_work_is_not_deleted_and_the_refusal_names_the_run() -> None:
    queued = scene.post()
    with scene.nothing_changes(), pytest.raises(ThreadBusy) as refused:
        delete(queued)
    assert refused.value.facts["run_id"] == queued.run_id
    claim = scene.taken()
    with scene.nothing_changes(), pytest.raises(ThreadBusy):
        delete(claim)
    settle.nack(claim, code="transient", message="no", retry_after=60)
    with scene.nothing_changes(), pytest.raises(ThreadBusy):
        delete(claim)
    cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    delete(claim)
    assert scene.thread(claim).deleted_at is not None


def test_a_deleted_thread_is_gone_and_its_key_free_again() -> None:
    claim = scene.posted_and_taken(thread_key="k")
    settle.complete(claim)
    delete(claim)
    assert scene.kinds(claim)[-1] == "ThreadDeleted"
    with scene.nothing_changes():
        with pytest.raises(Gone):
            delete(claim)
        with pytest.raises(Gone):
            scene.post(thread_id=claim.thread_id)
        with pytest.raises(Gone):
            threads.change(scope=scene.SCOPE, thread_id=claim.thread_id, title="T")
    again = scene.post(thread_key="k")
    assert again.thread_id != claim.thread_id
    assert Thread.objects.not_deleted().get(key="k").pk == again.thread_id


def test_another_scope_s_thread_is_not_found() -> None:
    made = submit.thread(scope=scene.SCOPE)
    with scene.nothing_changes(), pytest.raises(ThreadNotFound):
        threads.delete(scope="other", thread_id=made.pk)


def test_dead_letters_of_a_deleted_thread_are_discarded_for_nobody_could_deal_with_them() -> None:
    dead, other = scene.posted_and_taken(), scene.posted_and_taken()
    for claim in (dead, other):
        settle.dead_letter(claim, code="permanent", message="no")
    delete(dead)
    assert scene.dispatch(dead).resolution == "discarded"
    assert Dispatch.objects.dead_letters().get().pk == other.dispatch_id
