"""curl, as a process of its own: what it prints is what the table has, once and in order."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailbox_app.models import Run
from mailbox_app.operations import settle
from tests.operations import scene
from tests.streams import table
from tests.streams.conftest import emit, going
from tests.streams.proxies import withholding
from tests.streams.recipes import Curl, recipe
from tests.streams.served import Heard, Server
from tests.streams.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

Start = Callable[..., Curl]


@pytest.fixture(autouse=True)
def _curl() -> None:
    if shutil.which("curl") is None:
        if os.environ.get("MAILBOX_CURL") == "required":
            pytest.fail("curl is missing: apt-get install curl")
        pytest.skip("curl is not installed")


@pytest.fixture
def started(tmp_path: Path, headers: dict[str, str]) -> Iterator[Start]:
    """Starts a program that has the caller's token; none is left behind."""
    programs: list[Curl] = []

    def start_one(*command: str) -> Curl:
        folder = tmp_path / f"program-{len(programs)}"
        folder.mkdir()
        programs.append(Curl(folder, *command, token=headers["Authorization"].removeprefix("Bearer ")))
        return programs[-1]

    yield start_one
    for program in programs:
        program.end()


@pytest.fixture
def curl(started: Start, server: Server, headers: dict[str, str]) -> Start:
    """curl -N of a path under /v1."""

    def start_one(path: str, *options: str) -> Curl:
        return started(
            "curl", "-sSN", "-H", f"Authorization: {headers['Authorization']}", *options, f"{server.url}/v1{path}"
        )

    return start_one


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The recipe of docs/streaming.md, in a file."""
    path = tmp_path / "follow.sh"
    path.write_text(recipe("bash"))
    return str(path)


def test_curl_prints_each_event_as_it_happens_and_ends_with_the_run(curl: Start) -> None:
    taken = scene.posted_and_taken()
    client = curl(f"/runs/{taken.run_id}/events/stream")
    client.until_named("RunStarted")
    for number in range(20):
        emit(taken, f"Told{number}")
        client.until_named(f"Told{number}")  # before there is another one
        emit(taken, f"Secret{number}", visibility="internal")
    settle.complete(taken, output="done")
    assert client.wait() == 0, client.complaints
    assert client.cursors() == table.of_run(taken.run_id)
    assert client.heard()[-1] == Heard("end", {"run_id": str(taken.run_id), "status": "done"})


def test_a_second_curl_goes_on_after_the_last_event_of_the_first_and_is_told_that_there_is_no_more(curl: Start) -> None:
    taken = scene.posted_and_taken()
    path = f"/runs/{taken.run_id}/events/stream"
    first = curl(path)
    with going(taken):
        first.until(lambda one: one.name == "Told" and one.data["payload"]["number"] == 20, "much was told")
        first.end()  # in mid-stream
        had = first.cursors()
        second = curl(path, "-H", f"Last-Event-ID: {had[-1]}")
        second.until(lambda one: one.name == "Told" and int(one.id or 0) > had[-1] + 20, "more was told")
    settle.complete(taken, output="done")
    assert second.wait() == 0
    assert had + second.cursors() == table.of_run(taken.run_id)
    third = curl(path, "-H", f"Last-Event-ID: {second.cursors()[-1]}", "-w", "\n: %{http_code}\n\n")
    assert third.wait() == 0
    assert third.heard() == [Heard("comment", "204")]


def test_a_submission_by_curl_is_answered_by_its_runs_stream(curl: Start) -> None:
    body = '{"agent": "echo", "messages": [{"content": "Hello"}]}'
    client = curl("/runs", "-H", "Accept: text/event-stream", "-H", "Content-Type: application/json", "-d", body)
    client.until_named("RunQueued")
    taken = scene.taken()
    client.until_named("RunStarted")
    with going(taken):
        client.until(lambda one: one.name == "Told" and one.data["payload"]["number"] == 10, "it is told")
    settle.complete(taken, output="done")
    assert client.wait() == 0, client.complaints
    assert client.heard()[0] == Heard("metadata", {"run_id": str(taken.run_id), "attempt": 1})
    assert client.cursors() == table.of_run(taken.run_id)
    assert client.heard()[-1].name == "end"
    assert Run.objects.count() == 1


@pytest.mark.slow
def test_the_recipe_for_curl_has_each_event_once_though_the_server_is_killed(
    web: Web, started: Start, script: str
) -> None:
    taken = scene.posted_and_taken()
    client = started("bash", script, f"{web.url}/v1/runs/{taken.run_id}/events/stream")
    with going(taken):
        client.until(lambda one: one.name == "Told" and one.data["payload"]["number"] == 20, "it is told")
        web.kill()
        had = client.cursors()[-1]
        web.start()
        client.until(lambda one: int(one.id or 0) > had + 20, "it came back")
    settle.complete(taken, output="done")
    assert client.wait() == 0, client.complaints
    assert client.cursors() == table.of_run(taken.run_id)
    assert [one.name for one in client.heard()].count("metadata") >= 2
    assert client.heard()[-1].name == "end"


def test_what_was_cut_off_in_mid_event_is_printed_once_it_is_whole(server: Server, started: Start, script: str) -> None:
    taken = scene.posted_and_taken()
    with withholding(server.url, most_bytes=1_000) as proxy:
        client = started("bash", script, f"{proxy.url}/v1/runs/{taken.run_id}/events/stream")
        with going(taken):
            client.until_named("Told")
            proxy.cut()
            had = client.cursors()[-1]
            client.until(lambda one: int(one.id or 0) > had + 20, "it came back")
        settle.complete(taken, output="done")
        assert client.wait() == 0, client.complaints
    assert client.cursors() == table.of_run(taken.run_id)
    assert [one.name for one in client.heard()].count("metadata") == 2


def test_the_recipe_for_curl_ends_where_there_is_no_more_and_where_it_is_refused(
    server: Server, started: Start, script: str, headers: dict[str, str]
) -> None:
    taken = scene.posted_and_taken()
    stream = f"{server.url}/v1/runs/{taken.run_id}/events/stream"
    emit(taken, "end")  # an agent's own, which ends nothing
    client = started("bash", script, stream)
    client.until(lambda one: one.name == "end" and one.id is not None, "the agent's own end")
    emit(taken, "Later")
    client.until_named("Later")
    settle.complete(taken, output="done")
    assert client.wait() == 0
    assert client.cursors() == table.of_run(taken.run_id)
    unknown = started("bash", script, f"{server.url}/v1/runs/{taken.thread_id}/events/stream")
    assert unknown.wait() == 22
    assert "404" in unknown.complaints
    late = Path(script).with_name("late.sh")
    late.write_text(recipe("bash").replace("last=0", f"last={client.cursors()[-1]}", 1))
    done = started("bash", str(late), stream)
    assert (done.wait(), done.heard()) == (0, [])
