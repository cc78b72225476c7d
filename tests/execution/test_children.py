"""spawn and wait_for_children as an agent sees them."""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import override_settings

from mailbox_app.errors import Permanent, Suspended, Transient
from mailbox_app.execution import AsyncContext, Context
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run, Thread
from mailbox_app.operations import cancel, replay, resume, tick
from mailbox_app.testing import Mailbox, assert_dead_letter, assert_events, assert_run_finished, assert_waiting

Registered = Callable[..., str]


@pytest.fixture(autouse=True)
def writer(registered_agent: Registered) -> str:
    """An agent for children: it answers with what it was told, in capitals, or fails as it is told."""

    def agent(ctx: Context) -> Any:
        text = ctx.messages[-1].text
        if text == "fail":
            raise Permanent("as told")
        if text == "wait":
            return ctx.suspend("external_event", name="go")
        return text.upper()

    return registered_agent(agent, name="writer")


def children(run: Run) -> list[Run]:
    return list(Run.objects.filter(parent_run=run).order_by("created_at", "id"))


def test_a_parent_waits_for_its_children_and_gets_what_became_of_them(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    calls: list[str] = []

    def parent(ctx: Context) -> Any:
        calls.append("called")
        for text in ("one", "two"):
            ctx.spawn(text, agent="writer")
        return [[one["output"], one["status"], one["agent"]] for one in ctx.wait_for_children()]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_run_finished(run, output=[["ONE", "done", "writer"], ["TWO", "done", "writer"]])
    assert calls == ["called", "called"]
    assert [child.parent_run_id for child in children(run)] == [run.pk, run.pk]


def test_a_child_is_a_run_on_a_thread_of_its_own_below_that_of_its_parent(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    def parent(ctx: Context) -> Any:
        return ctx.spawn("hi", agent="writer", options={"o": 1}, metadata={"m": 2}, priority=7)

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    told = assert_run_finished(run).final_output
    child = Run.objects.get(pk=told["run_id"])
    assert told == {
        "run_id": str(child.pk),
        "thread_id": str(child.thread_id),
        "message_id": str(Message.objects.get(run=child, role="user").pk),
        "agent": "writer",
    }
    assert (child.thread.parent_id, child.scope, child.thread.scope) == (run.thread_id, "test", "test")
    assert (child.options, child.metadata, child.activation["origin"]) == ({"o": 1}, {"m": 2}, "child")
    assert Message.objects.get(run=child, role="user").sender == "probe"
    assert (child.shown.sender, child.shown.adapter, child.shown.depth) == ("probe", run.shown.adapter, 1)
    assert child.dispatches.get().priority == 7
    assert_events(child, ["ThreadCreated", "RunQueued", "RunStarted", "MessageCommitted", "RunFinished"])
    spawned = Event.objects.get(thread_id=run.thread_id, kind="ChildRunSpawned").payload
    assert (spawned["child_run_id"], spawned["child_thread_id"]) == (str(child.pk), str(child.thread_id))


def test_a_child_that_fails_or_is_cancelled_is_told_as_that_and_raises_nothing(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    def parent(ctx: Context) -> Any:
        spawned = [ctx.spawn(text, agent="writer") for text in ("fail", "wait", "fine")]
        return [(one["termination"]["type"], one["output"], one["error"]) for one in ctx.wait_for_children(spawned)]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    waiting = assert_waiting(run, "background_tasks")
    failed, stuck, fine = children(run)
    assert waiting.waits_for is not None
    assert waiting.waits_for["child_run_ids"] == [str(failed.pk), str(stuck.pk), str(fine.pk)]
    cancel.run(scope="test", run_id=stuck.pk)
    mailbox.run_until_idle()
    error = {"code": "permanent", "message": "Permanent: as told"}
    assert assert_run_finished(run).final_output == [
        ["error", None, error], ["cancelled", None, None], ["natural_end", "FINE", None],
    ]  # fmt: skip


def test_a_parent_that_is_tried_again_spawns_no_second_child(mailbox: Mailbox, registered_agent: Registered) -> None:
    attempts: list[str] = []

    def parent(ctx: Context) -> Any:
        first = ctx.spawn("one", agent="writer")
        attempts.append(first["run_id"])
        if len(attempts) < 3:
            raise Transient("again")
        return ctx.wait_for_children([first["run_id"]])[0]["output"]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_run_finished(run, output="ONE")
    assert len(children(run)) == 1
    assert len(set(attempts)) == 1


def test_children_spawned_otherwise_than_before_are_a_mismatch(mailbox: Mailbox, registered_agent: Registered) -> None:
    texts = iter(["one", "other"])

    def parent(ctx: Context) -> Any:
        ctx.spawn(next(texts), agent="writer")
        raise Transient("again")

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_dead_letter(run, "replay_mismatch")


def test_children_that_are_spawned_side_by_side_may_come_in_another_order_when_it_goes_on(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    """As by `asyncio.gather`: each use has a key of its own, and which comes first is chance."""
    orders = iter([["a", "b"], ["b", "a"]])

    def parent(ctx: Context) -> Any:
        for text in next(orders):
            ctx.spawn(text, agent="writer", key=text)
        return [one["output"] for one in ctx.wait_for_children()]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_run_finished(run, output=["A", "B"])


def test_without_children_there_is_nothing_to_wait_for(mailbox: Mailbox, registered_agent: Registered) -> None:
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: ctx.wait_for_children()))
    mailbox.run_until_idle()
    assert_run_finished(run, output=[])


def test_a_parent_may_end_before_its_children(mailbox: Mailbox, registered_agent: Registered) -> None:
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: ctx.spawn("one", agent="writer")["agent"]))
    mailbox.run_until_idle()
    assert_run_finished(run, output="writer")
    (child,) = children(run)
    assert_run_finished(child, output="ONE")
    ended = Event.objects.get(thread_id=run.thread_id, kind="ChildRunEnded")
    assert ended.run_id is None, "a run that is done says nothing more"
    assert ended.payload["child_run_id"] == str(child.pk)


