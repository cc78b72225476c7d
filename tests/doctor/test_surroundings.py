"""What the rows stand on: passes, workers, signals, connections, the broker; and the command that says it all."""

import io
import json
import os
import socket
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import current_app
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now

from mailbox_app import channel, hints
from mailbox_app.conf import conf
from mailbox_app.devtools.servers import Redis
from mailbox_app.doctor import examine, flags, running, server, walk
from mailbox_app.doctor.findings import Finding
from mailbox_app.models import Dispatch, Maintenance, Run, Thread
from mailbox_app.operations import settle
from tests import given
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]
LATE = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _own_broker(own_redis: Redis, settings: Any) -> Iterator[None]:
    """A broker and hints of the test's own, without what another test has left there."""
    before = current_app.conf.broker_url, current_app.conf.broker_write_url
    url = own_redis.url
    current_app.conf.broker_url = current_app.conf.broker_write_url = url
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": url, "broker_timeout_seconds": 2.0}
    channel.forget_failures()
    yield
    current_app.conf.broker_url, current_app.conf.broker_write_url = before
    hints._pools.clear()
    channel.forget_failures()


@pytest.fixture
def alive() -> None:
    """A worker that serves everything, and passes that ran just now."""
    given.registration(slots=4)
    for name in ("due_tick", "sweep", "gc"):
        given.maintenance(name=name)


def codes(findings: list[Finding]) -> list[str]:
    return [one.code for one in findings]


def age(of: Any) -> None:
    """Its work has been due for an hour, as its dispatch and its flag say."""
    Dispatch.objects.filter(run_id=of.run_id).update(available_at=Now() - LATE)
    due_at = Dispatch.objects.get(run_id=of.run_id).available_at
    Thread.objects.filter(pk=of.thread_id).update(due_at=due_at)
    assert flags.look([of.thread_id]) == []


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("name", ["due_tick", "sweep", "gc"])
def test_pass_late_a_pass_that_stopped_or_never_ran_is_told(name: str) -> None:
    assert running.look() == []
    Maintenance.objects.filter(name=name).update(last_started_at=Now() - timedelta(seconds=150))
    (found,) = running.look()
    assert (found.code, found.sentence.split(" s ago")[0]) == ("pass_late", f"{name} last began 150")
    Maintenance.objects.filter(name=name).delete()
    assert [one.sentence.split(";")[0] for one in running.look()] == [f"{name} last began never"]


@pytest.mark.usefixtures("alive")
def test_no_live_worker_is_told_of_work_that_nobody_can_run() -> None:
    given.registration(agent="other", queues=["elsewhere"])
    given.registration(agent="gone", gone_at=Now())
    posted = [scene.post(agent=name) for name in ("echo", "other", "gone")]
    assert running.look() == [], "all of it is in motion"
    for one in posted:
        age(one)
    said = {one.sentence.split(" on queue")[0]: one for one in running.look() if one.code == "no_live_worker"}
    assert set(said) == {"work of agent 'other'", "work of agent 'gone'"}
    assert said["work of agent 'other'"].sentence.endswith("live workers have it on elsewhere alone")
    assert said["work of agent 'gone'"].sentence.endswith("no live worker has it")


@pytest.mark.parametrize(
    ("version", "accepts", "is_found"),
    [("1", None, True), ("2", None, False), ("10", None, False), ("10", [], True), ("10", ["2"], False)],
)
def test_workers_too_old_is_told_where_none_goes_on_with_what_a_newer_one_began(
    version: str, accepts: list[str] | None, is_found: bool
) -> None:
    given.registration(version=version, options={} if accepts is None else {"accepts": accepts})
    claim = scene.posted_and_taken()
    settle.hand_back(tokens=[claim.token])
    Dispatch.objects.filter(pk=claim.dispatch_id).update(version_key="0000000002")
    Thread.objects.filter(pk=claim.thread_id).update(due_version="0000000002")
    age(claim)
    assert ("workers_too_old" in codes(running.look())) is is_found


