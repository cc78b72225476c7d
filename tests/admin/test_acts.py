"""Operators act on runs and dead letters: each with a permission of its own, each act told and logged."""

import itertools
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import models
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from mailbox_app.admin import acting
from mailbox_app.models import AgentVersion, DeadLetter, Dispatch, Event, JournalEntry, Run, Ticket
from mailbox_app.operations import replay, settle
from tests import given, make
from tests.admin.pages import listed, operator, shown, text
from tests.operations import asking, scene

pytestmark = pytest.mark.django_db


def dead() -> DeadLetter:
    """A dead letter with one journalled step."""
    claim = scene.posted_and_taken()
    given.journal_entry(run=Run.objects.get(pk=claim.run_id))
    settle.dead_letter(claim, code="permanent", message="no such customer")
    return DeadLetter.objects.get(pk=claim.dispatch_id)


def scheduled() -> Run:
    return make.run(available_at=timezone.now() + timedelta(days=1))


def dispatch_of(run: Run) -> Dispatch:
    return Dispatch.objects.get(run=run)


def is_due(row: Any) -> bool:
    return Dispatch.objects.get(run_id=row.pk if isinstance(row, Run) else row.run_id).available_at <= timezone.now()


def is_cancelled(row: Any) -> bool:
    run = Run.objects.get(pk=row.pk if isinstance(row, Run) else row.run_id)
    return run.termination is not None and run.termination["type"] == "cancelled"


def journal_of_replay(row: Any) -> int | None:
    """How many entries the replay began with; None without one."""
    run = Run.objects.filter(replay_of=row.run_id).first()
    return None if run is None else JournalEntry.objects.filter(run=run).count()


def is_discarded(row: Any) -> bool:
    return Dispatch.objects.get(pk=row.pk).resolution == "discarded"


@dataclass(frozen=True)
class Case:
    """One act: on what, with which permissions, and how its effect is seen."""

    model: type[models.Model]
    act: str
    permission: str
    make: Callable[[], Any]
    is_done: Callable[[Any], bool]
    is_asked: bool

    @property
    def view(self) -> str:
        return f"view_{self.model._meta.model_name}"


def question() -> Ticket:
    _, [ticket_id] = asking.waiting(schema={"type": ["object", "null"]})
    return asking.ticket(ticket_id)


def answered(action: str) -> Callable[[Any], bool]:
    return lambda row: (Ticket.objects.get(pk=row.pk).answer or {}).get("action") == action


CASES = [
    Case(Ticket, "answer", "answer_ticket", question, answered("resume"), True),
    Case(Ticket, "answer_cancel", "answer_ticket", question, answered("cancel"), True),
    Case(DeadLetter, "replay", "replay_deadletter", dead, lambda row: journal_of_replay(row) == 1, False),
    Case(DeadLetter, "replay_fresh", "replay_fresh_deadletter", dead, lambda row: journal_of_replay(row) == 0, True),
    Case(DeadLetter, "discard", "discard_deadletter", dead, is_discarded, True),
    Case(Run, "cancel", "cancel_run", scheduled, is_cancelled, True),
    Case(Run, "run_now", "run_now_run", scheduled, is_due, False),
    Case(Dispatch, "cancel", "cancel_run", lambda: dispatch_of(scheduled()), is_cancelled, True),
    Case(Dispatch, "run_now", "run_now_run", lambda: dispatch_of(scheduled()), is_due, False),
]
ACTS = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model.__name__}-{case.act}")
EVERY_PERMISSION = {case.permission for case in CASES}


def act_url(row: models.Model, act: str) -> str:
    return reverse(f"admin:mailbox_{row._meta.model_name}_act", args=[row.pk, act])


def chosen(act: str, *rows: Any, **more: str) -> dict[str, Any]:
    """What a list's form posts."""
    return {"action": act, ACTION_CHECKBOX_NAME: [str(row.pk) for row in rows], "index": "0", **more}


def told(answer: Any) -> str:
    """The messages of the page one is led to."""
    return re.sub(r"\s+", " ", " ".join(str(message) for message in answer.context["messages"]))


