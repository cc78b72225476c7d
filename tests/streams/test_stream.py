"""Streams over real HTTP: what is sent, in which order, and when it ends."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis.asyncio
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from mailbox_app import channel, metrics
from mailbox_app.execution.live import LiveText
from mailbox_app.models import Run, Thread
from mailbox_app.operations import cancel, checkpoint, recover, settle, threads
from mailbox_app.operations import emit as events
from mailbox_app.operations.ownership import Claim
from mailbox_app.watching import text as watching
from tests import make
from tests.operations import asking, scene
from tests.races.actors import start, until
from tests.streams.conftest import Open, emit
from tests.streams.served import Heard, Server, listening

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}
STREAM = {"Accept": "text/event-stream"}


def paged(path: str) -> list[tuple[str, str, Any]]:
    """(cursor, kind, item) of each event of the paged route, as a stream has them."""
    items = make.api(scope=scene.SCOPE).get(path, limit=200).json()["items"]
    return [(str(item["cursor"]), item["kind"], item) for item in items]


def told(heard: list[Heard]) -> list[tuple[str | None, str, Any]]:
    return [(one.id, one.name, one.data) for one in heard]


def test_a_runs_stream_begins_with_metadata_replays_goes_on_and_ends(opened: Open) -> None:
    posted = scene.post()
    client = opened(f"/runs/{posted.run_id}/events/stream")
    client.until_named("RunQueued")
    taken = scene.taken()
    client.until_named("RunStarted")
    settle.complete(taken, output="done")
    client.to_the_end()
    durable = [one for one in client.heard if one.name != "comment"]
    assert durable[0] == Heard("metadata", {"run_id": str(posted.run_id), "attempt": 1})
    assert durable[-1] == Heard("end", {"run_id": str(posted.run_id), "status": "done"})
    assert told(durable[1:-1]) == paged(f"/runs/{posted.run_id}/events")
    assert client.headers["Content-Type"] == "text/event-stream"
    assert "no-cache" in client.headers["Cache-Control"]
    assert client.headers["X-Accel-Buffering"] == "no"


def test_a_thread_stream_has_every_public_event_and_the_open_runs_live_text(opened: Open) -> None:
    thread = scene.post().thread_id
    client = opened(f"/threads/{thread}/events/stream")
    taken = scene.taken()
    client.until_named("RunStarted")
    live = LiveText(taken)
    live.delta("Grüß")
    client.until_named("delta")
    live.delta(" Gott")
    client.until(lambda one: client.text() == "Grüß Gott")
    late = opened(f"/threads/{thread}/events/stream")
    late.until_named("delta", offset=0, text="Grüß Gott", attempt=1, run_id=str(taken.run_id))
    emit(taken, "Secret", visibility="internal")
    emit(taken, "Told\nid: 7")
    settle.complete(taken, output="Grüß Gott")
    client.until_named("RunFinished")
    page = paged(f"/threads/{thread}/events")
    assert told(client.events()) == [(at, " ".join(kind.split()), item) for at, kind, item in page]
    assert "Secret" not in client.names()
    assert {one.id for one in client.heard if one.name == "delta"} == {None}


def test_a_runs_stream_holds_nothing_of_another_run(opened: Open) -> None:
    first = scene.posted_and_taken(thread_key="k")
    second = scene.post(thread_key="k")
    client = opened(f"/runs/{second.run_id}/events/stream")
    client.until_named("RunQueued")
    LiveText(first).delta("of the first")
    settle.complete(first, output="first")
    LiveText(taken := scene.taken()).delta("of the second")
    client.until_named("delta", text="of the second")
    settle.complete(taken, output="second")
    client.to_the_end()
    assert {one.data["run_id"] for one in client.events()} == {str(second.run_id)}
    assert client.text() == "of the second"


def test_a_stream_over_many_events_that_are_being_recorded_has_no_gap_and_no_repeat(opened: Open) -> None:
    taken = scene.posted_and_taken()
    for number in range(150):  # more than a page, before anybody listens
        emit(taken, "Before", {"number": number})

    def more() -> None:
        for number in range(150):
            emit(taken, "During", {"number": number})
        settle.complete(taken, output="done")

    recording = start(more)
    client, other = (opened(f"/runs/{taken.run_id}/events/stream") for _ in range(2))
    client.to_the_end()
    other.to_the_end()
    recording.result(60)
    api, cursor, expected = make.api(scope=scene.SCOPE), 0, []
    while (page := api.get(f"/runs/{taken.run_id}/events", cursor=cursor, limit=200).json())["items"]:
        expected += [str(item["cursor"]) for item in page["items"]]
        cursor = page["next_cursor"]
    assert len(expected) > 300
    assert [one.id for one in client.events()] == [one.id for one in other.events()] == expected


def test_a_client_that_comes_back_gets_what_it_has_not_had_whatever_its_url_says(opened: Open) -> None:
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream?cursor=1"
    first = opened(path).until_named("RunStarted")
    emit(taken, "Later")
    client = opened(path, last=first.id)
    client.until_named("Later")
    settle.complete(taken, output="done")
    client.to_the_end()
    assert [int(one.id or 0) for one in client.events()] == [int(first.id or 0) + n for n in (1, 2, 3)]
    assert client.names()[:2] == ["metadata", "Later"]
    last = client.events()[-1].id
    for past in (last, str(int(last or 0) + 5)):
        again = opened(path, last=past)
        assert (again.status, again.problem) == (204, None)


def test_a_submission_that_asks_for_a_stream_gets_its_runs_and_so_does_its_repeat(opened: Open) -> None:
    keyed = {**STREAM, "Idempotency-Key": "k"}
    client = opened("/runs", method="POST", body=HELLO, headers=keyed)
    assert client.status == 200
    client.until_named("RunQueued")
    taken = scene.taken()
    assert client.headers["Location"] == f"/v1/runs/{taken.run_id}"
    again = opened("/runs", method="POST", body=HELLO, headers=keyed)
    assert again.headers["Idempotency-Replayed"] == "true"
    again.until_named("RunStarted")
    settle.complete(taken, output="done")
    client.to_the_end()
    again.to_the_end()
    assert told(again.heard) == told(client.heard)
    assert client.heard[-1].data == {"run_id": str(taken.run_id), "status": "done"}
    assert Run.objects.count() == 1


def test_a_submissions_stream_ends_when_its_run_waits_and_the_runs_own_goes_on(opened: Open) -> None:
    client = opened("/runs", method="POST", body=HELLO, headers=STREAM)
    client.until_named("RunQueued")
    taken = scene.taken()
    other = opened(f"/runs/{taken.run_id}/events/stream")
    [ticket] = checkpoint.ask(taken, [asking.question(taken)])
    asking.suspend(taken, [ticket.ticket_id])
    client.to_the_end()
    assert client.names()[-2:] == ["RunSuspended", "end"]
    assert client.heard[-1].data == {"run_id": str(taken.run_id), "status": "waiting"}
    asking.answer(taken, ticket.ticket_id)
    settle.complete(scene.taken(), output="done")
    other.to_the_end()
    assert told(other.events()) == paged(f"/runs/{taken.run_id}/events")
    assert other.heard[-1].data["status"] == "done"


def test_a_submission_that_is_repeated_while_its_run_waits_ends_at_once_whatever_was_told(opened: Open) -> None:
    keyed = {**STREAM, "Idempotency-Key": "k"}
    client = opened("/runs", method="POST", body=HELLO, headers=keyed)
    client.until_named("RunQueued")
    settle.suspend(scene.taken(), scene.wait())
    last = client.until_named("RunSuspended").id
    client.to_the_end()
    again = opened("/runs", method="POST", body=HELLO, headers=keyed, last=last)
    again.to_the_end()
    assert again.names() == ["metadata", "end"]
    assert again.heard[-1].data["status"] == "waiting"


def test_a_run_whose_thread_is_deleted_before_its_end_was_told_is_done(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    with transaction.atomic():
        settle.complete(taken, output="done")
        threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
    client.to_the_end()
    assert client.names()[-2:] == ["RunFinished", "end"]
    assert client.heard[-1].data == {"run_id": str(taken.run_id), "status": "done"}


def buried(taken: Claim) -> None:
    settle.dead_letter(taken, code="permanent", message="no")


def stopped(taken: Claim) -> None:
    cancel.run(scope=scene.SCOPE, run_id=taken.run_id)
    settle.stopped(taken)


@pytest.mark.parametrize(("end", "kind"), [(buried, "RunErrored"), (stopped, "RunCancelled")])
def test_however_a_run_ends_so_does_its_stream(opened: Open, end: Callable[[Claim], None], kind: str) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    end(taken)
    client.to_the_end()
    assert client.names()[-2:] == [kind, "end"]


def test_who_asks_for_what_is_past_the_end_gets_what_comes_next(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/runs/{taken.run_id}/events/stream?cursor=1000000")
    client.until_named("metadata")
    emit(taken, "Next")
    settle.complete(taken, output="done")
    client.to_the_end()
    assert client.names()[:2] == ["metadata", "Next"]
    assert client.names()[-1] == "end"


def test_a_client_that_leaves_stops_no_run(opened: Open, server: Server, headers: Any) -> None:
    with listening(f"{server.url}/v1/runs", method="POST", body=HELLO, headers={**headers, **STREAM}) as client:
        client.until_named("RunQueued")
        taken = scene.taken()
        client.until_named("RunStarted")
    settle.complete(taken, output="done")
    run = Run.objects.get(pk=taken.run_id)
    assert (run.status, run.final_output, run.termination) == ("done", "done", {"type": "natural_end"})


def test_what_an_attempt_says_that_is_over_is_not_heard(opened: Open) -> None:
    stale = scene.posted_and_taken()
    client = opened(f"/threads/{stale.thread_id}/events/stream")
    LiveText(stale).delta("stale")
    client.until_named("delta", attempt=1)
    scene.expire_lease(stale)
    assert recover.reclaim() == 1
    scene.make_available(stale)
    fresh = scene.taken()
    assert fresh.attempt == 2
    client.until_named("RunResumed")
    LiveText(stale).delta("from the grave")
    LiveText(fresh).delta("fresh")
    client.until_named("delta", attempt=2, offset=0, text="fresh")
    settle.complete(fresh, output="fresh")
    client.until_named("RunFinished")
    assert "from the grave" not in [one.data["text"] for one in client.heard if one.name == "delta"]


def said(claim: Claim, live: LiveText, text: str) -> None:
    checkpoint.say(claim, scene.entry(text, verb="say"), text)
    live.close()


def test_a_durable_message_closes_what_was_said_live(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    live = LiveText(taken)
    live.delta("One.")
    client.until_named("delta", offset=0, text="One.")
    said(taken, live, "One.")
    client.until(lambda one: one.name == "MessageCommitted" and one.data["payload"]["role"] == "assistant")
    live.delta("Two.")
    client.until_named("delta", offset=4, text="Two.")
    late = opened(f"/threads/{taken.thread_id}/events/stream")
    late.until_named("delta", offset=4, text="Two.")
    assert [one.data["text"] for one in late.heard if one.name == "delta"] == ["Two."]


def test_live_text_that_redis_did_not_give_when_it_was_asked_for_is_asked_for_again(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent says it once, and nothing more for long."""
    refused: list[Any] = []
    lrange = redis.asyncio.Redis.lrange

    async def at_last(client: Any, *given: Any) -> Any:
        if len(refused) < 2:
            refused.append(given)
            raise redis.TimeoutError
        return await lrange(client, *given)

    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("Let me see.")
    until(lambda: watching.kept(taken.run_id, taken.fence), "it is kept")
    monkeypatch.setattr(redis.asyncio.Redis, "lrange", at_last)
    opened(f"/threads/{taken.thread_id}/events/stream").until_named("delta", offset=0, text="Let me see.")
    assert len(refused) == 2


