"""Bad input gets a clear error, with a code and the field's name, and writes nothing."""

import json
import uuid
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from mailbox_app.api.v1 import requests
from tests import make

pytestmark = pytest.mark.django_db

HELLO = [{"content": "Hello"}]
MIB = 1024 * 1024


def message(**given: Any) -> dict[str, Any]:
    return {"agent": "echo", "messages": [{"content": "Hello", **given}]}


def run(**given: Any) -> dict[str, Any]:
    return {"agent": "echo", "messages": HELLO, **given}


# What is wrong: (body, code of the problem, field, code of the field).
INVALID: dict[str, tuple[Any, str, str, str]] = {
    "no messages field": ({"agent": "echo"}, "invalid_input", "messages", "required"),
    "no messages": (run(messages=[]), "invalid_input", "messages", "empty"),
    "messages null": (run(messages=None), "invalid_input", "messages", "not_a_list"),
    "messages an object": (run(messages={"content": "x"}), "invalid_input", "messages", "not_a_list"),
    "messages a string": (run(messages="x"), "invalid_input", "messages", "not_a_list"),
    "too many messages": (run(messages=HELLO * 101), "invalid_input", "messages", "too_many"),
    "a message that is a number": (run(messages=[7]), "invalid_input", "messages[0]", "not_an_object"),
    "blank role": (message(role=""), "invalid_input", "messages[0].role", "blank"),
    "white role": (message(role="  "), "invalid_input", "messages[0].role", "blank"),
    "unknown role": (message(role="robot"), "invalid_input", "messages[0].role", "not_a_choice"),
    "role a list": (message(role=["user"]), "invalid_input", "messages[0].role", "not_a_choice"),
    "no content": (run(messages=[{"role": "user"}]), "invalid_input", "messages[0].content", "required"),
    "blank content": (message(content=" \n"), "invalid_input", "messages[0].content", "blank"),
    "content a number": (message(content=7), "invalid_input", "messages[0].content", "not_content"),
    "content without parts": (message(content=[]), "invalid_input", "messages[0].content", "blank"),
    "a part without type": (
        message(content=[{"text": "x"}]), "invalid_input", "messages[0].content[0]", "not_a_part",
    ),
    "2 MiB of content": (message(content="x" * 2 * MIB), "invalid_input", "messages[0].content", "too_large"),
    "unknown visibility": (message(visibility="secret"), "invalid_input", "messages[0].visibility", "not_a_choice"),
    "unknown field of a message": (message(colour="red"), "invalid_input", "messages[0].colour", "unknown_field"),
    "the same client id twice": (
        run(messages=[{"content": "a", "client_id": "1"}, {"content": "b", "client_id": "1"}]),
        "invalid_input", "messages", "duplicate_id",
    ),
    "NUL in content": (message(content="a\x00b"), "invalid_input", "messages[0].content", "unstorable_text"),
    "NUL in a part": (
        message(content=[{"type": "text", "text": "a\x00"}]),
        "invalid_input", "messages[0].content[0].text", "unstorable_text",
    ),
    "NUL in metadata": (run(metadata={"a": ["\x00"]}), "invalid_input", "metadata.a[0]", "unstorable_text"),
    "NUL in the agent's name": (run(agent="ec\x00ho"), "invalid_input", "agent", "unstorable_text"),
    "NUL in a key": (run(thread_key="\x00"), "invalid_input", "thread_key", "unstorable_text"),
    "lone surrogate in content": (
        message(content="a\ud800"), "invalid_input", "messages[0].content", "unstorable_text",
    ),
    "lone surrogate in a name": (run(options={"\udfff": 1}), "invalid_input", "options", "unstorable_text"),
    "unknown agent": (run(agent="nobody"), "unknown_agent", "agent", "unknown_agent"),
    "agent a number": (run(agent=7), "invalid_input", "agent", "not_a_string"),
    "unknown field": (run(colour="red"), "invalid_input", "colour", "unknown_field"),
    "unknown field with a lone surrogate": (run(**{"\ud800": 1}), "invalid_input", "\\ud800", "unknown_field"),
    "camel case": (run(threadId=str(uuid.uuid4())), "invalid_input", "threadId", "unknown_field"),
    "priority 256": (run(priority=256), "invalid_input", "priority", "out_of_range"),
    "priority -1": (run(priority=-1), "invalid_input", "priority", "out_of_range"),
    "priority a string": (run(priority="5"), "invalid_input", "priority", "not_an_integer"),
    "priority true": (run(priority=True), "invalid_input", "priority", "not_an_integer"),
    "priority 1.0": (run(priority=1.0), "invalid_input", "priority", "not_an_integer"),
    "max_attempts 0": (run(max_attempts=0), "invalid_input", "max_attempts", "out_of_range"),
    "malformed thread id": (run(thread_id="42"), "invalid_input", "thread_id", "not_an_id"),
    "thread id a number": (run(thread_id=42), "invalid_input", "thread_id", "not_an_id"),
    "thread id and key": (
        run(thread_id=str(uuid.uuid4()), thread_key="k"), "invalid_input", "thread_key", "contradiction",
    ),
    "blank thread key": (run(thread_key=" "), "invalid_input", "thread_key", "blank"),
    "long thread key": (run(thread_key="k" * 201), "invalid_input", "thread_key", "too_long"),
    "blank dedupe key": (run(dedupe_key=""), "invalid_input", "dedupe_key", "blank"),
    "unknown if_active": (run(if_active="shout"), "invalid_input", "if_active", "not_a_choice"),
    "a date for a time": (run(available_at="2031-05-01"), "invalid_input", "available_at", "not_a_time"),
    "a time without zone": (run(available_at="2031-05-01T09:30:00"), "invalid_input", "available_at", "not_a_time"),
    "February 30": (run(available_at="2031-02-30T09:30:00Z"), "invalid_input", "available_at", "not_a_time"),
    "a time before time": (
        run(available_at="0001-01-01T00:00:00+01:00"), "invalid_input", "available_at", "not_a_time",
    ),
    "a time as a number": (run(available_at=1767225600), "invalid_input", "available_at", "not_a_time"),
    "a time too far": (run(available_at="9999-01-01T00:00:00Z"), "invalid_input", "available_at", "too_far"),
    "options a list": (run(options=[]), "invalid_input", "options", "not_an_object"),
    "metadata too large": (run(metadata={"a": "x" * 65_536}), "invalid_input", "metadata", "too_large"),
    "body an array": ([], "invalid_input", "body", "not_an_object"),
    "body a string": ("echo", "invalid_input", "body", "not_an_object"),
    "body null": (None, "invalid_input", "body", "not_an_object"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_invalid_input_is_422_names_the_field_and_writes_nothing(name: str) -> None:
    body, code, field, field_code = INVALID[name]
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", raw=json.dumps(body))
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"]) == (422, code)
    assert [(error["field"], error["code"]) for error in found["errors"]] == [(field, field_code)]
    assert make.row_counts() == before


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"agent": "echo"',
    "a trailing comma": b'{"agent": "echo",}',
    "single quotes": b"{'agent': 'echo'}",
    "two documents": b"{}{}",
    "NaN": b'{"agent": "echo", "priority": NaN}',
    "Infinity": b'{"agent": "echo", "options": {"a": -Infinity}}',
    "a name twice": b'{"agent": "echo", "agent": "analyst", "messages": [{"content": "x"}]}',
    "a name twice, deep down": b'{"agent": "echo", "options": {"a": [{"b": 1, "b": 2}]}}',
    "Latin-1": '{"agent": "echo", "messages": [{"content": "café"}]}'.encode("latin-1"),
    "UTF-16": '{"agent": "echo"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "an encoded surrogate": b'{"agent": "\xed\xa0\x80"}',
    "a raw NUL": b'{"agent": "\x00"}',
    "a bottomless list": b"[" * 100_000,
    "a number without end": b'{"priority": ' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_body_that_is_no_json_is_400_and_writes_nothing(name: str) -> None:
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", raw=MALFORMED[name])
    assert (answer.status_code, make.problem_of(answer)["code"]) == (400, "malformed_json")
    assert make.row_counts() == before


def test_a_number_too_large_for_json_documents_is_422() -> None:
    answer = make.api().post("/runs", raw='{"agent": "echo", "messages": [{"content": "x"}], "options": {"a": 1e999}}')
    assert answer.status_code == 422
    assert make.problem_of(answer)["errors"][0]["field"] == "options.a"


@pytest.mark.parametrize("depth", [150, 500, 900, 990, 2_000, 5_000])
@pytest.mark.parametrize("field", ["priority", "options", "messages", "agent", "unknown"])
def test_nesting_is_refused_at_any_depth_and_in_any_field(field: str, depth: int) -> None:
    body = f'{{"{field}": {"[" * depth}{"]" * depth}, "messages": [{{"content": "x"}}]}}'
    if field == "messages":
        body = f'{{"messages": [{{"content": "x", "metadata": {{"a": {"[" * depth}{"]" * depth}}}}}]}}'
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", raw=body, idempotency_key="deep")
    assert answer.status_code in (400, 422)
    make.problem_of(answer)
    assert make.row_counts() == before


def test_every_unknown_field_is_named_at_once() -> None:
    found = make.problem_of(make.api().post("/runs", run(zebra=1, colour=2)))
    assert [error["field"] for error in found["errors"]] == ["colour", "zebra"]


def test_a_body_over_the_limit_is_413_and_writes_nothing(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_body_bytes": 1_000}
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", message(content="x" * 1_000))
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["max_bytes"]) == (413, "body_too_large", 1_000)
    assert make.row_counts() == before


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/json; charset=utf-16",
        "",
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_415(content_type: str) -> None:
    answer = make.api().post("/runs", raw=json.dumps(run()), content_type=content_type)
    assert (answer.status_code, make.problem_of(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "application/vnd.acme+json"])
def test_json_by_another_name_is_taken(content_type: str) -> None:
    assert make.api().post("/runs", raw=json.dumps(run()), content_type=content_type).status_code == 202


@pytest.mark.parametrize(
    "path",
    [
        "/runs/42",
        "/runs/42/events",
        "/threads/42/messages",
        "/threads/42",
        "/runs/%00",
        "/runs/{00000000-0000-0000-0000-000000000000}",
        "/runs/00000000000000000000000000000000",
        "/runs/\uff10\uff10000000-0000-0000-0000-000000000000",
    ],
)
def test_a_malformed_id_in_the_path_is_400(path: str) -> None:
    answer = make.api().get(path)
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"]) == (400, "malformed_id")
    assert found["errors"][0]["field"] in {"run_id", "thread_id"}


def test_null_is_as_good_as_absent() -> None:
    absent = dict.fromkeys(requests.NewRunSerializer().fields, None)
    answer = make.api().post("/runs", {**absent, **run()})
    assert answer.status_code == 202


def test_a_thread_of_another_scope_is_404_and_nothing_is_written() -> None:
    thread = make.thread(scope="other")
    api = make.api()
    before = make.row_counts()
    answer = api.post("/runs", run(thread_id=str(thread.pk)))
    found = make.problem_of(answer)
    assert (answer.status_code, found["code"], found["thread_id"]) == (404, "thread_not_found", str(thread.pk))
    assert make.row_counts() == before


BAD_THREADS: dict[str, tuple[dict[str, Any], str, str]] = {
    "blank key": ({"key": ""}, "key", "blank"),
    "long title": ({"title": "x" * 501}, "title", "too_long"),
    "title a list": ({"title": []}, "title", "not_a_string"),
    "metadata a string": ({"metadata": "x"}, "metadata", "not_an_object"),
    "NUL in the title": ({"title": "\x00"}, "title", "unstorable_text"),
    "scope given": ({"scope": "other"}, "scope", "unknown_field"),
}


@pytest.mark.parametrize("name", BAD_THREADS)
def test_an_invalid_thread_is_422_and_not_made(name: str) -> None:
    body, field, field_code = BAD_THREADS[name]
    api = make.api()
    before = make.row_counts()
    answer = api.post("/threads", body)
    assert answer.status_code == 422
    [error] = make.problem_of(answer)["errors"]
    assert (error["field"], error["code"]) == (field, field_code)
    assert make.row_counts() == before


def test_a_query_parameter_that_is_not_known_is_422() -> None:
    run_id = make.run().pk
    api = make.api()
    for path in ("/threads?kye=a", f"/runs/{run_id}?x=1", f"/runs/{run_id}/events?format=json"):
        answer = api.get(path)
        assert answer.status_code == 422
        assert make.problem_of(answer)["errors"][0]["code"] == "unknown_field"


def test_bad_input_costs_no_more_than_the_look_at_the_token(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    api = make.api()
    api.get("/threads")
    with django_assert_num_queries(1):
        api.post("/runs", run(priority=256))
