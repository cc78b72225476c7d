"""limits: set, changed and removed while things run; what it says, and what it refuses."""

from typing import Any

import pytest

from mailbox_app.errors import InvalidInput, NotLimited
from mailbox_app.models import Limit, Permit, Thread
from mailbox_app.operations import limits, permits, settle, tick
from tests.operations import scene

pytestmark = pytest.mark.django_db


def numbers() -> tuple[int, int, int]:
    """Permits: held, free, and retired ones among the held."""
    held = Permit.objects.held()
    return held.count(), Permit.objects.free().count(), held.filter(is_retired=True).count()


def put(most: int | None = 2, **given: Any) -> Limit:
    return limits.put(**{"kind": "agent", "name": "echo", "most": most, "by": "ann", **given}).limit


def test_a_new_limit_has_as_many_permits_as_it_allows_runs() -> None:
    done = limits.put(kind="agent", name="echo", most=3, note="a slow provider", by="ann")
    assert (done.created, numbers()) == (True, (0, 3, 0))
    assert (done.limit.note, done.limit.set_by, done.limit.is_settling) == ("a slow provider", "ann", False)


def test_setting_it_again_replaces_it() -> None:
    first = put(3, note="first")
    done = limits.put(kind="agent", name="echo", starts=5, seconds=10, by="bob")
    assert (done.created, done.limit.pk, numbers()) == (False, first.pk, (0, 0, 0))
    assert (done.limit.most, done.limit.starts, done.limit.note, done.limit.set_by) == (None, 5, "", "bob")


def test_the_same_rate_keeps_its_bucket_and_another_begins_with_a_full_one() -> None:
    put(None, starts=1, seconds=60)
    scene.posted_and_taken()
    assert put(None, starts=1, seconds=60).full_at is not None
    assert put(None, starts=1, seconds=61).full_at is None


def test_a_raised_limit_has_more_permits_at_once() -> None:
    put(1)
    scene.posted_and_taken()
    put(3)
    assert numbers() == (1, 2, 0)


def test_a_lowered_limit_lets_nothing_start_until_enough_have_ended() -> None:
    put(3)
    running = [scene.posted_and_taken() for _ in range(3)]
    lowered = put(1)
    assert (numbers(), lowered.is_settling) == ((3, 0, 2), True)
    scene.post()
    for one in running[:2]:
        settle.complete(one)
        limits.settle()
    # Whichever were retired: one counts, or its place is free.
    held, free, retired = numbers()
    assert held - retired + free == 1
    settle.complete(running[2])
    limits.settle()
    assert (numbers(), Limit.objects.get().is_settling) == ((0, 1, 0), False)
    scene.taken()


def test_raising_it_again_counts_the_held_ones_that_were_to_go() -> None:
    put(3)
    for _ in range(3):
        scene.posted_and_taken()
    put(1)
    assert numbers() == (3, 0, 2)
    put(4)
    assert numbers() == (3, 1, 0)


def test_of_permits_that_were_to_go_those_that_run_count_before_those_that_came_back() -> None:
    put(3)
    first, _, _ = [scene.posted_and_taken() for _ in range(3)]
    put(None, starts=9, seconds=60)
    settle.complete(first)  # before any tick
    put(2)
    scene.post()
    assert (numbers(), scene.take()) == ((2, 0, 0), None)


@pytest.mark.parametrize(("kind", "name"), [("agent", "echo"), ("scope", scene.SCOPE)])
def test_what_ran_before_it_counts_too(kind: str, name: str) -> None:
    first, second = scene.posted_and_taken(), scene.posted_and_taken()
    scene.post()
    made = put(2, kind=kind, name=name)
    assert (numbers(), made.is_settling) == ((0, 0, 0), True)
    assert scene.take() is None
    settle.complete(first)
    limits.settle()
    permits.unblock_some()
    assert numbers() == (0, 1, 0)
    scene.taken()
    settle.complete(second)
    limits.settle()
    assert (numbers(), Limit.objects.get().is_settling) == ((1, 1, 0), False)


def test_a_removed_limit_keeps_nothing_and_is_gone_when_its_last_permit_is_back() -> None:
    put(1, kind="scope", name=scene.SCOPE)
    running = scene.posted_and_taken()
    waiting = scene.post()
    scene.take()
    was = limits.remove(kind="scope", name=scene.SCOPE, by="ann")
    assert was.most == 1
    assert list(Limit.objects.in_force()) == []
    assert permits.release_some() == 1
    assert scene.taken().run_id == waiting.run_id
    settle.complete(running)
    limits.settle()
    assert (Limit.objects.count(), Permit.objects.count()) == (0, 0)


def test_a_limit_set_anew_before_its_last_permit_is_back_counts_it() -> None:
    put(2)
    scene.posted_and_taken()
    limits.remove(kind="agent", name="echo")
    done = limits.put(kind="agent", name="echo", most=2)
    assert (done.created, numbers()) == (True, (1, 1, 0))


def test_removing_what_is_not_limited_is_refused() -> None:
    with scene.nothing_changes(), pytest.raises(NotLimited):
        limits.remove(kind="agent", name="echo")
    put(2)
    limits.remove(kind="agent", name="echo")
    with scene.nothing_changes(), pytest.raises(NotLimited):
        limits.remove(kind="agent", name="echo")


def test_a_thread_that_nothing_keeps_names_no_limit() -> None:
    put(1)
    waiting = scene.post()
    assert limits.of_thread(Thread.objects.get(pk=waiting.thread_id)) == []
    scene.posted_and_taken()
    assert limits.of_thread(Thread.objects.get(pk=waiting.thread_id)) == []


def test_what_stands_behind_an_open_run_is_kept_by_that_and_by_no_limit() -> None:
    first = scene.posted_and_taken(thread_key="order-7")
    behind = scene.post(thread_key="order-7")
    settle.nack(first, code="x", message="x", retry_after=0)
    scene.make_available(first)
    tick.promote()
    limit = put(1)
    scene.posted_and_taken(priority=0)
    assert limits.of_dispatch(scene.dispatch(first)) == [limit]
    assert limits.of_dispatch(scene.dispatch(behind)) == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"kind": "queue"}, "kind"),
        ({"name": " "}, "name"),
        ({"most": None}, "most"),
        ({"most": 0}, "most"),
        ({"most": 1_001}, "most"),
        ({"most": True}, "most"),
        ({"most": "3"}, "most"),
        ({"starts": 3}, "seconds"),
        ({"seconds": 3}, "starts"),
        ({"starts": 0, "seconds": 3}, "starts"),
        ({"starts": 3, "seconds": 0.5}, "seconds"),
        ({"starts": 3, "seconds": 86_401}, "seconds"),
        ({"starts": 3, "seconds": 3, "kind": "scope"}, "starts"),
        ({"note": "x" * 501}, "note"),
        ({"by": "x" * 201}, "by"),
    ],
)
def test_what_is_no_limit_is_refused(wrong: dict[str, Any], field: str) -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        put(**{"most": 2, **wrong})
    assert refused.value.errors[0]["field"] == field