def test_a_deleted_thread_ends_its_streams(opened: Open) -> None:
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    settle.complete(taken, output="done")
    client.until_named("RunFinished")
    threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
    assert client.to_the_end()[-1] == Heard("end", {"thread_id": str(taken.thread_id), "status": "deleted"})
    assert opened(f"/threads/{taken.thread_id}/events/stream").status == 410


def test_who_is_far_behind_a_thread_that_is_deleted_is_told_all_of_it_first(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_poll_seconds": 1.0}
    taken = scene.posted_and_taken()
    client = opened(f"/threads/{taken.thread_id}/events/stream")
    client.until_named("RunStarted")
    with channel.silenced():
        with Thread.objects.fence(taken.thread_id) as thread:
            for number in range(250):
                events.of_run(thread, "Told", scene.run(taken), number=number)
        settle.complete(taken, output="done")
        threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
    client.until_named("end", thread_id=str(taken.thread_id), status="deleted")
    assert [one.name for one in client.heard][-3:] == ["RunFinished", "ThreadDeleted", "end"]


def test_a_silent_stream_sends_comments_and_has_its_client_come_back_after_a_while(opened: Open, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stream_heartbeat_seconds": 0.05, "stream_seconds": 1.5}
    taken = scene.posted_and_taken()
    heard = opened(f"/runs/{taken.run_id}/events/stream").to_the_end()
    comments = [one.data for one in heard if one.name == "comment"]
    assert comments.count("heartbeat") >= 3
    assert comments[-1] == "that is all for now; connect again"
    assert "end" not in [one.name for one in heard]


def test_somebody_logged_in_streams_as_well(server: Server, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "scope_for_user": "tests.api.test_dead_letters.scope_of_user"}
    posted = scene.post()
    browser = Client()
    browser.force_login(User.objects.create_user("ann"))
    cookie = {"Cookie": f"sessionid={browser.cookies['sessionid'].value}"}
    with listening(f"{server.url}/v1/runs/{posted.run_id}/events/stream", headers=cookie) as client:
        client.until_named("RunQueued")
    answer = httpx.get(f"{server.url}/v1/runs/{posted.run_id}/events/stream")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_streams_are_throttled_as_other_requests_are(opened: Open, settings: Any) -> None:
    posted = scene.post()
    settings.MAILBOX = {**settings.MAILBOX, "throttle_requests_per_minute": 1}
    path = f"/runs/{posted.run_id}/events/stream"
    until(lambda: opened(path).status == 429, "one more in this minute is refused")


def test_an_idle_stream_keeps_no_thread_and_no_connection(opened: Open) -> None:
    taken = scene.posted_and_taken()

    def connections() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return int(cursor.fetchone()[0])

    opened(f"/runs/{taken.run_id}/events/stream").until_named("RunStarted")
    until(lambda: connections() == 1, "the first stream has given its connection back")
    served = lambda: sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())  # noqa: E731
    for _ in range(20):
        opened(f"/runs/{taken.run_id}/events/stream").until_named("RunStarted")
    until(lambda: connections() == 1, "so have the others")
    until(lambda: served() < 5, "and their threads have ended")


def test_what_streams_do_is_counted(opened: Open, server: Server, headers: dict[str, str], settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": ""}

    def counted() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(metrics.exposition(metrics.counted).decode())
        samples = [one for family in families for one in family.samples if one.name.startswith("mailbox_stream")]
        return {(one.name, *one.labels.values()): one.value for one in samples}

    def grown() -> dict[tuple[str, ...], float]:
        now = counted()
        return {key: now[key] - before.get(key, 0) for key in now if now[key] != before.get(key, 0)}

    def ended() -> dict[tuple[str, ...], float]:
        return {key[1:]: value for key, value in grown().items() if key[0] == "mailbox_streams_ended_total"}

    before = counted()
    posted = opened("/runs", method="POST", body=HELLO, headers=STREAM)
    posted.until_named("RunQueued")
    taken = scene.taken()
    client = opened(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    with listening(f"{server.url}/v1/threads/{taken.thread_id}/events/stream", headers=headers) as leaving:
        leaving.until_named("RunStarted")
        there = {("mailbox_streams_open", kind): 1.0 for kind in ("post", "run", "thread")}
        assert grown().items() >= {**there, ("mailbox_stream_threads",): 1.0}.items()
    settle.complete(taken, output="done")
    posted.to_the_end()
    client.to_the_end()
    until(lambda: sum(ended().values()) == 3, "the streams have ended")
    assert ended() == {("post", "end"): 1, ("run", "end"): 1, ("thread", "left"): 1}
    found = grown()
    assert ("mailbox_stream_threads",) not in found
    assert not [key for key in found if key[0] == "mailbox_streams_open"]
    assert found["mailbox_stream_events_sent_total",] >= len(posted.events()) + len(client.events())
    assert found["mailbox_stream_readings_total",] > 0