@ACTS
def test_an_act_is_done_from_the_list_and_logged(case: Case) -> None:
    rows = [case.make(), case.make()]
    client = operator(case.view, case.permission)
    assert f'value="{case.act}"' in text(client, listed(case.model))
    data = chosen(case.act, *rows)
    if case.is_asked:
        page = client.post(listed(case.model), data).content.decode()
        assert "are you sure?" in page
        assert not any(case.is_done(row) for row in rows), "nothing is done before it is confirmed"
        assert not LogEntry.objects.exists()
        assert all(f'value="{row.pk}"' in page for row in rows)
        data = {**data, "confirmed": "yes"}
        del data["index"]
    answer = client.post(listed(case.model), data, follow=True)
    assert all(case.is_done(row) for row in rows)
    assert "2 of 2 done." in told(answer)
    assert {(entry.user.username, entry.object_id) for entry in LogEntry.objects.all()} == {
        ("operator", str(row.pk)) for row in rows
    }


@ACTS
def test_an_act_is_done_by_a_button_and_logged(case: Case) -> None:
    row = case.make()
    client = operator(case.view, case.permission)
    url = act_url(row, case.act)
    assert f'action="{url}"' in text(client, shown(row))
    if case.is_asked:
        for asking in (client.get(url), client.post(url)):
            assert "are you sure?" in asking.content.decode()
            assert not case.is_done(row)
    answer = client.post(url, {"confirmed": "yes"} if case.is_asked else {}, follow=True)
    assert answer.status_code == 200
    assert case.is_done(row)
    assert "1 of 1 done." in told(answer)
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("operator", str(row.pk))
    logged_as = Dispatch if case.model is DeadLetter else case.model
    assert str(entry.content_type.model) == logged_as._meta.model_name


@ACTS
def test_without_its_permission_an_act_is_neither_shown_nor_done(case: Case) -> None:
    row = case.make()
    client = operator(case.view, *EVERY_PERMISSION - {case.permission})
    url = act_url(row, case.act)
    assert f'value="{case.act}"' not in text(client, listed(case.model))
    assert f'action="{url}"' not in text(client, shown(row))
    with scene.nothing_changes():
        for data in (chosen(case.act, row), chosen(case.act, row, confirmed="yes")):
            assert client.post(listed(case.model), data).status_code == 403
        for answer in (client.get(url), client.post(url), client.post(url, {"confirmed": "yes"})):
            assert answer.status_code == 403
    assert not LogEntry.objects.exists()


@ACTS
def test_an_act_is_refused_to_who_may_not_see_the_row(case: Case) -> None:
    row = case.make()
    client = operator(case.permission)
    with scene.nothing_changes():
        assert client.post(act_url(row, case.act), {"confirmed": "yes"}).status_code == 403
        assert client.post(listed(case.model), chosen(case.act, row, confirmed="yes")).status_code == 403


@ACTS
def test_an_act_needs_the_token_of_its_page(case: Case, admin_user: User) -> None:
    row = case.make()
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    with scene.nothing_changes():
        assert client.post(act_url(row, case.act), {"confirmed": "yes"}).status_code == 403


def test_an_unknown_act_or_row_is_refused(admin_client: Client) -> None:
    run = scheduled()
    assert admin_client.post(act_url(run, "delete")).status_code == 403
    missing = reverse("admin:mailbox_run_act", args=[uuid.uuid4(), "run_now"])
    answer = admin_client.post(missing, follow=True)
    assert "There is no such run" in told(answer)
    for bad in ("x", "1", "%00"):
        assert admin_client.post(f"{listed(Run)}{bad}/act/run_now/").status_code == 400
        data = {"action": "run_now", ACTION_CHECKBOX_NAME: [bad], "index": "0"}
        assert admin_client.post(listed(Run), data).status_code == 400
    assert not is_due(run)


def test_what_is_refused_is_told_and_logged_and_leaves_the_others_alone(admin_client: Client) -> None:
    letters = [dead() for _ in range(3)]
    replay.one(dispatch_id=letters[1].pk, by="somebody quicker")
    answer = admin_client.post(listed(DeadLetter), chosen("replay", *letters), follow=True)
    assert "Replay: 2 of 3 done." in told(answer)
    assert f"{letters[1].pk.hex[-8:]}: Refused (already_resolved)" in told(answer)
    assert Run.objects.filter(replay_of__isnull=False).count() == 3, "each once"
    said = LogEntry.objects.get(object_id=str(letters[1].pk)).get_change_message()
    assert said.startswith("Replay: Refused (already_resolved)")


