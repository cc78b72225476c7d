"""Barriers: nothing goes past one, whoever reads it; and a run that stands behind another's is no head."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

from mailbox_app.doctor import flags
from mailbox_app.models import Boundary, Message, Run, Thread, ready
from mailbox_app.models.writes import ask
from mailbox_app.operations import freeze, pending, recover, settle
from tests import given as rows
from tests.operations import scene

pytestmark = pytest.mark.django_db

BLOCKED = (False, None, None, None, False, "barrier")
BLOCKED_AND_WAKING = (False, None, None, None, True, "barrier")


def bar(of: Any, index: int = 0) -> None:
    """Make its message a barrier, and have its thread judged."""
    Message.objects.filter(pk=of.message_ids[index]).update(barrier=True)
    judge(of)


def judge(of: Any) -> None:
    with Thread.objects.fence(of.thread_id):
        pass


def post(text: str, after: Any = None, **more: Any) -> Any:
    return scene.post(text, **({} if after is None else {"thread_id": after.thread_id}), **more)


def later() -> Any:
    return scene.database_now() + timedelta(hours=1)


def read(of: Any) -> list[str]:
    """What all runs read that can start now."""
    texts = []
    while claim := scene.take():
        assert claim.thread_id == of.thread_id
        texts += [str(message.content) for message in claim.messages]
        settle.complete(claim)
    return texts


def assert_agreed(of: Any) -> None:
    """Neither sweep nor doctor would say otherwise of the flag."""
    assert recover.repair() == 0
    assert flags.look([of.thread_id]) == []


def test_nobody_starts_before_the_barrier_in_front_of_him_whatever_his_priority() -> None:
    first = post("first")
    second = post("barrier", first)
    bar(second)
    post("urgent", first, priority=0)
    judge(first)
    assert scene.flag(first) == scene.DUE
    assert_agreed(first)
    assert read(first) == ["first", "barrier", "urgent"]
    assert set(Run.objects.values_list("status", flat=True)) == {"done"}


def test_a_barrier_waits_for_the_scheduled_run_in_front_of_it_and_is_not_dropped() -> None:
    first = post("first", available_at=later())
    second = post("barrier", first)
    bar(second)
    third = post("third", first)
    judge(first)
    assert scene.flag(first) == BLOCKED_AND_WAKING
    assert_agreed(first)
    assert scene.take() is None
    assert (scene.run(second).status, scene.run(third).status) == ("created", "created")
    scene.make_available(first)
    judge(first)
    assert scene.flag(first) == scene.DUE
    assert read(first) == ["first", "barrier", "third"]


def test_who_stands_behind_a_scheduled_barrier_is_blocked_until_that_is_withdrawn() -> None:
    first = post("barrier", available_at=later())
    bar(first)
    post("second", first)
    judge(first)
    assert scene.flag(first) == BLOCKED_AND_WAKING
    pending.retract(scope=scene.SCOPE, thread_id=first.thread_id, message_id=first.message_ids[0])
    assert scene.flag(first) == scene.DUE
    assert read(first) == ["second"]


def test_who_is_put_in_front_of_a_barrier_is_not_held_up_by_it() -> None:
    first = post("barrier", available_at=later())
    bar(first)
    second = post("second", first)
    judge(first)
    assert scene.take() is None
    pending.reorder(scope=scene.SCOPE, thread_id=first.thread_id, message_ids=second.message_ids)
    assert read(first) == ["second"]
    assert scene.flag(first) == scene.WAKING


def test_a_flag_that_has_not_heard_of_a_barrier_is_mended_by_the_claim_that_follows_it() -> None:
    first = post("barrier", available_at=later())
    second = post("second", first)
    Message.objects.filter(pk=first.message_ids[0]).update(barrier=True)
    assert scene.thread(first).due_at is not None
    assert scene.take() is None
    assert scene.flag(first) == BLOCKED_AND_WAKING
    assert scene.run(second).status == "created"


def test_what_is_submitted_behind_a_barrier_is_blocked_with_the_rest() -> None:
    first = post("barrier", available_at=later())
    bar(first)
    post("second", first)
    judge(first)
    assert scene.flag(first) == BLOCKED_AND_WAKING
    post("third", first)
    assert scene.flag(first) == BLOCKED_AND_WAKING
    post("fourth", first, available_at=scene.database_now() + timedelta(minutes=1))
    assert scene.thread(first).wakes_at < later() - timedelta(minutes=30)
    assert_agreed(first)


def test_what_is_submitted_behind_a_scheduled_barrier_is_blocked_at_once() -> None:
    first = post("barrier", available_at=later(), delivery={"barrier": True})
    post("behind", first)
    assert scene.flag(first) == BLOCKED_AND_WAKING
    assert_agreed(first)


def test_what_would_go_before_a_barrier_by_its_priority_does_not_hide_it_from_its_worker() -> None:
    first = post("barrier", delivery={"barrier": True}, priority=100)
    post("sooner", first, priority=1)
    assert scene.flag(first)[:2] == (True, 100)
    assert_agreed(first)
    assert read(first) == ["barrier", "sooner"]


def test_a_worker_takes_the_head_that_is_behind_one_of_another_agent_it_cannot_run() -> None:
    rows.registration(agent="other")
    first = post("first")
    second = post("barrier", first)
    bar(second)
    urgent = post("urgent", first, agent="other", priority=0)
    judge(first)
    assert scene.thread(first).due_agent == "echo"
    assert scene.take(agents=("other",)) is None
    claim = scene.taken(agents=("echo", "other"))
    assert claim.run_id == first.run_id
    settle.complete(claim)
    settle.complete(scene.taken(agents=("echo",)))
    assert scene.thread(first).due_agent == "other"
    assert scene.taken(agents=("other",)).run_id == urgent.run_id


def test_a_held_barrier_holds_up_nobody() -> None:
    first = post("barrier", available_at=later())
    bar(first)
    post("second", first)
    Message.objects.filter(pk=first.message_ids[0]).update(held=True)
    judge(first)
    assert scene.taken().messages[0].content == "second"


def test_a_barrier_of_nobody_s_is_read_by_whoever_comes_first_to_it() -> None:
    first = post("first")
    rows.message(thread=scene.thread(first), content="anybody's", position=500, barrier=True)
    rows.message(thread=scene.thread(first), content="behind", position=501)
    judge(first)
    claim = scene.taken()
    assert [message.content for message in claim.messages] == ["first", "anybody's"]


def test_a_run_that_reads_some_in_front_of_a_barrier_starts_and_the_rest_gets_a_run_behind_it() -> None:
    first = scene.post(messages=["a", "z"])
    second = post("barrier", first)
    pending.reorder(
        scope=scene.SCOPE, thread_id=first.thread_id, message_ids=[first.message_ids[0], *second.message_ids]
    )
    bar(second)
    assert read(first) == ["a", "barrier", "z"]


def test_an_open_run_goes_on_whatever_barrier_is_pending() -> None:
    claim = scene.posted_and_taken()
    second = post("barrier", claim)
    bar(second)
    settle.nack(claim, code="transient", message="again", retry_after=0)
    assert scene.taken().run_id == claim.run_id


def test_a_claim_and_a_look_without_barriers_ask_nothing_more() -> None:
    """The claim learns of barriers by what it reads anyway; the flag's look has one probe."""
    assert ready.HEADS.count("mailbox_message") == 1
    assert ready.HEAD_OF_RUN.count("mailbox_message") == 0


