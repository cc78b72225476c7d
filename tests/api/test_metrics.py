"""`/metrics`: who may read it, what it says of the rows, and what it does when there is no database."""

import socket
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models.functions import Now
from django.http import HttpResponse
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from mailbox_app import gauges, metrics
from mailbox_app.models import AgentRegistration, Dispatch, Run, Thread
from mailbox_app.operations import limits, pauses, settle
from tests import given, make
from tests.operations import scene

pytestmark = pytest.mark.django_db
URL = "/metrics"
TOKEN = "scrape-me-if-you-can"

Samples = dict[tuple[str, ...], float]


@pytest.fixture(autouse=True)
def _token(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_token": TOKEN, "metrics_folder": ""}


def ask(secret: str | None = TOKEN, client: Client | None = None) -> HttpResponse:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    return (client or Client()).get(URL, headers=headers)


def scraped() -> Samples:
    """Samples by (name, label value, …)."""
    answer = ask()
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.content.decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def user(**given: Any) -> Any:
    return get_user_model()._default_manager.create_user(username=f"user-{given}", password="x", **given)


def test_the_token_reads_them_in_the_format_of_prometheus() -> None:
    answer = ask()
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.parametrize("secret", [None, "", "another", TOKEN[:-1], f"{TOKEN}x"])
def test_without_the_token_nobody_reads_them_not_even_from_this_host(secret: str | None) -> None:
    answer = ask(secret)
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"] == 'Bearer realm="mailbox"'
    assert b"mailbox_" not in answer.content


def test_an_empty_setting_is_no_token(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_token": ""}
    assert ask("").status_code == 401
    assert ask(None).status_code == 401


@pytest.mark.parametrize(("is_staff", "status"), [(True, 200), (False, 403)])
def test_a_session_reads_them_if_it_is_of_staff(is_staff: bool, status: int) -> None:
    client = Client()
    client.force_login(user(is_staff=is_staff))
    assert ask(None, client).status_code == status


@pytest.mark.parametrize(
    ("owner", "status"), [({"is_staff": True}, 200), ({"is_staff": False}, 401), (None, 401)], ids=str
)
def test_an_api_token_reads_them_if_it_is_of_staff(owner: dict[str, Any] | None, status: int) -> None:
    _, secret = make.token(user=user(**owner) if owner else None)
    assert ask(secret).status_code == status


def test_only_reading_is_allowed() -> None:
    assert Client().post(URL, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 405


def test_every_metric_without_labels_is_there_before_anything_happened() -> None:
    samples = scraped()
    expected = {m.name for m in metrics.METRICS if not m.labels and m.type in ("counter", "gauge")}
    assert {name for (name, *labels) in samples if not labels} >= expected
    assert samples["mailbox_database_up",] == 1


def test_depth_is_counted_by_queue_and_status() -> None:
    for queue, status, times in (("fast", "queued", 3), ("slow", "queued", 2), ("slow", "claimed", 1)):
        for _ in range(times):
            run = given.run(status="running" if status == "claimed" else "created")
            given.dispatch(run=run, queue=queue, status=status)
    given.dispatch(status="acked", queue="fast")
    samples = scraped()
    assert {key: value for key, value in samples.items() if key[0] == "mailbox_dispatches"} == {
        ("mailbox_dispatches", "fast", "queued"): 3,
        ("mailbox_dispatches", "slow", "queued"): 2,
        ("mailbox_dispatches", "slow", "claimed"): 1,
    }
    assert samples["mailbox_depth_is_estimated",] == 0


def test_blocked_threads_are_counted_once_by_what_holds_them() -> None:
    thread = given.thread(blocked_reason="open_run")
    for _ in range(3):
        given.dispatch(run=given.run(thread=thread))
    given.dispatch(run=given.run(thread=given.thread(blocked_reason="paused")))
    given.dispatch()
    samples = scraped()
    assert {key[1]: value for key, value in samples.items() if key[0] == "mailbox_threads_blocked"} == {
        "open_run": 1,
        "paused": 1,
    }


def test_the_oldest_due_work_of_a_queue_is_found_whatever_its_agent_and_priority() -> None:
    for queue, agent, priority, minutes in (
        ("fast", "a", 0, 1), ("fast", "a", 9, 5), ("fast", "b", 0, 3), ("slow", "a", 0, 60),
    ):  # fmt: skip
        due_at = Now() - timedelta(minutes=minutes)
        given.thread(due_at=due_at, due_queue=queue, due_agent=agent, due_priority=priority)
    given.thread(due_at=Now() - timedelta(minutes=4), due_queue="fast", due_agent="a", due_priority=9)
    samples = scraped()
    found = {key[1]: value for key, value in samples.items() if key[0] == "mailbox_oldest_due_age_seconds"}
    assert set(found) == {"fast", "slow"}
    assert 300 <= found["fast"] < 360
    assert 3600 <= found["slow"] < 3660


def test_what_is_paused_makes_no_due_work_old_and_pauses_are_counted_by_what_is_paused() -> None:
    given.registration(agent="b", queues=["mailbox.default"])
    for queue, agent, minutes in (("fast", "a", 1), ("fast", "b", 60), ("slow", "a", 90), ("slow", "b", 120)):
        given.thread(due_at=Now() - timedelta(minutes=minutes), due_queue=queue, due_agent=agent, due_priority=0)
    of_thread = make.run(agent="b")
    kinds = {("mailbox_pauses", kind): 0.0 for kind in ("agent", "queue", "thread")}
    assert {key: value for key, value in scraped().items() if key[0] == "mailbox_pauses"} == kinds
    pauses.pause(kind="thread", name=str(of_thread.thread_id))
    pauses.pause(kind="agent", name="b")
    pauses.pause(kind="queue", name="slow")
    samples = scraped()
    found = {key[1]: value for key, value in samples.items() if key[0] == "mailbox_oldest_due_age_seconds"}
    assert set(found) == {"fast"}
    assert 60 <= found["fast"] < 120
    assert {key for key in kinds if samples[key] == 1} == set(kinds)
    pauses.resume(kind="agent", name="b")
    samples = scraped()
    assert samples["mailbox_oldest_due_age_seconds", "fast"] >= 3600
    assert samples["mailbox_pauses", "agent"] == 0


def test_permits_of_each_limit_are_shown_held_and_free() -> None:
    limits.put(kind="agent", name="echo", most=3)
    limits.put(kind="scope", name="acme", most=1)
    limits.put(kind="agent", name="rated", starts=1, seconds=1)
    scene.posted_and_taken(scope="acme")
    limits.put(kind="agent", name="echo", most=2)
    assert {key[1:]: value for key, value in scraped().items() if key[0] == "mailbox_limit_permits"} == {
        ("agent", "echo", "held"): 1,
        ("agent", "echo", "free"): 1,
        ("scope", "acme", "held"): 1,
        ("scope", "acme", "free"): 0,
    }


def test_a_permit_that_is_to_go_is_not_shown_as_free() -> None:
    limits.put(kind="agent", name="echo", most=2)
    running = [scene.posted_and_taken() for _ in range(2)]
    limits.put(kind="agent", name="echo", most=1)
    for one in running:
        settle.complete(one)
    samples = scraped()
    held, free = (samples["mailbox_limit_permits", "agent", "echo", state] for state in ("held", "free"))
    assert (held, free) == (0, 1)


def test_no_more_limits_are_shown_than_a_scrape_can_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> list[str]:
        return [key[2] for key in scraped() if key[0] == "mailbox_limit_permits" and key[3] == "free"]

    for name in ("d", "b", "a", "c"):
        limits.put(kind="scope", name=name, most=2)
    assert shown() == ["a", "b", "c", "d"]
    monkeypatch.setattr(gauges, "_MOST_LIMITS", 3)
    assert shown() == ["a", "b", "c"]
    monkeypatch.setattr(gauges, "_MOST_COUNTED", 5)
    assert shown() == ["a", "b"]


def test_dead_letters_are_shown_until_somebody_deals_with_them() -> None:
    given.dispatch(status="dead_letter")
    dealt_with = given.dispatch(status="dead_letter")
    assert scraped()["mailbox_dead_letters_unresolved",] == 2
    Dispatch.objects.filter(pk=dealt_with.pk).update(resolution="discarded", resolved_at=Now())
    assert scraped()["mailbox_dead_letters_unresolved",] == 1


def test_the_age_of_each_pass_is_shown_once_it_has_finished() -> None:
    given.maintenance(name="sweep", last_finished_at=Now() - timedelta(seconds=90))
    given.maintenance(name="gc")
    samples = scraped()
    assert 90 <= samples["mailbox_maintenance_age_seconds", "sweep"] < 120
    assert ("mailbox_maintenance_age_seconds", "gc") not in samples


def test_live_workers_and_their_slots_are_counted_once_whatever_their_agents() -> None:
    for agent in ("a", "b", "c"):
        given.registration(worker="one@here", agent=agent, queues=["fast", "slow"], slots=4)
    given.registration(worker="two@here", queues=["fast"], slots=2)
    given.registration(worker="gone@here", queues=["fast"], slots=64, seen_at=Now() - timedelta(hours=1))
    samples = scraped()
    assert samples["mailbox_workers", "fast"] == 2
    assert samples["mailbox_worker_slots", "fast"] == 6
    assert (samples["mailbox_workers", "slow"], samples["mailbox_worker_slots", "slow"]) == (1, 4)


def test_more_than_is_looked_at_is_estimated_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for queue, times in (("fast", 6), ("slow", 4)):
        for _ in range(times):
            given.dispatch(queue=queue)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE mailbox_dispatch")
    monkeypatch.setattr(gauges, "_MOST_COUNTED", 5)
    samples = scraped()
    assert samples["mailbox_depth_is_estimated",] == 1
    depth = [value for key, value in samples.items() if key[0] == "mailbox_dispatches"]
    assert sum(depth) == 10


@pytest.mark.django_db(transaction=True)
def test_without_a_database_the_counters_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", str(port))
    samples = scraped()
    assert samples["mailbox_database_up",] == 0
    assert samples["mailbox_flags_repaired_total",] >= 0


def test_a_database_that_is_too_slow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_CLAIMED", "SELECT pg_sleep(30), 1")
    monkeypatch.setattr(gauges, "_PATIENCE", "50ms")
    samples = scraped()
    assert samples["mailbox_database_up",] == 0
    assert samples["mailbox_flags_repaired_total",] >= 0
    assert [key for key in samples if key[0] == "mailbox_dispatches"] == []


def test_no_label_holds_an_id() -> None:
    run = make.run()
    assert Thread.objects.count() == Run.objects.count() == 1
    AgentRegistration.objects.update(seen_at=Now())
    text = ask().content.decode()
    assert str(run.pk) not in text
    assert str(run.thread_id) not in text