def test_pressing_replay_twice_replays_once(admin_client: Client) -> None:
    letter = dead()
    for expected in ("1 of 1 done", "Refused (already_resolved)"):
        assert expected in told(admin_client.post(act_url(letter, "replay"), follow=True))
    assert Run.objects.filter(replay_of=letter.run_id).count() == 1


def test_a_replay_leads_to_its_new_run_and_its_history_stays_with_the_dispatch(admin_client: Client) -> None:
    letter = dead()
    answer = admin_client.post(act_url(letter, "replay"), follow=True)
    run = Run.objects.get(replay_of=letter.run_id)
    assert shown(run) in told(answer)
    assert shown(letter.run) in text(admin_client, shown(run)), "back to what it replays"
    assert shown(run) in text(admin_client, shown(letter.run))
    dispatch = Dispatch.objects.get(pk=letter.pk)
    assert shown(run) in text(admin_client, shown(dispatch))
    history = text(admin_client, reverse("admin:mailbox_dispatch_history", args=[letter.pk]))
    assert f"Replay: Replayed as run {run.pk}." in history


@pytest.mark.parametrize(("act", "row"), [("discard", dead), ("cancel", scheduled)], ids=["discard", "cancel"])
def test_a_reason_goes_to_the_event_and_the_log(act: str, row: Callable[[], Any], admin_client: Client) -> None:
    made = row()
    data = {"confirmed": "yes", "reason": " customer left "}
    admin_client.post(act_url(made, act), data)
    event = Event.objects.filter(thread=made.thread_id).latest("cursor")
    assert event.payload["reason"] == "customer left"
    assert "customer left" in LogEntry.objects.get().get_change_message()


@pytest.mark.parametrize("reason", ["x" * 201, "nul\x00byte"])
def test_a_reason_that_cannot_be_stored_is_asked_for_again(reason: str, admin_client: Client) -> None:
    letter = dead()
    with scene.nothing_changes():
        answer = admin_client.post(act_url(letter, "discard"), {"confirmed": "yes", "reason": reason})
        assert "are you sure?" in answer.content.decode()
        assert "reason" in told(answer)
        answer = admin_client.post(listed(DeadLetter), chosen("discard", letter, confirmed="yes", reason=reason))
        assert "reason" in told(answer)
    assert not LogEntry.objects.exists()


def test_who_replayed_is_told_to_operators(admin_client: Client) -> None:
    letter = dead()
    admin_client.post(act_url(letter, "replay"))
    event = Event.objects.get(kind="DeadLetterReplayed")
    assert (event.payload["by"], event.visibility) == ("user admin", "internal")


