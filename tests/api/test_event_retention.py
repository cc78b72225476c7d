"""Events past their retention: gone in batches; a cursor among them is refused, the newest goes on being good."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.models import Event
from mailbox_app.operations import prune, settle
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("of", ["thread", "run"])
def test_a_cursor_among_what_was_pruned_is_410_and_the_newest_is_good(of: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    claim = scene.posted_and_taken()
    settle.complete(claim, output="done")
    Event.objects.filter(cursor__lte=3).update(created_at=Now() - timedelta(days=31))
    passes = 0
    while prune.batch():
        passes += 1
    assert passes == 2, "two, then one"
    path = {"thread": f"/threads/{claim.thread_id}/events", "run": f"/runs/{claim.run_id}/events"}[of]
    api = make.api(scope=scene.SCOPE)
    for cursor in (1, 2):
        answer = api.get(path, cursor=cursor)
        assert (answer.status_code, make.problem_of(answer)["code"]) == (410, "cursor_pruned")
    for cursor in (0, 3):
        assert [item["cursor"] for item in api.get(path, cursor=cursor).json()["items"]] == [4, 5]
    newest = api.get(path, cursor=4).json()["next_cursor"]
    assert api.get(path, cursor=newest).json() == {"items": [], "next_cursor": newest, "has_more": False}
    scene.post(thread_id=claim.thread_id)
    later = api.get(path, cursor=newest).json()
    assert [item["kind"] for item in later["items"]] == (["RunQueued"] if of == "thread" else [])


def test_a_thread_all_of_whose_events_were_pruned_goes_on_counting() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="done")
    Event.objects.update(created_at=Now() - timedelta(days=31))
    prune.batch()
    scene.post(thread_id=claim.thread_id)
    told = make.api(scope=scene.SCOPE).get(f"/threads/{claim.thread_id}/events", cursor=5).json()
    assert [(item["cursor"], item["kind"]) for item in told["items"]] == [(6, "RunQueued")]
