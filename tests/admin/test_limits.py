"""Operators limit agents and scopes in the admin, and see how far a limit is used and whom it keeps."""

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from mailbox_app.models import Dispatch, Limit, Permit, Run, Thread
from mailbox_app.operations import limits, settle
from tests import given as rows
from tests.admin.pages import listed, operator, shown, text
from tests.operations import scene

pytestmark = pytest.mark.django_db

ADD = "admin:mailbox_limit_add"
BLANK = {"most": "", "starts": "", "seconds": "", "note": ""}
NAMES = {"agent": "echo", "scope": scene.SCOPE}


def remove_url(row: Limit) -> str:
    return reverse("admin:mailbox_limit_act", args=[row.pk, "remove"])


def add(client: Client, **given: str) -> Any:
    return client.post(reverse(ADD), {"kind": "agent", "name": "echo", **BLANK, **given}, follow=True)


def change(client: Client, row: Limit, **given: str) -> Any:
    return client.post(shown(row), {**BLANK, **given}, follow=True)


def plain(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.replace("\N{NO-BREAK SPACE}", " ")))


def test_a_limit_is_set_by_a_form_changed_on_its_page_and_removed_there_and_all_is_logged() -> None:
    client = operator("view_limit", "add_limit", "change_limit", "delete_limit")
    answer = add(client, most="1", starts="600", seconds="60", note="their provider")
    assert answer.status_code == 200
    row = Limit.objects.get()
    assert (str(row), row.bounds, row.note, row.set_by) == (
        "agent echo",
        "1 at once, 600 starts in 60 s",
        "their provider",
        "user operator",
    )
    assert "More may start." in plain(text(client, shown(row)))
    scene.posted_and_taken()
    waiting = scene.post()
    assert scene.take() is None
    page = plain(text(client, shown(row)))
    assert "Reached: nothing more starts" in page
    assert "1 of 1" in page
    assert change(client, row, most="2", note="more").status_code == 200
    row.refresh_from_db()
    assert (row.bounds, row.note, Permit.objects.count()) == ("2 at once", "more", 2)
    assert scene.taken().run_id == waiting.run_id
    assert "are you sure" in plain(client.post(remove_url(row)).content.decode())
    client.post(remove_url(row), {"confirmed": "yes"})
    assert not Limit.objects.in_force().exists()
    page = plain(text(client, shown(row)))
    assert "Removed: nothing is limited" in page
    assert remove_url(row) not in page
    assert [one.get_change_message() for one in LogEntry.objects.order_by("pk")] == [
        "Added.",
        "Changed Most, Starts, Seconds and Note.",
        "Remove: Removed: agent echo had 2 at once.",
    ]


def test_the_list_says_what_is_limited_how_far_it_is_used_and_finds_it_by_name() -> None:
    client = operator("view_limit", "delete_limit")
    scene.posted_and_taken()
    limits.put(kind="agent", name="echo", most=3, by="ann", note="slow")
    scene.posted_and_taken()
    limits.put(kind="scope", name="another", most=7)
    page = plain(text(client, listed(Limit)))
    for seen in ("3 at once", "1 of 3", "slow", "ann", "until what ran before has ended", "7 at once", "0 of 7"):
        assert seen in page
    page = plain(text(client, listed(Limit), q="another"))
    assert ("7 at once" in page, "3 at once" in page) == (True, False)
    chosen = Limit.objects.get(name="another")
    posted = {"action": "remove", "_selected_action": [str(chosen.pk)], "index": "0", "confirmed": "yes"}
    client.post(listed(Limit), posted)
    assert [str(one) for one in Limit.objects.in_force()] == ["agent echo"]


def test_the_page_of_a_limit_shows_who_holds_its_permits_and_only_to_those_who_may_see_them() -> None:
    limit = limits.put(kind="agent", name="echo", most=3).limit
    running = scene.posted_and_taken(thread_key="order-7")
    other = rows.dispatch(status="claimed")
    client = operator("view_limit", "view_dispatch", "view_thread")
    page = text(client, shown(limit))
    assert shown(Dispatch.objects.get(pk=running.dispatch_id)) in page
    assert "order-7" in page
    assert shown(other) not in page
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_limit"))
    client.force_login(user)
    assert "order-7" not in text(client, shown(limit))


@pytest.mark.parametrize("kind", ["agent", "scope"])
def test_pages_of_run_dispatch_and_thread_name_the_limit_that_keeps_them(admin_client: Client, kind: str) -> None:
    limit = limits.put(kind=kind, name=NAMES[kind], most=1, note="<b>why</b>").limit
    running, waiting = scene.posted_and_taken(), scene.post()
    assert scene.take() is None
    says = f"Kept by the limit of {kind} {NAMES[kind]}: 1 at once (1 held): &lt;b&gt;why&lt;/b&gt;"
    of = [
        model.objects.get(pk=pk)
        for model, pk in (
            (Run, waiting.run_id),
            (Dispatch, waiting.dispatch_id),
            (Thread, waiting.thread_id),
        )
    ]
    for row in of:
        page = text(admin_client, shown(row))
        assert says in plain(page), type(row)
        assert shown(limit) in page
    assert "Kept by" not in text(admin_client, shown(Run.objects.get(pk=running.run_id)))
    settle.complete(running)
    limits.remove(kind=kind, name=NAMES[kind])
    for row in of:
        assert "Kept by" not in text(admin_client, shown(row))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "", "most": "1"}, "This field is required"),
        ({"kind": "queue", "most": "1"}, "Select a valid choice"),
        ({}, "most, or starts and seconds, is required"),
        ({"most": "0"}, "most must be"),
        ({"kind": "scope", "starts": "1", "seconds": "1"}, "starts are limited of agents only"),
        ({"name": " known ", "most": "2"}, "agent known is limited already"),
    ],
)
def test_a_form_that_cannot_be_done_says_why_and_limits_nothing(given: dict[str, str], says: str) -> None:
    limits.put(kind="agent", name="known", most=1, by="ann")
    answer = add(operator("view_limit", "add_limit"), **given)
    assert says in answer.content.decode()
    assert (Limit.objects.get().most, Limit.objects.get().set_by) == (1, "ann")
    assert not LogEntry.objects.exists()


def test_a_change_that_is_no_limit_says_why_and_leaves_it() -> None:
    row = limits.put(kind="scope", name="acme", most=1, by="ann").limit
    answer = change(operator("view_limit", "change_limit"), row, most="1001")
    assert "most must be" in answer.content.decode()
    row.refresh_from_db()
    assert (row.most, row.set_by) == (1, "ann")


def test_another_name_cannot_be_smuggled_into_a_change() -> None:
    row = limits.put(kind="agent", name="echo", most=1).limit
    change(operator("view_limit", "change_limit"), row, most="2", kind="scope", name="acme")
    assert [(str(one), one.most) for one in Limit.objects.all()] == [("agent echo", 2)]


def test_nobody_sets_changes_or_removes_without_the_permission() -> None:
    row = limits.put(kind="agent", name="echo", most=1).limit
    client = operator("view_limit")
    assert client.get(reverse(ADD)).status_code == 403
    assert add(client, most="2").status_code == 403
    assert change(client, row, most="2").status_code == 403
    assert client.post(remove_url(row), {"confirmed": "yes"}).status_code == 403
    page = text(client, shown(row))
    assert 'name="most"' not in page
    assert remove_url(row) not in page
    assert [(one.most, str(one)) for one in Limit.objects.all()] == [(1, "agent echo")]