def test_an_agent_nobody_knows_is_refused_before_anything_is_written(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: ctx.spawn("one", agent="nobody")))
    mailbox.run_until_idle()
    assert_dead_letter(run, "unknown_agent")
    assert not children(run)
    assert not Thread.objects.filter(parent_id=run.thread_id).exists()


@override_settings(MAILBOX={"max_child_depth": 3})
def test_an_agent_that_spawns_itself_comes_to_an_end(mailbox: Mailbox, registered_agent: Registered) -> None:
    def agent(ctx: Context) -> Any:
        ctx.spawn("deeper", agent="probe")
        return [one["error"] for one in ctx.wait_for_children()]

    run = mailbox.submit("go", agent=registered_agent(agent))
    mailbox.run_until_idle()
    assert Run.objects.filter(parent_run__isnull=False).count() == 3
    (error,) = Run.objects.filter(error__isnull=False).values_list("error", flat=True)
    assert error["code"] == "invalid_input"
    assert "at most 3 are allowed" in error["message"]
    assert_run_finished(run)


@override_settings(MAILBOX={"max_children": 2})
def test_a_run_spawns_so_many_and_no_more(mailbox: Mailbox, registered_agent: Registered) -> None:
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: [ctx.spawn("x", agent="writer") for _ in range(3)]))
    mailbox.run_until_idle()
    assert_dead_letter(run, "invalid_input")
    assert len(children(run)) == 2


def test_a_run_waits_only_for_what_was_spawned_on_its_thread(mailbox: Mailbox, registered_agent: Registered) -> None:
    stranger = mailbox.submit("hi", agent="writer")
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: ctx.wait_for_children([str(stranger.pk)])))
    mailbox.run_until_idle()
    assert_dead_letter(run, "invalid_input")


def test_a_wait_for_children_that_never_end_is_over_in_time(mailbox: Mailbox, registered_agent: Registered) -> None:
    def parent(ctx: Context) -> Any:
        ctx.spawn("wait", agent="writer")
        return ctx.wait_for_children(seconds=60)

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_waiting(run, "background_tasks")
    Run.objects.filter(pk=run.pk).update(wait_until=Now() - timedelta(seconds=1))
    tick.expire_waits()
    run.refresh_from_db()
    assert run.termination == {"type": "stopped", "detail": "wait_expired"}
    (child,) = children(run)
    assert child.status == "waiting", "only a cancelled parent takes its children with it"


