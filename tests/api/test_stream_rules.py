"""Streams: what is refused before one opens, and what WSGI, where none can stay open, answers instead."""

import json
import uuid
from typing import Any

import pytest
from django.test import Client

from mailbox_app.api.v1 import stream
from mailbox_app.models import Event, Run, Thread
from mailbox_app.operations import settle, threads
from tests import make
from tests.operations import scene
from tests.streams.served import Heard, parsed

pytestmark = pytest.mark.django_db

HELLO = {"agent": "echo", "messages": [{"content": "Hello"}]}


@pytest.fixture
def api() -> make.Api:
    return make.api(scope=scene.SCOPE)


def heard(answer: Any) -> list[Heard]:
    assert answer.status_code == 200, answer.content
    lines = b"".join(answer.streaming_content).decode().splitlines()
    return list(parsed(iter(lines)))


@pytest.mark.parametrize("of", ["run", "thread"])
def test_a_stream_of_what_is_not_there_is_404_and_of_what_was_deleted_410(api: make.Api, of: str) -> None:
    gone = scene.posted_and_taken()
    settle.complete(gone)
    other = scene.post(scope="other")
    threads.delete(scope=scene.SCOPE, thread_id=gone.thread_id)
    for given in (uuid.uuid4(), getattr(other, f"{of}_id")):
        answer = api.get(f"/{of}s/{given}/events/stream")
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, f"{of}_not_found")
    answer = api.get(f"/{of}s/{getattr(gone, f'{of}_id')}/events/stream")
    assert (answer.status_code, make.problem_of(answer)["code"]) == (410, "gone")
    assert make.problem_of(api.get(f"/{of}s/x/events/stream"))["code"] == "malformed_id"


@pytest.mark.parametrize("of", ["run", "thread"])
@pytest.mark.parametrize("wrong", ["", " ", "x", "-1", "1.5", "9" * 31, "1\u0661"])
def test_a_cursor_that_is_none_is_400_in_the_header_as_in_the_address(api: make.Api, of: str, wrong: str) -> None:
    path = f"/{of}s/{getattr(scene.post(), f'{of}_id')}/events/stream"
    answer = api.get(path, cursor=wrong)
    assert make.problem_of(answer)["errors"][0]["field"] == "cursor"
    sent = {"authorization": f"Bearer {api.secret}", "last-event-id": wrong}
    answer = api.client.get(f"/v1{path}", headers=sent)
    assert (answer.status_code, make.problem_of(answer)["code"]) == (400, "malformed_cursor")
    assert make.problem_of(answer)["errors"][0]["field"] == "Last-Event-ID"


def test_a_parameter_that_is_not_known_is_422(api: make.Api) -> None:
    assert api.get(f"/runs/{scene.post().run_id}/events/stream", limit=5).status_code == 422


@pytest.mark.parametrize("of", ["run", "thread"])
def test_a_cursor_whose_events_are_past_their_retention_is_410(api: make.Api, of: str) -> None:
    taken = scene.posted_and_taken()
    Thread.objects.filter(pk=taken.thread_id).update(pruned_cursor=2)
    Event.objects.filter(thread_id=taken.thread_id, cursor__lte=2).delete()
    path = f"/{of}s/{getattr(taken, f'{of}_id')}/events/stream"
    refused = api.get(path, cursor=1)
    assert (refused.status_code, make.problem_of(refused)["oldest_cursor"]) == (410, 2)
    for cursor in (0, 2):
        assert [one.id for one in heard(api.get(path, cursor=cursor)) if one.id][:1] == ["3"]


def test_a_run_that_is_done_and_sent_is_204_and_has_no_body(api: make.Api) -> None:
    taken = scene.posted_and_taken()
    settle.complete(taken, output="done")
    path = f"/runs/{taken.run_id}/events/stream"
    sent = heard(api.get(path))
    assert [sent[0].name, sent[-1]] == ["metadata", Heard("end", {"run_id": str(taken.run_id), "status": "done"})]
    last = int([one.id for one in sent if one.id][-1] or 0)
    assert [one.name for one in heard(api.get(path, cursor=last - 1))] == ["metadata", "RunFinished", "end"]
    for cursor in (last, last + 100):
        answer = api.get(path, cursor=cursor)
        assert (answer.status_code, answer.content) == (204, b"")
    # The thread goes on, whoever is done.
    assert heard(api.get(f"/threads/{taken.thread_id}/events/stream", cursor=last + 100))


def test_a_stream_is_asked_for_as_one_or_as_anything(api: make.Api) -> None:
    path = f"/v1/runs/{scene.post().run_id}/events/stream"
    sent = {"authorization": f"Bearer {api.secret}"}
    for accept, status in (("text/event-stream", 200), ("*/*", 200), ("application/json", 406)):
        assert api.client.get(path, headers={**sent, "accept": accept}).status_code == status
    assert api.client.get("/v1/runs", headers={**sent, "accept": "text/event-stream"}).status_code == 406
    for method in ("head", "post", "put", "delete"):
        assert getattr(api.client, method)(path, headers=sent).status_code == 405
    assert Client().get(path).status_code == 401


def test_wsgi_sends_what_there_is_and_has_the_client_come_back(api: make.Api) -> None:
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    first = heard(api.get(path))
    assert [one.name for one in first][:1] == ["metadata"]
    assert first[-1] == Heard("comment", "that is all for now; connect again")
    settle.complete(taken, output="done")
    rest = heard(api.get(path, cursor=[one.id for one in first if one.id][-1]))
    page = api.get(f"/runs/{taken.run_id}/events").json()["items"]
    assert [one.data for one in [*first, *rest] if one.id] == page
    assert rest[-1].name == "end"


def test_whoever_serves_streams_by_wsgi_is_told_once(api: make.Api, caplog: pytest.LogCaptureFixture) -> None:
    stream._tell_of_wsgi.cache_clear()
    path = f"/runs/{scene.post().run_id}/events/stream"
    for _ in range(3):
        heard(api.get(path))
    told = [record for record in caplog.records if getattr(record, "mailbox_event", "") == "stream.wsgi"]
    assert [record.levelname for record in told] == ["WARNING"]


def test_wsgi_answers_a_submission_that_asks_for_a_stream_with_its_beginning(api: make.Api) -> None:
    answer = api.post("/runs", HELLO, accept="text/event-stream")
    run = Run.objects.get()
    assert [one.name for one in heard(answer)] == ["metadata", "RunQueued", "comment"]
    assert answer["Location"] == f"/v1/runs/{run.pk}"


def test_a_submission_that_is_refused_is_refused_in_json(api: make.Api) -> None:
    answer = api.post("/runs", {**HELLO, "agent": "nobody"}, accept="text/event-stream")
    assert make.problem_of(answer)["code"] == "unknown_agent"
    assert json.loads(api.post("/runs", HELLO, accept="application/json").content)["status"] == "created"
    assert Run.objects.count() == 1
