"""Beat, or the maintenance worker, is gone: executing processes run the passes."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import tasks
from mailbox_app.execution.standby import Pass, Standby
from mailbox_app.models import Dispatch, Maintenance
from tests.operations import scene

pytestmark = pytest.mark.django_db(transaction=True)


def begun(**seconds_ago: float) -> None:
    for name, seconds in seconds_ago.items():
        Maintenance.objects.update_or_create(
            name=name, defaults={"last_started_at": Now() - timedelta(seconds=seconds)}
        )


def test_passes_that_are_on_time_are_left_to_beat() -> None:
    begun(due_tick=1.5, sweep=9, gc=100)
    assert tasks.standby.look() == []


@pytest.mark.parametrize(("name", "seconds"), [("due_tick", 2.5), ("sweep", 10.5), ("gc", 121)])
def test_a_pass_that_is_late_by_two_intervals_is_run_and_written_down(name: str, seconds: float) -> None:
    begun(**{"due_tick": 0.0, "sweep": 0.0, "gc": 0.0, name: seconds})
    assert tasks.standby.look() == [name]
    row: Any = Maintenance.objects.annotate(now=Now()).get(name=name)
    assert row.now - row.last_started_at < timedelta(seconds=10)
    assert row.last_finished_at >= row.last_started_at
    assert tasks.standby.look() == []


def test_starting_again_starts_nothing_more() -> None:
    looked = threading.Event()

    def stay() -> None:
        threading.Event().wait()  # else it would look for ever, at other tests' databases

    standby = Standby({"sweep": Pass(lambda: 0.0, lambda: None)}, chores=[looked.set, stay])
    before = threading.active_count()
    for _ in range(3):
        standby.start()
    assert threading.active_count() == before + 1
    assert looked.wait(20)


def test_a_pass_that_never_ran_is_late() -> None:
    assert tasks.standby.look() == ["due_tick", "sweep", "gc"]


def test_a_lost_lease_is_taken_back_without_beat() -> None:
    claim = scene.posted_and_taken()
    scene.expire_lease(claim)
    assert "sweep" in tasks.standby.look()
    assert Dispatch.objects.values_list("status", "lost_count").get() == ("queued", 1)
