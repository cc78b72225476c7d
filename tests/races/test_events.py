"""Writers of one thread's events meet each other and readers: cursors are without gap, in the order of the commits.

Each has a connection of its own; readers page as the API does.
"""

from typing import Any

import pytest
from django.db import transaction

from mailbox_app.models import Event, Thread
from mailbox_app.operations import cancel, settle, threads
from tests import make
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start
from tests.streams.conftest import emit

pytestmark = pytest.mark.django_db(transaction=True)


def rename(thread_id: Any, title: str) -> Thread:
    return threads.change(scope=scene.SCOPE, thread_id=thread_id, title=title)


def cursors(thread_id: Any) -> list[int]:
    """As another connection sees them."""
    rows = Event.objects.filter(thread_id=thread_id).after(0).values_list("cursor", flat=True)
    return list(start(lambda: list(rows)).result(20))


def titles(thread_id: Any) -> list[str]:
    rows = Event.objects.filter(thread_id=thread_id, kind="ThreadUpdated").after(0)
    return [event.payload["title"] for event in rows]


@pytest.mark.parametrize("commits", [True, False], ids=["first commits", "first rolls back"])
def test_of_two_open_transactions_the_second_waits_for_the_firsts_end_and_goes_on_with_its_numbers(
    commits: bool,
) -> None:
    thread_id = scene.post().thread_id
    with transaction.atomic():
        rename(thread_id, "first")
        second = start(rename, thread_id, "second")
        await_waiting()
        assert cursors(thread_id) == [1, 2], "nobody sees a number before all below it are decided"
        transaction.set_rollback(not commits)
    second.result(20)
    assert titles(thread_id) == (["first", "second"] if commits else ["second"])
    assert cursors(thread_id) == list(range(1, 5 if commits else 4))
    assert Thread.objects.get(pk=thread_id).last_cursor == len(cursors(thread_id))


def test_events_of_two_threads_wait_for_each_other_in_neither_order() -> None:
    """No event is of two threads, so that there is nothing to lock in an order."""
    here, there = (scene.post().thread_id for _ in range(2))
    with transaction.atomic():
        rename(here, "held")
        start(rename, there, "free").result(20)
        assert titles(there) == ["free"]


class Reader:
    """Pages through a thread's events, or a run's, from where it stands, until what it is told is the last."""

    def __init__(self, path: str, cursor: int = 0) -> None:
        self.path, self.cursor, self.seen, self.api = path, cursor, list[int](), make.api(scope=scene.SCOPE)

    def read_until(self, is_last: str) -> None:
        while True:
            page = self.api.get(self.path, cursor=self.cursor, limit=7).json()
            self.seen += [item["cursor"] for item in page["items"]]
            self.cursor = page["next_cursor"]
            if is_last in [item["kind"] for item in page["items"]]:
                return


def test_readers_of_a_thread_that_many_write_to_miss_nothing_and_see_nothing_twice() -> None:
    claim = scene.posted_and_taken()
    cancelled = scene.post(thread_id=claim.thread_id)
    before = Thread.objects.get(pk=claim.thread_id).last_cursor
    path = f"/threads/{claim.thread_id}/events"
    readers = [Reader(path), Reader(path, cursor=before), Reader(f"/runs/{claim.run_id}/events")]

    def execute() -> None:
        for number in range(25):
            emit(claim, "Step", {"number": number})

    def manage() -> None:
        for number in range(25):
            rename(claim.thread_id, f"title {number}")
        cancel.run(scope=scene.SCOPE, run_id=cancelled.run_id)

    def submit() -> None:
        for _ in range(25):
            scene.post(thread_id=claim.thread_id)

    reading = [start(one.read_until, "RunFinished") for one in readers]
    with crew(3) as together:
        together(execute, manage, submit)
    settle.complete(claim, output="done")
    for one in reading:
        one.result(60)
    events = Event.objects.filter(thread_id=claim.thread_id).after(0)
    written = list(events.values_list("cursor", flat=True))
    of_run = list(events.filter(run_id=claim.run_id).values_list("cursor", flat=True))
    assert written == list(range(1, len(written) + 1))
    assert len(written) == before + 25 * 3 + 1 + 2
    assert [one.seen for one in readers] == [written, written[before:], of_run]
    assert list(events.order_by("pk").values_list("cursor", flat=True)) == written, (
        "written in the order of the numbers"
    )