# The selection, against the rules said of the whole zone at once.

CASCADE = ["interrupt", "next_step", "on_natural_end", "new_run"]
OWNERS = ["own", "other", "nobody"]
ENTRY = some.fixed_dictionaries(
    {
        "owner": some.sampled_from(OWNERS),
        "boundary": some.sampled_from([*CASCADE, "new_run", "resume_input"]),
        "granularity": some.sampled_from(["batch", "batch", "one"]),
        "barrier": some.sampled_from([False, False, True]),
        "held": some.sampled_from([False, False, False, True]),
        "target": some.sampled_from([None, None, "own", "other"]),
        "fallback": some.sampled_from(["", "", "new_run"]),
    }
)
ZONES = some.lists(ENTRY, max_size=7)
QUICK = settings(
    max_examples=150,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # zones are small; shrinking over a database takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def is_eligible(entry: dict[str, Any], boundary: str) -> bool:
    if entry["owner"] == "other":
        return False
    if boundary == "resume_input":
        return entry["boundary"] == boundary and entry["target"] == "own"
    if entry["boundary"] == "resume_input":
        return boundary == "new_run" and entry["fallback"] != ""
    if CASCADE.index(entry["boundary"]) > CASCADE.index(boundary):
        return False
    if boundary == "new_run":
        return entry["target"] is None or entry["fallback"] != ""
    return entry["target"] in (None, "own")


def is_passed_over(entry: dict[str, Any], boundary: str) -> bool:
    """Whether what is not eligible lets others by."""
    if entry["barrier"]:
        return False
    if entry["owner"] == "other":
        return True
    if boundary == "new_run":
        return entry["boundary"] != "new_run" and entry["fallback"] == ""
    return entry["boundary"] == "new_run"


def expected(zone: list[dict[str, Any]], boundary: str) -> list[int]:
    """The places that are read: each judged by all that stands in front of it."""
    standing = [(place, entry) for place, entry in enumerate(zone) if not entry["held"]]
    eligible = {place for place, entry in standing if is_eligible(entry, boundary)}
    taken: list[int] = []
    for place, entry in standing:
        front = [(before, one) for before, one in standing if before < place]
        others = [one for before, one in front if before not in taken]
        rules = (
            place in eligible,
            all(is_passed_over(one, boundary) for before, one in front if before not in eligible),
            not any(before in eligible for before, _ in front if before not in taken),
            not (entry["barrier"] and others),
            not any(zone[before]["barrier"] or zone[before]["granularity"] == "one" for before in taken),
            not (entry["granularity"] == "one" and taken),
        )
        if all(rules):
            taken.append(place)
    return taken


def written(zone: list[dict[str, Any]]) -> tuple[Run, Run]:
    """The zone on a new thread, of a run and another one."""
    own = rows.run()
    other = rows.run(thread=own.thread)
    runs = {"own": own, "other": other, "nobody": None}
    for place, entry in enumerate(zone):
        target = None if entry["target"] is None else runs[entry["target"]].pk  # type: ignore[union-attr]
        rest = {name: entry[name] for name in ("boundary", "granularity", "barrier", "held", "fallback")}
        rows.message(thread=own.thread, run=runs[entry["owner"]], target_run_id=target, position=place + 1, **rest)
    return own, other


@QUICK
@given(zone=ZONES, boundary=some.sampled_from([*CASCADE, "resume_input"]))
def test_the_selection_is_what_the_rules_say_of_the_whole_zone(zone: list[dict[str, Any]], boundary: str) -> None:
    own, _ = written(zone)
    unread = freeze.unread(thread=own.thread, run=own)
    selected = freeze.select(unread, boundary=Boundary(boundary), run=own)
    assert [message.position - 1 for message in selected] == expected(zone, boundary)


@QUICK
@given(zone=ZONES.filter(lambda zone: any(entry["barrier"] and not entry["held"] for entry in zone)))
def test_a_run_is_a_head_unless_it_has_something_to_read_that_a_barrier_keeps_from_it(
    zone: list[dict[str, Any]],
) -> None:
    # What asks for a new run has no target.
    zone = [{**entry, "target": None} if entry["boundary"] == "new_run" else entry for entry in zone]
    own, other = written(zone)
    rows.dispatch(run=own)
    found = ask(ready.HEAD_PAST_BARRIER, {"thread": own.thread_id})
    has_own = any(entry["owner"] == "own" and not entry["held"] and is_eligible(entry, "new_run") for entry in zone)
    assert bool(found) is (bool(expected(zone, "new_run")) or not has_own)
    # One of all runs always can start, unless something stands there that none of them may read: what only an open run
    # reads is retracted at that run's end.
    if all(one["fallback"] or (one["boundary"] != "resume_input" and one["target"] is None) for one in zone):
        rows.dispatch(run=other)
        assert ask(ready.HEAD_PAST_BARRIER, {"thread": own.thread_id})
