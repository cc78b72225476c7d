"""Operators pause and resume in the admin, and see what keeps work from starting, by whom, since when and why."""

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from mailbox_app.models import Pause, Run, Thread
from mailbox_app.operations import pauses
from tests import make
from tests.admin.pages import listed, operator, shown, text
from tests.operations import scene

pytestmark = pytest.mark.django_db

ADD = "admin:mailbox_pause_add"


def act_url(row: Any, act: str) -> str:
    return reverse(f"admin:mailbox_{row._meta.model_name}_act", args=[row.pk, act])


def add(client: Client, **given: str) -> Any:
    return client.post(reverse(ADD), {"kind": "agent", "name": "echo", "note": "", **given}, follow=True)


def test_an_agent_is_paused_by_a_form_and_resumed_from_the_list_and_both_are_logged() -> None:
    run, client = make.run(), operator("view_pause", "add_pause", "delete_pause")
    answer = add(client, note="provider is down")
    assert answer.status_code == 200
    row = Pause.objects.get()
    assert (str(row), row.note, row.paused_by) == ("agent echo", "provider is down", "user operator")
    assert scene.take() is None
    page = text(client, listed(Pause))
    assert "provider is down" in page
    assert "user operator" in page
    client.post(listed(Pause), {"action": "resume", "_selected_action": [str(row.pk)], "index": "0"})
    assert not Pause.objects.exists()
    assert scene.taken().run_id == run.pk
    told = LogEntry.objects.order_by("pk")
    assert [(one.object_id, one.get_change_message()) for one in told] == [
        (str(row.pk), "Added."),
        (str(row.pk), "Resume: Resumed: agent echo may go on."),
    ]


def test_a_thread_is_paused_on_its_page_with_a_reason_and_resumed_there() -> None:
    run, client = make.run(), operator("view_thread", "view_run", "add_pause", "delete_pause")
    thread = Thread.objects.get(pk=run.thread_id)
    page = text(client, shown(thread))
    assert act_url(thread, "pause") in page
    assert act_url(thread, "resume") not in page
    client.post(act_url(thread, "pause"), {"confirmed": "yes", "reason": "wait for legal"})
    row = Pause.objects.get()
    assert (row.kind, row.name, row.note, row.paused_by) == (
        "thread",
        str(thread.pk),
        "wait for legal",
        "user operator",
    )
    page = text(client, shown(thread))
    assert act_url(thread, "resume") in page
    for seen in (page, text(client, shown(run))):
        seen = re.sub(r"\s+", " ", seen.replace("\N{NO-BREAK SPACE}", " "))
        assert f"Paused: thread {thread.pk} by user operator" in seen
        assert "wait for legal" in seen
    client.post(act_url(thread, "resume"))
    assert not Pause.objects.exists()
    assert scene.taken().run_id == run.pk
    assert [one.get_change_message() for one in LogEntry.objects.order_by("pk")] == [
        "Pause: Paused: wait for legal",
        f"Resume: Resumed: thread {thread.pk} may go on.",
    ]


@pytest.mark.parametrize("kind", ["agent", "queue"])
def test_the_page_of_a_run_names_the_pause_that_keeps_it_from_starting(admin_client: Client, kind: str) -> None:
    run = make.run()
    name = {"agent": "echo", "queue": scene.QUEUE}[kind]
    says = f"Paused: {kind} {name} by ann"
    assert says not in text(admin_client, shown(run))
    pauses.pause(kind=kind, name=name, by="ann", note="<b>why</b>")
    for row in (run, Thread.objects.get(pk=run.thread_id), run.dispatches.get()):
        page = text(admin_client, shown(row))
        assert says in page, type(row)
        assert "&lt;b&gt;why&lt;/b&gt;" in page
    pauses.resume(kind=kind, name=name)
    assert says not in text(admin_client, shown(run))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": ""}, "This field is required"),
        ({"kind": "thread", "name": "x"}, "name must be a UUID"),
        ({"kind": "run"}, "Select a valid choice"),
        ({"name": "known"}, "agent known is paused already"),
    ],
)
def test_a_form_that_cannot_be_done_says_why_and_pauses_nothing(given: dict[str, str], says: str) -> None:
    pauses.pause(kind="agent", name="known", by="ann")
    answer = add(operator("view_pause", "add_pause"), **given)
    assert says in answer.content.decode()
    assert Pause.objects.get().paused_by == "ann"
    assert not LogEntry.objects.exists()


def test_nobody_pauses_or_resumes_without_the_permission() -> None:
    run = make.run()
    thread = Thread.objects.get(pk=run.thread_id)
    row = pauses.pause(kind="agent", name="echo").pause
    client = operator("view_pause", "view_thread", "change_pause")
    assert client.get(reverse(ADD)).status_code == 403
    assert add(client).status_code == 403
    for url in (act_url(thread, "pause"), act_url(thread, "resume"), act_url(row, "resume")):
        assert client.post(url, {"confirmed": "yes"}).status_code == 403
    assert list(Pause.objects.all()) == [row]
    assert Run.objects.get().status == "created"
