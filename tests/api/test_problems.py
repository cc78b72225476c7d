"""Refusals: their form, their statuses, and what they keep to themselves."""

import inspect
import json
import logging
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client

from mailbox_app import errors
from mailbox_app.api.v1.errors import PROBLEMS
from tests import make

pytestmark = pytest.mark.django_db

SECRET = "password=hunter2"


def refusals() -> list[type[errors.MailboxError]]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    bases = {errors.Refused, errors.NotFound}
    return [cls for cls in classes if issubclass(cls, errors.Refused | errors.Retryable) and cls not in bases]


@pytest.mark.parametrize("cls", refusals(), ids=lambda cls: cls.__name__)
def test_every_refusal_of_the_app_has_a_status(cls: type[errors.MailboxError]) -> None:
    assert 400 <= PROBLEMS[cls.code].status < 600


def test_the_statuses_of_the_error_tree_follow_its_branches() -> None:
    expected = {errors.InvalidInput: 422, errors.NotFound: 404, errors.Gone: 410, errors.Conflict: 409}
    for cls in refusals():
        for branch, status in expected.items():
            if issubclass(cls, branch):
                assert PROBLEMS[cls.code].status == status


def test_problem_details_have_the_standard_members_a_code_and_the_facts() -> None:
    answer = make.api().get("/runs/0190a0a0-0000-7000-8000-000000000000")
    assert make.problem_of(answer) == {
        "type": "urn:mailbox:problem:run_not_found",
        "title": "There is no such run",
        "status": 404,
        "detail": "run not found: 0190a0a0-0000-7000-8000-000000000000",
        "code": "run_not_found",
        "run_id": "0190a0a0-0000-7000-8000-000000000000",
    }


@pytest.mark.parametrize("path", ["/v1/", "/v1/nowhere", "/v1/runs/", "/v1/runs/a/b/c", "/v1/threads/%2F"])
def test_an_unknown_address_under_the_prefix_is_404(path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = Client().generic(method, path)
        assert (answer.status_code, make.problem_of(answer)["code"]) == (404, "not_found")


def test_a_method_the_address_does_not_support_is_405_and_says_which_it_does() -> None:
    api = make.api()
    for method, path, allowed in (
        ("DELETE", "/v1/runs", "GET, POST, HEAD"),
        ("GET", "/v1/runs/batch", "POST"),
        ("POST", "/v1/runs/0190a0a0-0000-7000-8000-000000000000/wait", "GET, HEAD"),
        ("OPTIONS", "/v1/threads", "GET, POST, HEAD"),
        ("PATCH", "/v1/threads", "GET, POST, HEAD"),
        ("POST", "/v1/schema", "GET, HEAD"),
        ("POST", "/v1/docs", "GET, HEAD"),
    ):
        answer = api.client.generic(method, path, headers={"authorization": f"Bearer {api.secret}"})
        assert (answer.status_code, make.problem_of(answer)["code"]) == (405, "method_not_allowed")
        assert set(answer["Allow"].split(", ")) == set(allowed.split(", "))


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "text/event-stream"])
def test_a_representation_there_is_none_of_is_406(accept: str) -> None:
    api = make.api()
    answer = api.client.get("/v1/threads", headers={"authorization": f"Bearer {api.secret}", "accept": accept})
    assert (answer.status_code, make.problem_of(answer)["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/problem+json", "text/html,application/*;q=0.5"]
)
def test_json_is_what_everybody_else_gets(accept: str) -> None:
    api = make.api()
    answer = api.client.get("/v1/threads", headers={"authorization": f"Bearer {api.secret}", "accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")


def test_text_goes_out_as_utf_8() -> None:
    thread = make.thread(title="Grüße 😀")
    assert "Grüße 😀".encode() in make.api().get(f"/threads/{thread.pk}").content


def _failing(error: Exception) -> Any:
    """Have the database raise this at the first look at a thread."""

    def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if 'FROM "mailbox_thread"' in sql:
            raise error
        return run(sql, params, many, context)

    return connection.execute_wrapper(execute)


def test_an_unexpected_error_is_500_logged_and_keeps_its_details_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    api = make.api(client=Client(raise_request_exception=False))
    with _failing(RuntimeError(SECRET)), caplog.at_level(logging.ERROR, "django.request"):
        answer = api.get("/threads")
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"]) == (500, "internal_error")
    assert SECRET not in json.dumps(found)
    [record] = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == SECRET


def test_an_unexpected_error_reaches_the_signal_that_error_trackers_listen_to() -> None:
    with _failing(RuntimeError(SECRET)), pytest.raises(RuntimeError, match=SECRET):
        make.api().get("/threads")


def test_a_database_in_trouble_is_503_and_worth_another_try() -> None:
    api = make.api(client=Client(raise_request_exception=False))
    with _failing(OperationalError(SECRET)):
        answer = api.get("/threads")
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], answer["Retry-After"]) == (503, "unavailable", "1")
    assert SECRET not in json.dumps(found)