def test_cancelling_what_a_worker_executes_asks_it_to_stop(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    run = Run.objects.get(pk=claim.run_id)
    answer = admin_client.post(act_url(run, "cancel"), {"confirmed": "yes"}, follow=True)
    assert "asked to stop" in told(answer)
    assert "Asked to stop" in text(admin_client, shown(run))
    settle.complete(claim, output="done")
    answer = admin_client.post(act_url(run, "cancel"), {"confirmed": "yes"}, follow=True)
    assert "0 of 1 done." in told(answer)
    assert "The run is done; nothing was cancelled." in told(answer)


def test_a_done_run_offers_nothing(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="done")
    page = text(admin_client, shown(Run.objects.get(pk=claim.run_id)))
    assert "/act/" not in page


def test_at_most_so_many_at_once(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "MOST_AT_ONCE", 3)
    runs = [scheduled() for _ in range(4)]
    with scene.nothing_changes():
        for more in ({}, {"select_across": "1"}):
            answer = admin_client.post(listed(Run), chosen("run_now", *runs, **more), follow=True)
            assert "At most 3 at once" in told(answer)
    assert not LogEntry.objects.exists()
    admin_client.post(listed(Run), chosen("run_now", *runs[:3]))
    assert [is_due(run) for run in runs] == [True, True, True, False]


def test_select_across_takes_the_rows_of_the_filtered_list(admin_client: Client) -> None:
    wanted, other = scheduled(), scheduled()
    url = f"{listed(Run)}?q={wanted.thread_id}"
    admin_client.post(url, chosen("run_now", wanted, select_across="1"))
    assert (is_due(wanted), is_due(other)) == (True, False)


def test_many_results_are_told_with_refusals_first(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "_MOST_TOLD", 2)
    runs = [scheduled() for _ in range(3)]
    claim = scene.posted_and_taken()
    runs.append(Run.objects.get(pk=claim.run_id))
    answer = admin_client.post(listed(Run), chosen("run_now", *runs), follow=True)
    assert "3 of 4 done." in told(answer)
    assert "Refused (not_scheduled)" in told(answer)
    assert "And 2 more" in told(answer)
    assert LogEntry.objects.count() == 4


_numbers = itertools.count(1)


def published(**given: str) -> dict[str, str]:
    """What the form of a new agent version posts."""
    return {
        "agent": "echo", "version": f"v{next(_numbers)}", "configuration": '{"model": "small"}', "note": "", **given
    }  # fmt: skip


def test_a_version_is_published_in_the_name_of_whoever_did(admin_client: Client, admin_user: User) -> None:
    add = reverse("admin:mailbox_agentversion_add")
    answer = admin_client.post(add, published(version="2026-11", note="cheaper"), follow=True)
    assert answer.status_code == 200
    version = AgentVersion.objects.get()
    assert (version.agent, version.version, version.note) == ("echo", "2026-11", "cheaper")
    assert (version.configuration, version.published_by) == ({"model": "small"}, admin_user)
    page = text(admin_client, shown(version))
    assert "&quot;small&quot;" in page
    assert 'name="_save"' not in page
    assert admin_client.post(shown(version), published(note="changed")).status_code == 403
    assert AgentVersion.objects.get().note == "cheaper"
    assert [entry.action_flag for entry in LogEntry.objects.all()] == [1]


@pytest.mark.parametrize(
    "bad",
    [
        {"agent": ""},
        {"agent": "  "},
        {"agent": "nul\x00"},
        {"version": "x" * 101},
        {"configuration": "{"},
        {"configuration": "[1]"},
        {"configuration": '"text"'},
        {"configuration": '{"a": NaN}'},
        {"configuration": '{"a": "\\u0000"}'},
        {"configuration": '{"a": "\\ud800"}'},
        {"configuration": '{"a": "' + "x" * 70_000 + '"}'},
        {"configuration": "[" * 100_000},
        {"version": "taken"},
    ],
    ids=lambda bad: "-".join(f"{name}={value[:20]!r}" for name, value in bad.items()),
)
def test_a_version_that_cannot_be_published_says_why(bad: dict[str, str], admin_client: Client) -> None:
    given.agent_version(version="taken")
    answer = admin_client.post(reverse("admin:mailbox_agentversion_add"), published(**bad))
    assert answer.status_code == 200
    assert "errorlist" in answer.content.decode()
    assert AgentVersion.objects.count() == 1


def test_who_may_only_view_versions_publishes_none() -> None:
    client = operator("view_agentversion")
    assert client.post(reverse("admin:mailbox_agentversion_add"), published()).status_code == 403
    assert "addlink" not in text(client, listed(AgentVersion))
    assert not AgentVersion.objects.exists()


def test_an_operator_answers_a_question_with_a_payload(admin_client: Client) -> None:
    ticket = question()
    url = act_url(ticket, "answer")
    assert 'name="payload"' in admin_client.get(url).content.decode()
    page = admin_client.post(url, {"confirmed": "yes", "payload": "{no json"}).content.decode()
    assert "The payload is not JSON" in page
    assert "{no json" in page, "what was typed is still there"
    refused = admin_client.post(url, {"confirmed": "yes", "payload": "[1]"}, follow=True)
    assert "Refused (invalid_input)" in told(refused)
    assert Ticket.objects.get(pk=ticket.pk).status == "open"
    done = admin_client.post(url, {"confirmed": "yes", "payload": '{"approved": true}'}, follow=True)
    assert "its run goes on" in told(done)
    ticket.refresh_from_db()
    assert ((ticket.answer or {})["payload"], ticket.answered_by) == ({"approved": True}, "user admin")
    again = admin_client.post(url, {"confirmed": "yes"}, follow=True)
    assert "Refused (already_decided)" in told(again)


def test_open_questions_are_listed_and_shown_with_their_run(admin_client: Client) -> None:
    asked = question()
    closed = question()
    settle_by = act_url(closed, "answer_cancel")
    admin_client.post(settle_by, {"confirmed": "yes", "reason": "too much"})
    page = admin_client.get(listed(Ticket), {"state": "open"}).content.decode()
    assert str(asked.pk) in page
    assert str(closed.pk) not in page
    assert asked.ticket_id in text(admin_client, shown(Run.objects.get(pk=asked.run_id)))
    assert "too much" in text(admin_client, shown(closed))
