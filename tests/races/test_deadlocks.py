"""Two transactions want the same two things in opposite order: one starts over, nothing is written by halves."""

import threading
import uuid
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import connection, transaction

from mailbox_app.errors import DuplicateKey, Retryable
from mailbox_app.models import Run
from tests.operations import scene
from tests.races.actors import await_waiting, start

pytestmark = pytest.mark.django_db(transaction=True)


def look_for_deadlocks_after(milliseconds: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL deadlock_timeout = {milliseconds}")


def test_a_team_s_own_transaction_is_told_to_start_over() -> None:
    """Our verb cannot retry for it: what the transaction did before is in the way."""
    one, two = scene.post().thread_id, scene.post().thread_id
    met = threading.Barrier(2)

    def post_to(first: uuid.UUID, second: uuid.UUID, patience: int) -> None:
        with transaction.atomic():
            look_for_deadlocks_after(patience)
            scene.post(thread_id=first)
            met.wait(timeout=20)
            scene.post(thread_id=second)

    loser: Future[Any] = start(post_to, one, two, 50)
    winner: Future[Any] = start(post_to, two, one, 30_000)
    with pytest.raises(Retryable):
        loser.result(30)
    winner.result(30)
    assert list(Run.objects.order_by("thread_id", "order").values_list("thread_id", flat=True)) == [one, one, two, two]


def test_a_submission_of_its_own_starts_over_by_itself() -> None:
    """It lost to a transaction that then held its dedupe key: the second time it is refused as if it had come later."""
    ours, theirs = scene.post().thread_id, scene.post().thread_id
    with transaction.atomic():
        look_for_deadlocks_after(30_000)
        holder = scene.post(thread_id=theirs, dedupe_key="invoice 1")
        posting = start(lambda: scene.post(thread_id=ours, dedupe_key="invoice 1"))
        await_waiting()
        second = scene.post(thread_id=ours)
    with pytest.raises(DuplicateKey) as refused:
        posting.result(30)
    assert refused.value.facts["run_id"] == holder.run_id
    assert list(Run.objects.filter(thread_id=ours).order_by("order").values_list("pk", flat=True))[1:] == [
        second.run_id
    ]
