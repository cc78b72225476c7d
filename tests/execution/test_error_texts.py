"""The text of a foreign error may hold anything, a key in a URL for one: it is for operators alone."""

import json
import logging
from typing import Any

import pytest

from mailbox_app.execution import Context
from mailbox_app.models import Event
from mailbox_app.operations.ownership import Claim
from tests import make
from tests.execution.conftest import Perform
from tests.operations import scene

pytestmark = pytest.mark.django_db

SECRET = "sk-live-4711"


def calls_a_service(ctx: Context) -> None:
    raise ConnectionError(f"GET https://service.example/?key={SECRET} failed")


def told_to_everyone(of: Claim) -> str:
    """All that a reader of the run is shown, as text."""
    run = scene.run(of)
    api = make.api(scope=scene.SCOPE)
    answers = [api.get(f"/runs/{of.run_id}"), api.get(f"/runs/{of.run_id}/events")]
    assert [answer.status_code for answer in answers] == [200, 200]
    events = list(Event.objects.filter(thread_id=of.thread_id, visibility="public").values())
    return json.dumps([run.error, run.termination, events], default=str) + "".join(str(a.content) for a in answers)


@pytest.mark.parametrize(("attempts", "status"), [(2, "queued"), (1, "dead_letter")])
def test_the_text_of_an_agent_s_error_is_told_to_operators_alone(attempts: int, status: str, perform: Perform) -> None:
    one = perform(calls_a_service, max_attempts=attempts)
    told = told_to_everyone(one)
    assert "the agent raised ConnectionError" in told
    assert SECRET not in told
    dispatch = scene.dispatch(one)
    assert dispatch.status == status
    assert dispatch.last_error == (
        f"ConnectionError: ConnectionError: GET https://service.example/?key={SECRET} failed"
    )
    assert SECRET not in json.dumps(dispatch.error)


def test_the_log_line_of_an_agent_s_error_says_where_and_not_what(
    perform: Perform, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "mailbox"):
        one = perform(calls_a_service)
    [record] = [record for record in caplog.records if record.message.startswith("agent.failed ")]
    facts: dict[str, Any] = record.mailbox  # type: ignore[attr-defined]
    assert (facts["run_id"], facts["error"]) == (one.run_id, "ConnectionError")
    assert "in calls_a_service" in facts["traceback"]
    assert SECRET not in caplog.text