@pytest.mark.usefixtures("alive")
def test_due_work_not_taken_is_told_where_slots_are_free_and_nothing_moves() -> None:
    first = scene.post()
    age(first)
    assert codes(running.look()) == ["due_work_not_taken"]
    claim = scene.taken()
    age(scene.post())
    assert running.look() == [], "one was claimed just now"
    Dispatch.objects.filter(pk=claim.dispatch_id).update(claimed_at=Now() - LATE)
    assert codes(running.look()) == ["due_work_not_taken"]
    settle.complete(claim)
    assert running.look() == [], "one has ended just now"
    Dispatch.objects.filter(pk=claim.dispatch_id).update(completed_at=Now() - LATE)
    assert codes(running.look()) == ["due_work_not_taken"]


def test_due_work_behind_busy_slots_is_a_backlog_and_no_finding() -> None:
    given.registration(slots=1)
    for name in ("due_tick", "sweep", "gc"):
        given.maintenance(name=name)
    claim = scene.posted_and_taken()
    Dispatch.objects.filter(pk=claim.dispatch_id).update(claimed_at=Now() - LATE)
    age(scene.post())
    assert running.look() == []


@pytest.mark.usefixtures("alive")
def test_fix_sends_the_lost_signals_and_writes_no_row() -> None:
    queue = redis.Redis.from_url(conf.redis_url)
    age(scene.post())
    queue.delete(scene.QUEUE)  # the broker lost it
    with scene.nothing_changes():
        report = examine.everything(fix=True)
    assert [(one.code, one.is_fixed) for one in report.findings] == [("due_work_not_taken", True)]
    assert queue.llen(scene.QUEUE) == 1


def test_too_many_connections_is_told_with_the_formula() -> None:
    given.registration(worker="small", slots=2)
    assert "too_many_connections" not in codes(server.look().findings)
    given.registration(worker="large", slots=5_000)
    (found,) = [one for one in server.look(web_processes=3).findings if one.code == "too_many_connections"]
    assert found.sentence.startswith("2 live workers with 5002 slots may hold 5012 connections with threads, 20008 ")


def test_connections_nearly_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_NEARLY_ALL", 0.0)
    assert "connections_nearly_out" in codes(server.look().findings)


def test_long_transaction_is_told_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LONG_SECONDS", 0)
    pids: list[int] = []
    over = uuid.uuid4()

    def hold() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.append(cursor.fetchone()[0])
            until(lambda: over in holders, "the test is over")

    holders: list[uuid.UUID] = []
    held = start(hold)
    until(lambda: pids, "a transaction is open")
    said = [one.sentence for one in server.look().findings if one.code == "long_transaction"]
    holders.append(over)
    held.result(20)
    assert [one for one in said if one.startswith(f"process {pids[0]} of PostgreSQL")]


def test_broker_away_is_told_and_a_broker_that_answers_is_a_fact() -> None:
    seen = server.look()
    assert "broker_away" not in codes(seen.findings)
    assert "broker: redis answers; a busy worker takes no signal" in seen.facts
    url = f"redis://127.0.0.1:{closed_port()}/0"
    current_app.conf.broker_url = current_app.conf.broker_write_url = url
    assert "broker_away" in codes(server.look().findings)


def test_another_broker_that_is_away_is_told_in_time() -> None:
    current_app.conf.broker_url = current_app.conf.broker_write_url = f"amqp://127.0.0.1:{closed_port()}//"
    (found,) = [one for one in server.look().findings if one.code == "broker_away"]
    assert found.sentence.startswith("the broker (amqp) does not answer: ")


def test_redis_away_is_told(settings: Any) -> None:
    assert "redis_away" not in codes(server.look().findings)
    settings.MAILBOX = {**settings.MAILBOX, "redis_url": f"redis://127.0.0.1:{closed_port()}/0"}
    assert "redis_away" in codes(server.look().findings)


