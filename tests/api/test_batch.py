"""Many runs in one request: all are accepted, or none."""

from typing import Any

import pytest

from mailbox_app.models import Message, Run, Thread
from tests import make

pytestmark = pytest.mark.django_db


def hello(text: str = "Hello", **given: Any) -> dict[str, Any]:
    return {"agent": "echo", "messages": [{"content": text}], **given}


def used() -> make.Api:
    """A caller whose token's first use has been written."""
    api = make.api()
    assert api.get("/threads").status_code == 200
    return api


def test_all_runs_are_accepted_and_answered_in_the_order_of_the_request() -> None:
    api = make.api()
    thread = make.thread()
    bodies = [
        hello("one"),
        hello("two", thread_key="k", priority=7),
        hello("three", thread_key="k", metadata={"n": 3}),
        hello("four", thread_id=str(thread.pk)),
    ]
    answer = api.post("/runs/batch", {"runs": bodies})
    assert answer.status_code == 202
    items = answer.json()["items"]
    assert len(items) == 4
    for item, text in zip(items, ("one", "two", "three", "four"), strict=True):
        assert item["status"] == "created"
        [message_id] = item["message_ids"]
        assert Message.objects.get(pk=message_id).content == text
        assert str(Message.objects.get(pk=message_id).run_id) == item["run_id"]
        assert api.get(f"/runs/{item['run_id']}").json()["dispatch"]["id"] == item["dispatch_id"]
    assert items[1]["thread_id"] == items[2]["thread_id"] == str(Thread.objects.get(key="k").pk)
    assert items[3]["thread_id"] == str(thread.pk)
    run = Run.objects.get(pk=items[2]["run_id"])
    assert (run.metadata, run.activation["origin"]) == ({"n": 3}, "rest")


def test_runs_of_one_thread_in_a_batch_keep_their_order() -> None:
    api = make.api()
    items = api.post("/runs/batch", {"runs": [hello(str(n), thread_key="k") for n in range(5)]}).json()["items"]
    rows = Run.objects.order_by("order").values_list("pk", flat=True)
    assert [str(pk) for pk in rows] == [item["run_id"] for item in items]


INVALID: dict[str, tuple[Any, str, str]] = {
    "no runs": ({}, "runs", "required"),
    "runs null": ({"runs": None}, "runs", "not_a_list"),
    "runs an object": ({"runs": hello()}, "runs", "not_a_list"),
    "no run": ({"runs": []}, "runs", "empty"),
    "a run that is none": ({"runs": [hello(), "x"]}, "runs[1]", "not_an_object"),
    "unknown field": ({"runs": [hello(), hello(zebra=1)]}, "runs[1].zebra", "unknown_field"),
    "no messages": ({"runs": [hello(), {"agent": "echo"}]}, "runs[1].messages", "required"),
    "blank message": (
        {"runs": [hello(), hello(), {"agent": "echo", "messages": [{"content": "x"}, {"content": " "}]}]},
        "runs[2].messages[1].content", "blank",
    ),
    "no time": ({"runs": [hello(available_at="x")]}, "runs[0].available_at", "not_a_time"),
    "too far": ({"runs": [hello(), hello(available_at="9999-01-01T00:00:00Z")]}, "runs[1].available_at", "too_far"),
    "priority": ({"runs": [hello(), hello(priority=256)]}, "runs[1].priority", "out_of_range"),
    "unknown agent": ({"runs": [hello(), hello(agent="nobody")]}, "runs[1].agent", "unknown_agent"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_one_invalid_run_refuses_all_and_is_named(name: str) -> None:
    body, field, code = INVALID[name]
    api = used()
    before = make.row_counts()
    answer = api.post("/runs/batch", body, idempotency_key="once")
    [error] = make.problem_of(answer)["errors"]
    assert (answer.status_code, error["field"], error["code"]) == (422, field, code)
    assert make.row_counts() == before


def test_one_run_that_meets_a_conflict_refuses_all() -> None:
    api = used()
    make.run(dedupe_key="held")
    before = make.row_counts()
    for refused, status, code in (
        (hello(dedupe_key="held"), 409, "duplicate_key"),
        (hello(thread_id="0190a0a0-0000-7000-8000-000000000000"), 404, "thread_not_found"),
    ):
        answer = api.post("/runs/batch", {"runs": [hello(thread_key="new"), refused]})
        assert (answer.status_code, make.problem_of(answer)["code"]) == (status, code)
        assert make.row_counts() == before


def test_two_runs_of_a_batch_with_one_dedupe_key_refuse_all() -> None:
    api = used()
    answer = api.post("/runs/batch", {"runs": [hello(dedupe_key="d"), hello(dedupe_key="d")]})
    assert (answer.status_code, make.problem_of(answer)["code"]) == (409, "duplicate_key")
    assert not Run.objects.exists()


def test_more_runs_than_the_setting_allows_are_refused(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_batch_runs": 2}
    api = used()
    assert api.post("/runs/batch", {"runs": [hello()] * 2}).status_code == 202
    answer = api.post("/runs/batch", {"runs": [hello()] * 3})
    [error] = make.problem_of(answer)["errors"]
    assert (answer.status_code, error["field"], error["code"]) == (422, "runs", "too_many")
    assert Run.objects.count() == 2


def test_a_repeated_batch_gets_the_first_answer() -> None:
    api = make.api()
    body = {"runs": [hello(), hello()]}
    first = api.post("/runs/batch", body, idempotency_key="once")
    repeat = api.post("/runs/batch", body, idempotency_key="once")
    assert (repeat.status_code, repeat.content, repeat["Idempotency-Replayed"]) == (202, first.content, "true")
    assert "Location" not in repeat
    assert Run.objects.count() == 2
