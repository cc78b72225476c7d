"""The example agent `chat` in real worker processes, against an endpoint that is a process as well."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, SLACK_SECONDS
from tests.execution import chat_server
from tests.execution.chat_server import Endpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with chat_server.running(tmp_path / "requests") as running:
        yield running


@pytest.fixture
def stack(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackProcess]:
    """A stack whose settings read the endpoint's place from the environment; the model takes 0.1 s a word."""
    monkeypatch.setenv("MAILBOX_CHAT_BASE_URL", endpoint.url)
    monkeypatch.setenv("MAILBOX_CHAT_API_KEY", chat_server.KEY)
    monkeypatch.setenv("MAILBOX_CHAT_MODEL", "slowly")
    with StackProcess(settings=SETTINGS) as stack:
        yield stack


def post(stack: StackProcess, text: str) -> str:
    body = {"agent": "chat", "thread_key": "talk", "messages": [{"role": "user", "content": text}]}
    answer = stack.request("POST", "/v1/runs", body=body)
    assert answer.status == 202, answer.text
    return str(answer.json["run_id"])


def wait_done(stack: StackProcess, run_id: str) -> str:
    def run() -> dict[str, str]:
        return dict(stack.request("GET", f"/v1/runs/{run_id}").json)

    wait_until(lambda: run()["status"] == "done", RECOVERED_SECONDS)
    assert run()["status"] == "done", (run(), stack.log("worker"))
    return run()["final_output"]


def test_a_talk_goes_on_through_the_death_of_a_worker(stack: StackProcess, endpoint: Endpoint) -> None:
    assert wait_done(stack, post(stack, "hello")) == "You said hello "

    run_id = post(stack, "word " * 30)
    assert wait_until(lambda: len(endpoint.asked) == 2, SLACK_SECONDS), "the model was not asked"
    worker = stack.pid("worker")
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    assert wait_done(stack, run_id) == "You said " + "word " * 30

    first, second, third = endpoint.asked
    assert second == third, "the broken-off answer was asked for anew, with the same words"
    assert [one["content"] for one in second["messages"]] == ["hello", "You said hello ", "word " * 30]
    assert len(first["messages"]) == 1
    answers = stack.request("GET", f"/v1/runs/{run_id}/events").json["items"]
    kinds = [event["kind"] for event in answers]
    assert kinds.count("MessageCommitted") == kinds.count("RunFinished") == 1, kinds
