"""Limits whose permits are not as they should be: found, told with the limit's name, repaired if asked for."""

import uuid
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import tasks
from mailbox_app.doctor import permits as examined
from mailbox_app.models import Dispatch, Limit, Permit
from mailbox_app.operations import limits, permits
from tests.operations import scene

pytestmark = pytest.mark.django_db


def held() -> Any:
    limits.put(kind="agent", name="echo", most=2)
    running = scene.posted_and_taken()
    assert examined.look() == []
    return running


def acked(running: Any) -> None:
    ended = {"status": "acked", "claim_token": None, "claimed_by": "", "lease_until": None, "completed_at": Now()}
    Dispatch.objects.filter(pk=running.dispatch_id).update(**ended, permit_ids=None)


DAMAGES = {
    "its dispatch executes no more": acked,
    "its dispatch is gone": lambda running: Permit.objects.held().update(dispatch_id=uuid.uuid4()),
    "its dispatch knows nothing of it": lambda running: Dispatch.objects.update(permit_ids=None),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_lost_permit_is_found_with_its_limit_and_freed(how: str) -> None:
    DAMAGES[how](held())
    with scene.nothing_changes():
        [one] = examined.look()
    assert one.code == "permit_lost"
    assert "agent echo" in one.sentence
    [one] = examined.look(fix=True)
    assert one.is_fixed
    assert (examined.look(), Permit.objects.held().count()) == ([], 0)


def test_gc_frees_lost_permits_and_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    running = held()
    lost = Permit.objects.free().get()
    Permit.objects.filter(pk=lost.pk).update(dispatch_id=uuid.uuid4())
    tasks.gc.apply()
    assert "permit.recovered" in caplog.text
    assert Permit.objects.held().get().dispatch_id == running.dispatch_id
    assert permits.recover() == 0


def test_a_limit_with_too_few_or_too_many_permits_is_found_and_fitted() -> None:
    held()
    for most in (1, 5):
        Limit.objects.update(most=most)
        with scene.nothing_changes():
            [one] = examined.look()
        assert (one.code, f"allows {most} runs" in one.sentence) == ("limit_unfit", True)
        examined.look(fix=True)
        limits.settle()
        assert Permit.objects.filter(is_retired=False).count() == most
        assert examined.look() == []


def test_a_limit_that_is_still_settling_is_no_damage() -> None:
    held()
    scene.posted_and_taken()
    limits.put(kind="agent", name="echo", most=1)
    limits.remove(kind="agent", name="echo")
    assert examined.look() == []