def test_cancelling_a_parent_cancels_its_children_and_theirs_but_not_the_detached(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    def middle(ctx: Context) -> Any:
        ctx.spawn("wait", agent="writer")
        ctx.wait_for_children()

    def top(ctx: Context) -> Any:
        ctx.spawn("x", agent="middle")
        ctx.spawn("wait", agent="writer", detached=True)
        ctx.wait_for_children()

    registered_agent(middle, name="middle")
    run = mailbox.submit("go", agent=registered_agent(top))
    mailbox.run_until_idle()
    below, detached = children(run)
    (lowest,) = children(below)
    cancel.run(scope="test", run_id=run.pk)
    mailbox.run_until_idle()
    ends = [Run.objects.get(pk=one.pk).termination for one in (run, below, lowest)]
    assert [end and end["type"] for end in ends] == ["cancelled"] * 3
    assert [end and end.get("detail") for end in ends] == [None, "parent_cancelled", "parent_cancelled"]
    detached.refresh_from_db()
    assert detached.status == "waiting"


def test_what_a_cancelled_run_would_spawn_is_not_spawned(mailbox: Mailbox, registered_agent: Registered) -> None:
    def parent(ctx: Context) -> Any:
        cancel.run(scope="test", run_id=Run.objects.get(pk=ctx.run_id).pk)
        ctx.spawn("one", agent="writer")

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    run.refresh_from_db()
    assert run.termination is not None
    assert run.termination["type"] == "cancelled"
    assert not children(run)


def test_a_replayed_parent_asks_the_children_it_had(mailbox: Mailbox, registered_agent: Registered) -> None:
    works: list[bool] = [False]

    def parent(ctx: Context) -> Any:
        ctx.spawn("one", agent="writer")
        stuck = ctx.spawn("wait", agent="writer")
        if not works[0]:
            raise Permanent("broken")
        return [ctx.wait_for_children()[0]["output"], stuck["run_id"]]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    works[0] = True
    replayed = replay.one(scope="test", dispatch_id=assert_dead_letter(run).pk, by="ada")
    mailbox.run_until_idle()
    again = assert_waiting(replayed.run_id, "background_tasks")
    _, stuck = children(run)
    assert not children(again)
    cancel.run(scope="test", run_id=stuck.pk)
    mailbox.run_until_idle()
    assert_run_finished(again, output=["ONE", str(stuck.pk)])


def test_a_child_whose_thread_is_gone_is_told_as_deleted(mailbox: Mailbox, registered_agent: Registered) -> None:
    def parent(ctx: Context) -> Any:
        child = ctx.spawn("one", agent="writer")
        ctx.suspend("manual_pause", name="go")
        return ctx.wait_for_children([child])[0]["status"]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    (child,) = children(run)
    child.thread.delete()
    resume.run(scope="test", run_id=run.pk, name="go")
    mailbox.run_until_idle()
    assert_run_finished(run, output="deleted")


def test_a_verb_after_the_wait_began_goes_no_further(mailbox: Mailbox, registered_agent: Registered) -> None:
    def parent(ctx: Context) -> Any:
        ctx.spawn("wait", agent="writer")
        with contextlib.suppress(Suspended):
            ctx.wait_for_children()
        ctx.say("still here")

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_waiting(run, "background_tasks")
    assert not JournalEntry.objects.filter(run=run, verb="say").exists()


@pytest.mark.django_db(transaction=True)
def test_an_async_agent_spawns_and_waits_alike(mailbox: Mailbox, registered_agent: Registered) -> None:
    async def parent(ctx: AsyncContext) -> Any:
        await ctx.aspawn("one", agent="writer")
        return [one["output"] for one in await ctx.await_for_children()]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    assert_run_finished(run, output=["ONE"])


@pytest.mark.django_db(transaction=True)
def test_children_go_on_and_wake_their_parent_without_a_tick(mailbox: Mailbox, registered_agent: Registered) -> None:
    """Where transactions are real, whoever ends the child tells the parent, after its commit."""

    def parent(ctx: Context) -> Any:
        ctx.spawn("wait", agent="writer")
        return ctx.wait_for_children()[0]["status"]

    run = mailbox.submit("go", agent=registered_agent(parent))
    mailbox.run_until_idle()
    (child,) = children(run)
    cancel.run(scope="test", run_id=child.pk)
    assert Dispatch.objects.queued().filter(run=run).count() == 1
