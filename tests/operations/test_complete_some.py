"""complete_some: several completions in one transaction; each as it would be alone, and none at another's cost."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailbox_app import hints
from mailbox_app.models import Dispatch, Event, Message, Thread
from mailbox_app.operations import claim, recover, settle, submit
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.settle import Finishing
from tests.operations import scene

pytestmark = pytest.mark.django_db


def finishing(one: Claim, output: Any = None, state: dict[str, Any] | None = None) -> Finishing:
    return Finishing(claim=one, output=output, state=state)


def claimed(count: int, **given: Any) -> list[Claim]:
    for _ in range(count):
        scene.post(**given)
    tokens = [uuid.uuid4() for _ in range(count)]
    return claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=tokens).claims


def facts(one: Claim) -> dict[str, Any]:
    """What a completion leaves behind, without ids and times."""
    run, dispatch = scene.run(one), scene.dispatch(one)
    thread = Thread.objects.get(pk=one.thread_id)
    events = Event.objects.filter(thread_id=one.thread_id).order_by("cursor")
    messages = Message.objects.filter(thread_id=one.thread_id).order_by("position")
    return {
        "run": (run.status, run.final_output, run.state, run.termination, run.error),
        "dispatch": (dispatch.status, dispatch.claim_token, dispatch.response, dispatch.run_status),
        "thread": (
            thread.active_run_id,
            thread.open_run_id,
            thread.due_at is None,
            thread.last_seq,
            thread.last_cursor,
        ),
        "events": [(event.kind, event.cursor) for event in events],
        "messages": [(message.role, message.content, message.state, message.seq) for message in messages],
    }


@pytest.mark.parametrize(
    ("output", "state"), [(None, None), ("a text", {}), ({"a": [1, None]}, {"n": 1}), ("\u2028é", None)]
)
def test_each_ends_as_it_would_alone(output: Any, state: dict[str, Any] | None) -> None:
    *several, alone = claimed(6)
    assert settle.complete(alone, output=output, state=state) is None
    found = settle.complete_some([finishing(one, output, state) for one in several])
    assert found == {one.token: None for one in several}
    for one in several:
        assert facts(one) == facts(alone)


def test_the_number_of_statements_does_not_grow_with_the_runs() -> None:
    few, many = claimed(2), claimed(12)
    counts = []
    for claims in (few, many):
        with CaptureQueriesContext(connection) as queries:
            settle.complete_some([finishing(one, "done") for one in claims])
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_a_claim_of_many_heads_costs_as_many_statements_as_of_two() -> None:
    for _ in range(14):
        scene.post()
    counts = []
    for number in (2, 12):
        with CaptureQueriesContext(connection) as queries:
            tokens = [uuid.uuid4() for _ in range(number)]
            found = claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=tokens)
        assert len(found.claims) == number
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_what_was_lost_or_has_ended_is_left_to_be_done_alone() -> None:
    ours, lost, ended = claimed(3)
    scene.expire_lease(lost)
    assert recover.reclaim() == 1
    settle.complete(ended, output="before")
    before = facts(ended), facts(lost)
    found = settle.complete_some([finishing(one, "now") for one in (ours, lost, ended)])
    assert found == {ours.token: None}
    assert (facts(ended), facts(lost)) == before
    assert scene.run(ours).final_output == "now"


def test_a_turn_that_is_over_is_left_alone() -> None:
    [one] = claimed(1)
    more = {"thread_id": one.thread_id, "messages": ["and this?"], "boundary": "on_natural_end"}
    submit.messages(scope=scene.SCOPE, **more)
    following = settle.complete_some([finishing(one)])[one.token]
    assert following is not None
    assert (following.turn, [message.content for message in following.messages]) == (2, ["and this?"])
    with scene.nothing_changes():
        assert settle.complete_some([finishing(one, "again")]) == {}
    assert settle.complete_some([finishing(following, "done")]) == {one.token: None}
    assert scene.run(one).final_output == "done"


def test_a_thread_with_more_to_do_is_due_again() -> None:
    claims = claimed(3)
    scene.post("next", thread_id=claims[0].thread_id)
    settle.complete_some([finishing(one) for one in claims])
    due = Thread.objects.filter(due_queue=scene.QUEUE).values_list("pk", flat=True)
    assert list(due) == [claims[0].thread_id]


def alone(one: Finishing) -> None:
    settle.complete(one.claim, looks_next=one.looks_next)


def together(one: Finishing) -> None:
    settle.complete_some([one])


@pytest.mark.parametrize("finish", [alone, together])
@pytest.mark.parametrize(
    ("looks_next", "following", "woken"),
    [
        (True, {}, []),
        (True, {"agent": "other"}, ["mailbox.default"]),
        (True, {"queue": "elsewhere"}, ["elsewhere"]),
        (False, {}, ["mailbox.default"]),
    ],
)
def test_who_looks_next_wakes_nobody_for_what_he_will_find(
    finish: Callable[[Finishing], object],
    looks_next: bool,
    following: dict[str, Any],
    woken: list[str],
    django_capture_on_commit_callbacks: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(hints, "wake", sent.append)
    [one] = claimed(1)
    posted = scene.post("next", thread_id=one.thread_id)
    Dispatch.objects.filter(pk=posted.dispatch_id).update(**following)
    with django_capture_on_commit_callbacks(execute=True):
        finish(Finishing(claim=one, looks_next=looks_next))
    assert sent == woken


def test_of_two_that_end_on_one_thread_one_at_most_is_settled() -> None:
    [old] = claimed(1)
    scene.expire_lease(old)
    recover.reclaim()
    new = scene.taken()
    assert settle.complete_some([finishing(new, "new"), finishing(old, "old")]) == {}
    assert settle.complete_some([finishing(old, "old"), finishing(new, "new")]) == {new.token: None}
    assert scene.run(new).final_output == "new"


def test_an_error_of_one_leaves_all_as_they_were() -> None:
    claims = claimed(3)
    what_no_row_can_hold = finishing(claims[1], object())
    with scene.nothing_changes(), pytest.raises(TypeError):
        settle.complete_some([finishing(claims[0]), what_no_row_can_hold, finishing(claims[2])])
