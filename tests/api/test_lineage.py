"""Who has spawned whom, over REST and in the admin; and what becomes of children when a thread is deleted."""

import uuid
from typing import Any

import pytest
from django.test import Client

from mailbox_app.models import Thread
from mailbox_app.operations import settle, threads
from tests import given, make
from tests.operations import scene
from tests.operations.family import spawn, wait

pytestmark = pytest.mark.django_db


def family() -> tuple[Any, Any, Any]:
    """A parent's claim, its child run, and that one's; all done."""
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    settle.complete(parent)
    below_claim = scene.taken()
    below = spawn(below_claim)
    settle.complete(below_claim)
    settle.complete(scene.taken())
    return parent, child, below


def shown(path: str, **given: Any) -> list[str]:
    return [item["id"] for item in make.api(scope="acme").get(path, **given).json()["items"]]


def test_a_run_names_its_parent_and_a_parent_s_runs_and_threads_are_listed() -> None:
    parent, child, below = family()
    api = make.api(scope="acme")
    assert api.get(f"/runs/{child.pk}").json()["parent_run_id"] == str(parent.run_id)
    assert api.get(f"/threads/{child.thread_id}").json()["parent_id"] == str(parent.thread_id)
    assert shown("/runs", parent_run_id=str(parent.run_id)) == [str(child.pk)]
    assert shown("/runs", parent_run_id=str(below.pk)) == []
    assert shown("/threads", parent_id=str(parent.thread_id)) == [str(child.thread_id)]
    assert make.api(scope="other").get("/runs", parent_run_id=str(parent.run_id)).json()["items"] == []
    assert api.get("/runs", parent_run_id="no").status_code == 422


def test_a_cursor_of_one_parent_s_list_is_none_of_another_s() -> None:
    parent, *_ = family()
    for _ in range(2):
        given.thread(parent_id=parent.thread_id)
    api = make.api(scope="acme")
    cursor = api.get("/threads", parent_id=str(parent.thread_id), limit=1).json()["next_cursor"]
    assert api.get("/threads", parent_id=str(uuid.uuid4()), limit=1, cursor=cursor).status_code == 400


def test_a_waiting_parent_says_for_which_runs() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    wait(parent, child)
    waiting = make.api(scope="acme").get(f"/runs/{parent.run_id}").json()["waiting"]
    assert (waiting["reason"], waiting["child_run_ids"]) == ("background_tasks", [str(child.pk)])
    assert [item["run_id"] for item in make.api(scope="acme").get("/waits").json()["items"]] == [str(parent.run_id)]


def test_the_admin_links_parents_and_children(admin_client: Client) -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    wait(parent, child)
    page = admin_client.get(f"/admin/mailbox/run/{parent.run_id}/change/").content.decode()
    assert "Child runs" in page
    assert "Child runs still to end" in page
    assert str(child.pk) in page
    page = admin_client.get(f"/admin/mailbox/run/{child.pk}/change/").content.decode()
    assert f"/admin/mailbox/run/{parent.run_id}/change/" in page
    page = admin_client.get(f"/admin/mailbox/thread/{parent.thread_id}/change/").content.decode()
    assert f"/admin/mailbox/thread/{child.thread_id}/change/" in page


@pytest.mark.parametrize(
    ("strategy", "gone"), [(None, 1), ("detach", 1), ("cascade", 3)], ids=["by default", "detach", "cascade"]
)
def test_a_deleted_thread_leaves_its_children_or_takes_them_along(strategy: str | None, gone: int) -> None:
    parent, child, below = family()
    chosen = {} if strategy is None else {"child_strategy": strategy}
    query = "".join(f"?{name}={value}" for name, value in chosen.items())
    api = make.api(scope="acme")
    assert api.delete(f"/threads/{parent.thread_id}{query}").status_code == 204
    codes = [api.get(f"/threads/{one}").status_code for one in (parent.thread_id, child.thread_id, below.thread_id)]
    assert codes == [410] * gone + [200] * (3 - gone)


def test_a_thread_with_children_is_not_deleted_where_that_is_to_be_refused() -> None:
    parent, child, below = family()
    api = make.api(scope="acme")
    api.get("/threads")  # its token was used
    with scene.nothing_changes():
        answer = api.delete(f"/threads/{parent.thread_id}?child_strategy=reject")
    assert (answer.status_code, answer.json()["code"]) == (409, "thread_has_children")
    assert api.delete(f"/threads/{below.thread_id}?child_strategy=reject").status_code == 204
    assert api.delete(f"/threads/{child.thread_id}?child_strategy=reject").status_code == 204, (
        "what is gone is no child"
    )


def test_a_cascade_deletes_nothing_while_one_of_them_is_busy() -> None:
    parent, _, below = family()
    scene.post("more", thread_id=below.thread_id)
    api = make.api(scope="acme")
    api.get("/threads")  # its token was used
    with scene.nothing_changes():
        answer = api.delete(f"/threads/{parent.thread_id}?child_strategy=cascade")
    assert (answer.status_code, answer.json()["code"]) == (409, "thread_busy")


def test_a_strategy_nobody_knows_is_refused() -> None:
    parent, *_ = family()
    api = make.api(scope="acme")
    api.get("/threads")  # its token was used
    with scene.nothing_changes():
        answer = api.delete(f"/threads/{parent.thread_id}?child_strategy=orphan")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "child_strategy")


def test_a_cascade_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, *_ = family()
    monkeypatch.setattr(threads, "_MOST_BELOW", 1)
    answer = make.api(scope="acme").delete(f"/threads/{parent.thread_id}?child_strategy=cascade")
    assert (answer.status_code, answer.json()["code"]) == (409, "thread_has_children")
    assert not Thread.objects.filter(deleted_at__isnull=False).exists()
