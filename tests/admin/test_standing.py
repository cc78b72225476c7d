"""A page says where its run stands: what it waits for, what is in front of it, or how it ended."""

import html
import re
from datetime import timedelta

import pytest
from django.db import models
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from mailbox_app.admin import render
from mailbox_app.models import DeadLetter, Dispatch, Event, Run, Thread
from mailbox_app.operations import cancel, replay, settle
from tests import given, make
from tests.admin.pages import listed, shown, text
from tests.operations import scene

pytestmark = pytest.mark.django_db


def stands(client: Client, run: Run) -> str:
    """What the pages of a run and of its latest dispatch say, in plain text; both say the same."""
    said = []
    dispatch = Dispatch.objects.filter(run=run).latest("created_at")
    for row in (run, dispatch):
        found = re.search(r'field-stands">(.*?)</div>\s*</div>', text(client, shown(row)), re.S)
        assert found is not None
        plain = html.unescape(re.sub(r"<br>", " / ", found[1]))
        said.append(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", plain)).split("stands:")[1].strip())
    without_spans = [re.sub(r"\([^)]*\)", "", one) for one in said]
    assert without_spans[0] == without_spans[1]
    return said[0]


def test_a_due_run_says_since_when_and_that_no_worker_has_its_agent(admin_client: Client) -> None:
    run = make.run()
    assert "Queued on mailbox.default: may start since" in stands(admin_client, run)
    assert "Unrunnable now: no live worker of mailbox.default has the agent echo" in stands(admin_client, run)
    other = given.registration(queues=["other"])
    assert "Unrunnable" in stands(admin_client, run), "its worker serves another queue"
    other.delete()
    given.registration()
    assert "Unrunnable" not in stands(admin_client, run)
    Dispatch.objects.update(unrunnable_since=timezone.now() - timedelta(hours=3))
    assert re.search(r"Unrunnable: no live worker can run it since .* \(3 h 0 min ago\)", stands(admin_client, run))


def test_a_scheduled_run_says_when_it_may_start(admin_client: Client) -> None:
    run = make.run(available_at=timezone.now() + timedelta(days=3, hours=1, minutes=30))
    assert re.search(r"Scheduled: may start [\d-]+ [\d:.]+ \(in 3 d 1 h\)", stands(admin_client, run))


def test_a_run_that_backs_off_says_after_how_many_attempts(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    settle.nack(claim, code="transient", message="model overloaded", retry_after=60)
    run = Run.objects.get(pk=claim.run_id)
    assert re.search(r"Backs off after 1 of 5 attempts: may start .* \(in 59", stands(admin_client, run))


def test_an_executed_run_says_by_whom_and_whether_it_was_asked_to_stop(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    run = Run.objects.get(pk=claim.run_id)
    assert f"Executed by {scene.WORKER} since" in stands(admin_client, run)
    assert "Its lease ends" in stands(admin_client, run)
    cancel.run(scope=run.scope, run_id=run.pk)
    assert "Asked to stop" in stands(admin_client, run)


def test_a_run_behind_an_open_one_names_it(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    behind = make.run(thread_id=claim.thread_id, scope=scene.SCOPE)
    said = stands(admin_client, behind)
    assert f"Blocked: run {claim.run_id.hex[-8:]} is open on its thread" in said
    assert reverse("admin:mailbox_run_change", args=[claim.run_id]) in text(admin_client, shown(behind))


def test_a_waiting_run_says_for_what_and_until_when(admin_client: Client) -> None:
    run = given.run(status="waiting", resume_at=timezone.now() + timedelta(minutes=30))
    given.dispatch(run=run, status="acked")
    said = stands(admin_client, run)
    assert "Waits for user_input: go on?" in said
    assert "Resumes " in said
    assert re.search(r"The wait ends .* \(in (7 d 0 h|6 d 23 h)\)", said)


def test_a_failed_run_says_how_it_ended(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no such customer")
    said = stands(admin_client, Run.objects.get(pk=claim.run_id))
    assert re.fullmatch(r"Ended .* \([\d.]+ s ago\): error, permanent: no such customer", said)


def test_a_cancelled_run_says_why(admin_client: Client) -> None:
    run = make.run()
    cancel.run(scope=run.scope, run_id=run.pk, reason="customer left")
    assert stands(admin_client, run).endswith(": cancelled, customer left")


def test_run_and_replay_lead_to_each_other_and_name_their_versions(admin_client: Client) -> None:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no")
    Run.objects.filter(pk=claim.run_id).update(config_version="2026-11", code_version="code-7")
    again = Run.objects.get(pk=replay.one(dispatch_id=claim.dispatch_id, by="ann").run_id)
    original = Run.objects.get(pk=claim.run_id)
    assert shown(original) in text(admin_client, shown(again))
    page = text(admin_client, shown(original))
    assert shown(again) in page
    for row in (original, Dispatch.objects.get(pk=claim.dispatch_id)):
        for version in ("2026-11", "code-7"):
            assert version in text(admin_client, shown(row))
    child = given.run(parent_run=original)
    assert shown(original) in text(admin_client, shown(child))


def test_a_run_counts_attempts_and_lost_leases(admin_client: Client) -> None:
    run = given.run(status="running")
    given.dispatch(run=run, attempt_count=2, lost_count=1)
    assert "2 of 5, lost 1" in text(admin_client, shown(run))


def test_the_timeline_says_how_long_after_the_run_was_made(admin_client: Client) -> None:
    run = given.run()
    run.refresh_from_db()
    for seconds in (0.25, 75, 600, 7_200, 200_000):
        event = given.event(thread=run.thread, run_id=run.pk)
        Event.objects.filter(pk=event.pk).update(created_at=run.created_at + timedelta(seconds=seconds))
    page = text(admin_client, shown(run)).replace("\N{NO-BREAK SPACE}", " ")
    found = re.findall(r"<td>(\+[^<]*)</td>", page)
    assert found == ["+0.250 s", "+75.000 s", "+10 min 0 s", "+2 h 0 min", "+2 d 7 h"]


def test_an_instant_before_its_start_is_negative() -> None:
    now = timezone.now()
    assert render.after(now, now - timedelta(seconds=1)).replace("\N{NO-BREAK SPACE}", " ") == "-1.000 s"


def test_dead_letters_stand_first_on_the_index(admin_client: Client) -> None:
    for url in (reverse("admin:index"), reverse("admin:app_list", args=["mailbox"])):
        ours = re.findall(r'href="(/admin/mailbox/\w+/)"', text(admin_client, url))
        assert next(one for one in ours if one != reverse("admin:app_list", args=["mailbox"])) == listed(DeadLetter)


@pytest.mark.parametrize("model", [Thread, Run, Dispatch, DeadLetter, Event])
def test_an_age_shows_what_is_no_older(model: type[models.Model], admin_client: Client) -> None:
    column = "completed_at" if model is DeadLetter else "created_at"
    status = {"status": "dead_letter"} if model is DeadLetter else {}
    maker = {Thread: given.thread, Run: given.run, Event: given.event}.get(model, given.dispatch)
    rows = {age: maker(**status) for age in ("hour", "day", "7 days", "30 days", "older")}
    for age, days in (("hour", 0.0), ("day", 0.5), ("7 days", 3), ("30 days", 20), ("older", 40)):
        model._default_manager.filter(pk=rows[age].pk).update(**{column: timezone.now() - timedelta(days=days)})
    for n, age in enumerate(("hour", "day", "7 days", "30 days"), 1):
        page = text(admin_client, listed(model), age=age)
        pks = [str(row.pk) for row in rows.values()]
        assert [pk for pk in pks if f"/{pk}/change/" in page] == pks[:n]
    assert text(admin_client, listed(model), age="century").count("/change/") >= 5, "an unknown age filters nothing"