def test_redis_evicts_is_told() -> None:
    client = redis.Redis.from_url(conf.redis_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert "redis_evicts" not in codes(server.look().findings), "it has all the memory it wants"
    client.config_set("maxmemory", "50mb")
    (found,) = [one for one in server.look().findings if one.code == "redis_evicts"]
    assert found.sentence.endswith("with the policy allkeys-lru")


def test_the_system_checks_speak_with_their_own_ids(settings: Any) -> None:
    settings.MAILBOX = {name: value for name, value in settings.MAILBOX.items() if name != "redis_url"}
    assert "mailbox.W001" in codes(server.look().findings)
    settings.SILENCED_SYSTEM_CHECKS = ["mailbox.W001"]
    assert "mailbox.W001" not in codes(server.look().findings)


def test_a_snapshot_writes_nothing_and_nothing_moves_in_it() -> None:
    with pytest.raises(Exception, match="read-only transaction"), walk.snapshot():
        scene.post()
    with walk.snapshot():
        before = Run.objects.count()
        start(scene.post).result(20)
        assert Run.objects.count() == before
    assert Run.objects.count() == before + 1


# The command.


def run(*arguments: str) -> tuple[int, str]:
    """Its exit code, and what it prints on standard output."""
    output = io.StringIO()
    try:
        call_command("mailbox_doctor", *arguments, stdout=output, stderr=io.StringIO())
    except SystemExit as error:
        return int(str(error.code)), output.getvalue()
    return 0, output.getvalue()


@pytest.mark.usefixtures("alive")
def test_a_healthy_system_exits_0_and_says_what_was_looked_at() -> None:
    scene.post()
    with scene.nothing_changes():
        code, said = run()
    assert code == 0, said
    assert "healthy; looked at 1 threads, 1 runs, 1 dispatches, 1 messages, 2 events in" in said
    code, said = run("--json")
    found = json.loads(said)
    assert (code, found["healthy"], found["findings"]) == (0, True, [])
    assert found["looked_at"]["threads"] == 1


@pytest.mark.usefixtures("alive")
def test_findings_exit_1_until_they_are_fixed() -> None:
    posted = scene.post()
    Thread.objects.filter(pk=posted.thread_id).update(due_queue="elsewhere")
    with scene.nothing_changes():
        code, said = run("--thread", str(posted.thread_id))
    assert code == 1
    assert said.startswith(f"flag_wrong: the flag of thread {posted.thread_id} says due since ")
    assert "\n    Workers look at the thread for nothing" in said
    code, said = run("--json", "--scope", scene.SCOPE)
    assert (code, json.loads(said)["counts"]) == (1, {"flag_wrong": 1})
    code, said = run("--fix")
    assert (code, said.splitlines()[0].split(":")[0]) == (0, "flag_wrong (fixed)")
    assert run()[0] == 0


def test_a_database_that_is_away_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(examine, "everything", refuse)
    with pytest.raises(CommandError, match="could not look: OperationalError: connection refused") as failed:
        run()
    assert failed.value.returncode == 2
    code, said = run("--json")
    assert (code, json.loads(said)) == (2, {"healthy": None, "error": "OperationalError: connection refused"})


def test_every_code_of_the_surroundings_has_a_test_named_after_it() -> None:
    source = Path(__file__).read_text()
    for check in (*running.CHECKS, *server.CHECKS):
        assert f"def test_{check.code}_" in source, check.code


def test_the_page_names_every_code_with_its_remedy() -> None:
    path = ROOT / "docs/doctor.md"
    begin, end = "<!-- printed -->\n", "<!-- /printed -->\n"
    before, rest = path.read_text().split(begin)
    printed, after = rest.split(end)
    if os.environ.get("MAILBOX_WRITE_DOCUMENTS"):
        printed = examine.reference()
        path.write_text(before + begin + printed + end + after)
    assert printed == examine.reference()
