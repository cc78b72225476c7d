"""Turns, suspend, send, usage, retry_after and checkpoint as an agent sees them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import InvalidInput, Suspended
from mailbox_app.execution import Context, runner
from mailbox_app.execution.contract import IncomingMessage
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, JournalEntry, Message, Outbox, Run, Thread
from mailbox_app.operations import deliver, post, recover, resume, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene

pytestmark = pytest.mark.django_db

Again = Callable[..., Claim]


class Killed(KeyboardInterrupt):
    """Ends the worker where it stands."""


def say(of: Any, text: str, boundary: str = "on_natural_end") -> submit.Receipt:
    return submit.messages(scope=scene.SCOPE, thread_id=of.thread_id, messages=[text], boundary=boundary)


@pytest.fixture
def killed(register: Register, keeper: LeaseKeeper) -> Callable[..., Claim]:
    """Run an agent, posted to before, in a worker that dies in the middle; its lease has been taken back."""

    def once(claim: Claim) -> Claim:
        with pytest.raises(Killed):
            runner.run(claim, keeper=keeper, own_process=False)
        scene.expire_lease(claim)
        assert recover.reclaim() == 1
        return claim

    return once


def test_an_agent_is_called_once_a_turn_with_that_turn_s_messages_and_state(perform: Perform) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> str:
        seen.append((ctx.turn, ctx.attempt, [m.text for m in ctx.messages], dict(ctx.state)))
        seen.append([m.text for m in ctx.history()])
        ctx.state["turns"] = ctx.turn
        if ctx.turn < 3:
            submit.messages(
                scope=scene.SCOPE, thread_id=ctx.thread_id, messages=[f"go on {ctx.turn}"], boundary="on_natural_end"
            )
        return f"answer {ctx.turn}"

    claim = perform(agent)
    assert seen == [
        *((1, 1, ["hello there"], {}), []),
        *((2, 1, ["go on 1"], {"turns": 1}), ["hello there", "answer 1"]),
        *((3, 1, ["go on 2"], {"turns": 2}), ["hello there", "answer 1", "go on 1", "answer 2"]),
    ]
    run = scene.run(claim)
    assert (run.status, run.turn, run.final_output, run.state) == ("done", 3, "answer 3", {"turns": 3})
    assert Dispatch.objects.count() == 1


def test_each_turn_has_a_journal_of_its_own(perform: Perform) -> None:
    calls: list[int] = []

    def agent(ctx: Context) -> None:
        ctx.step("work", calls.append, ctx.turn)
        if ctx.turn == 1:
            say(scene.run(claim_of(ctx)), "more")

    def claim_of(ctx: Context) -> Any:
        return Dispatch.objects.get(pk=ctx.dispatch_id)

    perform(agent)
    assert calls == [1, 2]
    assert list(JournalEntry.objects.order_by("id").values_list("turn", "n")) == [(1, 1), (2, 1)]


def test_each_turn_has_the_whole_time_limit(register: Register, keeper: LeaseKeeper) -> None:
    limits: list[float] = []
    holding = keeper.holding

    def watched(claim: Claim, **given: Any) -> Any:
        limits.append(given["timeout"])
        return holding(claim, **given)

    keeper.holding = watched  # type: ignore[method-assign]
    name = register(lambda ctx: None, timeout_seconds=60)
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    say(claim, "more")
    runner.run(claim, keeper=keeper, own_process=False)
    assert limits == [60, 60]
    assert scene.run(claim).turn == 2


def test_a_crash_between_two_turns_goes_on_with_the_second(
    register: Register, killed: Callable[..., Claim], again: Again
) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> None:
        seen.append((ctx.turn, ctx.attempt, [m.text for m in ctx.messages], dict(ctx.state)))
        ctx.state["left"] = ctx.turn
        if (ctx.turn, ctx.attempt) == (2, 1):
            raise Killed

    name = register(agent)
    scene.post("one", agent=name)
    claim = scene.taken(agents=(name,))
    say(claim, "two")
    killed(claim)
    again()
    assert seen == [(1, 1, ["one"], {}), (2, 1, ["two"], {"left": 1}), (2, 2, ["two"], {"left": 1})]
    assert (scene.run(claim).status, scene.run(claim).state) == ("done", {"left": 2})


def test_a_suspended_agent_gets_its_payload_and_repeats_nothing(perform: Perform, again: Again) -> None:
    calls: list[str] = []

    def agent(ctx: Context) -> Any:
        ctx.step("charge", calls.append, "charged")
        ctx.say("I have to wait")
        ctx.state["lost"] = "until the turn ends"
        paid = ctx.suspend("external_event", name="payment", message="until it is paid")
        return {"paid": paid, "messages": [m.text for m in ctx.messages], "attempt": ctx.attempt}

    claim = perform(agent)
    assert scene.run(claim).status == "waiting"
    resume.run(scope=scene.SCOPE, run_id=claim.run_id, name="payment", payload={"cents": 5})
    again()
    assert scene.run(claim).final_output == {"paid": {"cents": 5}, "messages": ["hello there"], "attempt": 1}
    assert calls == ["charged"]
    assert [content for _, _, content in scene.log(claim)] == ["hello there", "I have to wait"]


def test_an_agent_that_waits_for_input_gets_the_messages_and_the_same_ones_at_every_attempt(
    perform: Perform, again: Again
) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> Any:
        said = ctx.suspend("user_input", message="which one?")
        seen.append(([m.text for m in ctx.messages], said))
        assert ctx.checkpoint() == []
        if len(seen) == 1:
            ctx.retry_after(0)
        return said[0].text

    claim = perform(agent)
    waits_for = scene.run(claim).waits_for
    assert waits_for is not None
    assert {**waits_for, "since": ""} == {"reason": "user_input", "message": "which one?", "name": "", "since": ""}
    receipt = post.to_thread(
        scope=scene.SCOPE, thread_id=claim.thread_id, messages=[{"content": [{"type": "text", "text": "the red one"}]}]
    )
    again()
    again()
    assert scene.run(claim).final_output == "the red one"
    assert seen[0] == seen[1]
    messages, said = seen[0]
    assert messages == ["hello there"]
    assert said == [IncomingMessage.of(Message.objects.get(pk=receipt.message_ids[0]))]


@pytest.mark.parametrize("attempt", ["catches it", "returns", "says more", "raises another"])
def test_an_agent_that_does_not_let_the_wait_pass_waits_all_the_same(attempt: str, perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        try:
            ctx.suspend("manual_pause")
        except Suspended:
            if attempt == "says more":
                ctx.say("still here")
            if attempt == "raises another":
                raise ZeroDivisionError from None
        return "done"

    claim = perform(agent)
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("waiting", "acked")
    assert len(scene.log(claim)) == 1


def test_an_agent_may_wait_for_several_things_one_after_the_other(perform: Perform, again: Again) -> None:
    claim = perform(lambda ctx: [ctx.suspend("external_event") for _ in range(3)])
    for payload in "abc":
        resume.run(scope=scene.SCOPE, run_id=claim.run_id, payload=payload)
        again()
    assert scene.run(claim).final_output == ["a", "b", "c"]


def test_a_rate_limit_goes_on_by_itself(perform: Perform, again: Again) -> None:
    def agent(ctx: Context) -> str:
        return f"{ctx.suspend('rate_limit', seconds=60)} and on"

    claim = perform(agent)
    Dispatch.objects.queued().update(available_at=Now() - timedelta(seconds=1))
    Thread.objects.update(wakes_at=Now())
    assert tick.promote() == 1
    again()
    assert scene.run(claim).final_output == "None and on"


def test_a_wait_whose_arguments_changed_is_a_replay_mismatch(perform: Perform, again: Again) -> None:
    seconds = iter((60, 61))
    claim = perform(lambda ctx: ctx.suspend("external_event", seconds=next(seconds)))
    resume.run(scope=scene.SCOPE, run_id=claim.run_id)
    again()
    assert (scene.run(claim).error or {}).get("code") == "replay_mismatch"


def test_when_a_wait_ends_may_be_said_otherwise_each_time(perform: Perform, again: Again) -> None:
    def agent(ctx: Context) -> Any:
        return ctx.suspend(
            "external_event", until=scene.database_now() + timedelta(hours=1), message=f"attempt at {id(ctx)}"
        )

    claim = perform(agent)
    resume.run(scope=scene.SCOPE, run_id=claim.run_id, payload=1)
    again()
    assert scene.run(claim).final_output == 1


def test_usage_is_added_once_also_when_it_is_replayed(
    register: Register, killed: Callable[..., Claim], again: Again
) -> None:
    answers: list[Any] = []

    def agent(ctx: Context) -> None:
        answers.append([ctx.usage(input_tokens=10, output_tokens=2), ctx.usage(input_tokens=5, steps=2, key="more")])
        if ctx.attempt == 1:
            raise Killed

    name = register(agent)
    scene.post(agent=name)
    claim = killed(scene.taken(agents=(name,)))
    again()
    run = scene.run(claim)
    assert (run.input_tokens, run.output_tokens, run.steps) == (15, 2, 3)
    assert answers[0] == answers[1]
    assert answers[0][1] == {"input_tokens": 15, "output_tokens": 2, "steps": 3}


def test_what_was_sent_before_a_crash_is_sent_once(
    register: Register, killed: Callable[..., Claim], again: Again
) -> None:
    there = Thread.objects.create(scope=scene.SCOPE)
    answers: list[Any] = []

    def agent(ctx: Context) -> None:
        answers.append(
            [ctx.send("one", thread_id=there.pk, agent="echo"), ctx.send("one", thread_id=str(there.pk), agent="echo")]
        )
        if ctx.attempt == 1:
            raise Killed

    name = register(agent)
    scene.post(agent=name)
    killed(scene.taken(agents=(name,)))
    again()
    assert answers[0] == answers[1]
    assert answers[0][0]["message_id"] != answers[0][1]["message_id"]
    assert Outbox.objects.count() == 2
    assert deliver.batch() == 2
    assert Message.objects.filter(thread=there, sender="probe").count() == 2
    assert Run.objects.filter(thread=there).count() == 2


@pytest.mark.django_db(transaction=True)
def test_what_is_sent_is_delivered_at_once(perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.send("psst", thread_key="customer-42", agent="echo", message_id="m-1"))
    there = Thread.objects.get(key="customer-42")
    assert Outbox.objects.get().status == "delivered"
    assert scene.run(claim).final_output["thread_id"] == str(there.pk)
    assert scene.taken().thread_id == there.pk


@pytest.mark.django_db(transaction=True)
def test_a_delivery_that_fails_at_once_is_the_sweep_s_and_not_the_agent_s(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **given: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(deliver, "_between", fails)
        claim = perform(lambda ctx: ctx.send("psst", thread_key="customer-42", agent="echo") and "sent")
    assert (scene.run(claim).final_output, Outbox.objects.get().status) == ("sent", "pending")
    assert deliver.batch() == 1


def test_retry_after_ends_the_attempt_and_uses_it_up(perform: Perform) -> None:
    before = scene.database_now()
    claim = perform(lambda ctx: ctx.retry_after(90, "the model is busy"))
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.attempt_count) == ("queued", 1)
    assert timedelta(seconds=90) <= dispatch.available_at - before < timedelta(seconds=110)
    assert dispatch.last_error.endswith("the model is busy")


def test_a_replay_is_handed_the_messages_of_its_checkpoints_by_the_first(
    register: Register, killed: Callable[..., Claim], again: Again
) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> None:
        seen.append([m.text for m in ctx.messages])
        seen.append([m.text for m in ctx.checkpoint()])
        if ctx.attempt == 1:
            say(claim, "second", "next_step")
        seen.append([m.text for m in ctx.checkpoint()])
        if ctx.attempt == 1:
            raise Killed

    name = register(agent)
    scene.post("hello", agent=name)
    claim = scene.taken(agents=(name,))
    say(claim, "first", "next_step")
    killed(claim)
    again()
    assert seen == [["hello"], ["first"], ["second"], ["hello"], ["first", "second"], []]


REFUSED: dict[str, Callable[[Context], Any]] = {
    "no target": lambda ctx: ctx.send("x"),
    "two targets": lambda ctx: ctx.send("x", thread_key="a", thread_id="00000000-0000-0000-0000-000000000000"),
    "no id": lambda ctx: ctx.send("x", thread_id="there"),
    "blank": lambda ctx: ctx.send("", thread_key="a"),
    "blank key": lambda ctx: ctx.send("x", thread_key=" "),
    "blank message_id": lambda ctx: ctx.send("x", thread_key="a", message_id=""),
    "negative tokens": lambda ctx: ctx.usage(input_tokens=-1),
    "half a step": lambda ctx: ctx.usage(steps=0.5),  # type: ignore[arg-type]
    "too many tokens": lambda ctx: ctx.usage(output_tokens=10**13),
    "unknown reason": lambda ctx: ctx.suspend("the_weather"),
    "rate limit without end": lambda ctx: ctx.suspend("rate_limit"),
    "two ends": lambda ctx: ctx.suspend("manual_pause", seconds=1, until=scene.database_now()),
    "negative wait": lambda ctx: ctx.suspend("manual_pause", seconds=-1),
    "endless wait": lambda ctx: ctx.suspend("manual_pause", seconds=float("inf")),
    "naive end": lambda ctx: ctx.suspend("manual_pause", until=scene.database_now().replace(tzinfo=None)),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_acceptable_is_refused_before_any_effect(call: Callable[[Context], Any], perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        with pytest.raises(InvalidInput):
            call(ctx)
        return "went on"

    claim = perform(agent)
    assert scene.run(claim).final_output == "went on"
    assert (JournalEntry.objects.count(), Outbox.objects.count(), Thread.objects.count()) == (0, 0, 1)
