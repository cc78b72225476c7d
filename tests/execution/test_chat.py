"""The example agent `chat`, against an endpoint in a process of its own: what it says, and what each failure costs."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from mailbox_app import testing
from mailbox_app.execution import Context
from mailbox_app.models import Dispatch, JournalEntry
from mailbox_app.testing import Mailbox
from tests import given
from tests.execution import chat_server
from tests.execution.chat_server import Endpoint
from tests.operations import scene


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with chat_server.running(tmp_path_factory.mktemp("chat") / "requests") as server:
        yield server


@pytest.fixture
def endpoint(server: Endpoint, settings: Any) -> Endpoint:
    """The configured endpoint, which has not been asked anything yet; its model `talk` answers."""
    server.log.unlink(missing_ok=True)
    settings.MAILBOX_CHAT_BASE_URL, settings.MAILBOX_CHAT_API_KEY = server.url, chat_server.KEY
    settings.MAILBOX_CHAT_MODEL, settings.MAILBOX_CHAT_TIMEOUT_SECONDS = "talk", 10.0
    return server


def recorded() -> dict[str, Any]:
    return dict(JournalEntry.objects.get(verb="step", name="complete").result)


def test_an_answer_streams_live_and_becomes_the_message(mailbox: Mailbox, endpoint: Endpoint) -> None:
    run = mailbox.submit("hello there", agent="chat")
    assert mailbox.run_until_idle() == 1
    testing.assert_run_finished(run, output="You said hello there ")
    testing.assert_said(run, ["You said hello there "])
    run.refresh_from_db()
    assert (run.input_tokens, run.output_tokens) == (11, 4)
    assert mailbox.streamed(run) == ["You ", "said ", "hello ", "there "]
    assert endpoint.asked == [
        {
            "model": "talk",
            "messages": [{"role": "user", "content": "hello there"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    spoken = {"text": "You said hello there ", "heard": [], "input_tokens": 11, "output_tokens": 4}
    assert recorded() == spoken


def test_the_thread_so_far_is_the_context(mailbox: Mailbox, endpoint: Endpoint) -> None:
    mailbox.submit({"role": "system", "content": "be brief"}, "one", agent="chat", thread_key="talk")
    mailbox.run_until_idle()
    mailbox.submit("two", agent="chat", thread_key="talk")
    mailbox.run_until_idle()
    assert endpoint.asked[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said one "},
        {"role": "user", "content": "two"},
    ]


TROUBLE = {
    "limit-seconds": ("rate_limited", 17.0, "answered 429 (rate_limit_exceeded)"),
    "limit-date": ("rate_limited", 90.0, "answered 429 (rate_limit_exceeded)"),
    "limit-silent": ("rate_limited", None, "answered 429 (rate_limit_exceeded)"),
    "limit-babble": ("rate_limited", None, "answered 429 (rate_limit_exceeded)"),
    "broken": ("model_error", None, "answered 500 (server_error)"),
    "overloaded": ("model_error", 5.0, "answered 503 (overloaded)"),
    "hang": ("model_timeout", None, "was silent for 0.3 s"),
    "hang-midway": ("model_timeout", None, "was silent for 0.3 s"),
    "drop": ("stream_dropped", None, "closed the connection in mid-answer"),
    "end-early": ("stream_dropped", None, "the answer broke off after 6 characters"),
    "fail-midway": ("model_error", None, "reported an error in mid-answer"),
    "garble": ("model_error", None, "reported an error in mid-answer"),
}


@pytest.mark.parametrize("model", TROUBLE)
def test_trouble_is_left_to_the_queue_s_retry(model: str, mailbox: Mailbox, endpoint: Endpoint, settings: Any) -> None:
    code, after, told = TROUBLE[model]
    settings.MAILBOX_CHAT_MODEL = model
    if model.startswith("hang"):
        settings.MAILBOX_CHAT_TIMEOUT_SECONDS = 0.3
    run, before = mailbox.submit("hello", agent="chat"), scene.database_now()
    assert mailbox.run_until_idle(retries=False) == 1
    dispatch = Dispatch.objects.get(run=run)
    assert (dispatch.status, dispatch.attempt_count, len(endpoint.asked)) == ("queued", 1, 1)
    assert dispatch.last_error.startswith(f"{code}: Trouble: ")
    assert told in dispatch.last_error
    assert "secret" not in dispatch.last_error
    delay = dispatch.available_at - before
    if after is None:
        assert delay < timedelta(seconds=3), "the ordinary backoff, and a busy machine"
    else:
        # The endpoint's dates have whole seconds.
        assert timedelta(seconds=after - 1) <= delay < timedelta(seconds=after + 3)

    settings.MAILBOX_CHAT_MODEL = "talk"
    assert mailbox.run_until_idle() == 1
    testing.assert_run_finished(run, output="You said hello ")
    testing.assert_said(run, ["You said hello "])


def test_an_endpoint_that_is_away_is_tried_again(mailbox: Mailbox, endpoint: Endpoint, settings: Any) -> None:
    settings.MAILBOX_CHAT_BASE_URL = "http://127.0.0.1:1/v1"
    run = mailbox.submit("hello", agent="chat")
    mailbox.run_until_idle(retries=False)
    error = "model_unreachable: Trouble: 127.0.0.1:1 could not be reached"
    assert Dispatch.objects.get(run=run).last_error == error


REFUSED = {
    "no-such-thing": ("unknown_model", "answered 404 (model_not_found)"),
    "forbidden": ("forbidden", "answered 403 (unsupported_country)"),
    "too-long": ("bad_request", "answered 400 (context_length_exceeded)"),
    "teapot": ("bad_request", "answered 418 (teapot)"),
    "no-money": ("quota_exhausted", "answered 429 (insufficient_quota)"),
    "silent": ("empty_answer", "the model said nothing (finish_reason stop)"),
}


@pytest.mark.parametrize("model", REFUSED)
def test_a_refusal_is_a_dead_letter_whose_code_says_why(
    model: str, mailbox: Mailbox, endpoint: Endpoint, settings: Any
) -> None:
    code, told = REFUSED[model]
    settings.MAILBOX_CHAT_MODEL = model
    run = mailbox.submit("hello", agent="chat")
    assert mailbox.run_until_idle() == 1
    testing.assert_dead_letter(run, code=code)
    run.refresh_from_db()
    assert run.error is not None
    assert told in run.error["message"]
    assert "hello" not in run.error["message"], "a provider's text may quote the prompt"
    assert len(endpoint.asked) == 1


def test_a_wrong_key_is_a_dead_letter_that_does_not_quote_it(
    mailbox: Mailbox, endpoint: Endpoint, settings: Any
) -> None:
    settings.MAILBOX_CHAT_API_KEY = "sk-wrong"
    run = mailbox.submit("hello", agent="chat")
    assert mailbox.run_until_idle() == 1
    dispatch = testing.assert_dead_letter(run, code="bad_credentials")
    assert "answered 401 (invalid_api_key)" in dispatch.last_error
    assert "sk-wrong" not in dispatch.last_error


@pytest.mark.parametrize("name", ["MAILBOX_CHAT_BASE_URL", "MAILBOX_CHAT_MODEL"])
def test_without_its_settings_it_says_which_one_is_missing(
    name: str, mailbox: Mailbox, endpoint: Endpoint, settings: Any
) -> None:
    setattr(settings, name, "")
    run = mailbox.submit("hello", agent="chat")
    mailbox.run_until_idle()
    message = f"Refusal: no endpoint to talk to: {name} not set"
    assert testing.assert_dead_letter(run, code="chat_not_configured").error == {
        "code": "chat_not_configured",
        "message": message,
    }
    assert endpoint.asked == []


def test_without_the_client_it_says_what_to_install(
    mailbox: Mailbox, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    run = mailbox.submit("hello", agent="chat")
    mailbox.run_until_idle()
    dispatch = testing.assert_dead_letter(run, code="chat_not_installed")
    assert "pip install 'django-mailbox-queue[chat]'" in dispatch.last_error


def test_the_project_starts_without_the_client() -> None:
    code = "import sys; sys.modules['openai'] = None; import django; django.setup(); import mailbox_project.chat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_answer_that_was_recorded_is_not_paid_for_again(
    mailbox: Mailbox, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is: the only checkpoint is the one after the answer.
    monkeypatch.setattr("mailbox_project.chat._LOOK_SECONDS", 3600.0)
    run = mailbox.submit("hello", agent="chat")
    reach = Context.checkpoint

    def lost(ctx: Context) -> Any:
        raise ConnectionResetError("the worker has gone")

    monkeypatch.setattr(Context, "checkpoint", lost)
    mailbox.run_until_idle(retries=False)
    assert Dispatch.objects.get(run=run).attempt_count == 1
    monkeypatch.setattr(Context, "checkpoint", reach)
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output="You said hello ")
    assert len(endpoint.asked) == 1
    assert mailbox.streamed(run) == ["You ", "said ", "hello "], "live text is not sent again"
    run.refresh_from_db()
    assert (run.input_tokens, run.output_tokens) == (11, 3), "counted once"


def test_a_cancelled_run_stops_in_mid_answer(mailbox: Mailbox, endpoint: Endpoint, settings: Any) -> None:
    settings.MAILBOX_CHAT_MODEL = "slowly"
    run = mailbox.submit("word " * 100, agent="chat")
    Dispatch.objects.filter(run=run).update(cancel_requested_at=scene.database_now())
    mailbox.run_until_idle()
    run.refresh_from_db()
    assert run.termination == {"type": "cancelled"}
    assert 1 <= len(mailbox.streamed(run)) < 50


def test_a_message_that_arrives_in_mid_answer_is_answered_next(
    mailbox: Mailbox, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mailbox.submit("one", agent="chat")
    delta = Context.delta

    def steered(ctx: Context, text: str) -> None:
        delta(ctx, text)
        if len(mailbox.streamed(run)) == 2:
            given.message(thread=run.thread, run=run, scope=run.scope, content="two", boundary="next_step")

    monkeypatch.setattr(Context, "delta", steered)
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output="You said two ")
    testing.assert_said(run, ["You said one ", "You said two "])
    assert [one["messages"][-1]["content"] for one in endpoint.asked] == ["one", "two"]
    assert [one["role"] for one in endpoint.asked[1]["messages"]] == ["user", "assistant", "user"]
