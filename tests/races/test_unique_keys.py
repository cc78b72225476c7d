"""A submit meets another transaction that is writing the same dedupe_key or client_id: no thread waits for another."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from mailbox_app.errors import AlreadyExists, DuplicateKey
from mailbox_app.models import Message, Run
from mailbox_app.operations import settle
from mailbox_app.operations.submit import Receipt
from tests.operations import scene
from tests.races.actors import await_waiting, start

pytestmark = pytest.mark.django_db(transaction=True)


def message(*client_ids: str) -> list[dict[str, Any]]:
    return [{"content": "hello", "client_id": client_id} for client_id in client_ids]


POSTS: dict[str, tuple[Callable[..., Receipt], type[Exception]]] = {
    "dedupe_key": (lambda **given: scene.post(dedupe_key="k", **given), DuplicateKey),
    "client_id": (lambda **given: scene.post(messages=message("k"), **given), AlreadyExists),
}


@pytest.mark.parametrize("key", POSTS)
def test_a_submit_that_waits_for_a_unique_key_holds_up_neither_a_settle_nor_a_claim_on_its_thread(key: str) -> None:
    post, refusal = POSTS[key]
    running = scene.posted_and_taken("one")
    behind = scene.post("two", thread_id=running.thread_id)
    with transaction.atomic():
        elsewhere = post()
        posting = start(lambda: post(thread_id=running.thread_id))
        await_waiting()
        start(settle.complete, running).result(20)
        assert start(scene.taken).result(20).run_id == behind.run_id
        assert not posting.done()
    with pytest.raises(refusal):
        posting.result(20)
    assert set(Run.objects.values_list("pk", flat=True)) == {running.run_id, behind.run_id, elsewhere.run_id}


@pytest.mark.parametrize("key", POSTS)
def test_a_unique_key_whose_writer_rolled_back_is_free_for_who_waited(key: str) -> None:
    post, _ = POSTS[key]
    with transaction.atomic():
        post()
        posting = start(post)
        await_waiting()
        transaction.set_rollback(True)
    posted = posting.result(20)
    assert list(Run.objects.values_list("pk", flat=True)) == [posted.run_id]


def test_two_submits_with_the_same_client_ids_in_opposite_order_do_not_deadlock() -> None:
    def post(*client_ids: str) -> Receipt:
        # In a caller's own transaction a deadlock is not tried again: it would be seen.
        with transaction.atomic():
            return scene.post(messages=message(*client_ids))

    with transaction.atomic():
        scene.post(messages=message("a", "b"))
        first = start(post, "a", "b")
        await_waiting()
        second = start(post, "b", "a")
        await_waiting(2)
        transaction.set_rollback(True)
    outcomes = [first.exception(20), second.exception(20)]
    assert sorted(type(error) for error in outcomes if error) == [AlreadyExists]
    assert sorted(Message.objects.values_list("client_id", flat=True)) == ["a", "b"]


def test_submits_with_other_keys_or_in_other_scopes_do_not_wait() -> None:
    with transaction.atomic():
        scene.post(dedupe_key="k", messages=message("a"))
        start(lambda: scene.post(dedupe_key="l", messages=message("b"))).result(20)
        start(lambda: scene.post(scope="other", dedupe_key="k", messages=message("a"))).result(20)
    assert Run.objects.count() == 3
