"""ask, ask_all and wait_for_decision as an agent sees them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import channel
from mailbox_app.errors import Cancelled, InvalidInput, Suspended, Transient
from mailbox_app.execution import AsyncContext, Context, Question, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Event, JournalEntry, Ticket
from mailbox_app.operations import cancel, decide, tick
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import start, until

Again = Callable[..., Claim]

pytestmark = pytest.mark.django_db


def decided(claim: Claim, name: str, **given: Any) -> decide.Decided:
    ticket = Ticket.objects.get(run_id=claim.run_id, name=name)
    named = {"scope": scene.SCOPE, "run_id": claim.run_id, "ticket_id": ticket.ticket_id, "action": "resume"}
    return decide.ticket(**{**named, **given})


def test_an_agent_gets_its_answer_and_repeats_nothing(perform: Perform, again: Again) -> None:
    calls: list[str] = []

    def agent(ctx: Context) -> Any:
        ctx.step("look-up", calls.append, "looked up")
        answer = ctx.ask("refund", question="May I?", arguments={"cents": 5}, resume_mode="pass_decision_to_tool")
        calls.append(answer.action)
        return [answer.payload, answer.decision_id, answer.answered_by, answer.expired, answer.resume_mode]

    claim = perform(agent)
    assert scene.run(claim).status == "waiting"
    decided(claim, "refund", payload={"yes": True}, decision_id="d-1", by="ada")
    again()
    assert scene.run(claim).final_output == [{"yes": True}, "d-1", "ada", False, "pass_decision_to_tool"]
    assert calls == ["looked up", "resume"]


def test_an_agent_that_is_told_no_goes_on_without(perform: Perform, again: Again) -> None:
    claim = perform(lambda ctx: "no refund" if ctx.ask("refund").action == "cancel" else "refunded")
    decided(claim, "refund", action="cancel")
    again()
    assert scene.run(claim).final_output == "no refund"


def test_an_answer_that_never_came_is_a_cancel_by_nobody(perform: Perform, again: Again) -> None:
    def agent(ctx: Context) -> Any:
        answer = ctx.ask("refund", expires_in=60)
        return [answer.action, answer.expired, answer.payload, answer.answered_by]

    claim = perform(agent)
    Ticket.objects.update(expires_at=Now() - timedelta(seconds=1))
    assert tick.expire_tickets() == 1
    again()
    assert scene.run(claim).final_output == ["cancel", True, None, ""]


def test_several_questions_are_open_at_once_and_their_answers_come_together(perform: Perform, again: Again) -> None:
    def agent(ctx: Context) -> Any:
        return [answer.payload for answer in ctx.ask_all([Question(name="one"), Question(name="two", key="k")])]

    claim = perform(agent)
    assert Ticket.objects.open().count() == 2
    decided(claim, "two", payload=2)
    assert scene.take(agents=("probe",)) is None
    decided(claim, "one", payload=1)
    again()
    assert scene.run(claim).final_output == [1, 2]


def test_questions_one_after_the_other_are_each_asked_once(perform: Perform, again: Again) -> None:
    claim = perform(lambda ctx: [ctx.ask("next").payload for _ in range(3)])
    for payload in "abc":
        ticket = Ticket.objects.open().get()
        decide.ticket(
            scope=scene.SCOPE, run_id=claim.run_id, ticket_id=ticket.ticket_id, action="resume", payload=payload
        )
        again()
    assert scene.run(claim).final_output == ["a", "b", "c"]
    assert Ticket.objects.count() == len(set(Ticket.objects.values_list("ticket_id", flat=True))) == 3


def test_an_answer_outlives_a_failure_after_it(perform: Perform, again: Again) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> str:
        seen.append(ctx.ask("refund").payload)
        if len(seen) == 1:
            ctx.retry_after(0)
        return "done"

    claim = perform(agent, max_attempts=2)
    decided(claim, "refund", payload=7)
    again()
    again()
    assert seen == [7, 7]
    assert (scene.run(claim).final_output, Ticket.objects.count(), JournalEntry.objects.count()) == ("done", 1, 1)


def test_a_failure_between_question_and_wait_asks_no_second_time(
    perform: Perform, again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def agent(ctx: Context) -> Any:
        attempts.append(ctx.attempt)
        try:
            return ctx.ask("refund").payload
        except Suspended:
            if len(attempts) == 1:
                monkeypatch.setattr(ctx._journal, "_stop", None)  # as if it had died here, before its suspend
                raise Transient(retry_after=0) from None
            raise

    claim = perform(agent)
    again()
    assert (attempts, Ticket.objects.count(), scene.run(claim).status) == ([1, 2], 1, "waiting")
    assert scene.kinds(claim).count("ToolPermissionRequested") == 1


@pytest.mark.parametrize("attempt", ["catches it", "says more", "asks more", "raises another"])
def test_an_agent_that_does_not_let_the_wait_pass_waits_all_the_same(attempt: str, perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        try:
            ctx.ask("refund")
        except Suspended:
            if attempt == "says more":
                ctx.say("still here")
            if attempt == "asks more":
                ctx.ask("another")
            if attempt == "raises another":
                raise ZeroDivisionError from None
        return "done"

    claim = perform(agent)
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("waiting", "acked")
    assert (len(scene.log(claim)), Ticket.objects.count()) == (1, 1)


def test_a_question_whose_arguments_changed_is_a_replay_mismatch(perform: Perform, again: Again) -> None:
    cents = iter((5, 6))
    claim = perform(lambda ctx: ctx.ask("refund", arguments={"cents": next(cents)}))
    decided(claim, "refund")
    again()
    assert (scene.run(claim).error or {}).get("code") == "replay_mismatch"


def test_how_it_is_put_and_for_how_long_may_differ_each_time(perform: Perform, again: Again) -> None:
    words = iter(("May I?", "Could I?"))
    claim = perform(lambda ctx: ctx.ask("refund", question=next(words), expires_in=60.0 + id(ctx) % 7).payload)
    decided(claim, "refund", payload=1)
    again()
    assert (scene.run(claim).final_output, Ticket.objects.get().question) == (1, "May I?")


LOOP: dict[str, Any] = {"$ref": "#"}
REFUSED: dict[str, Callable[[Context], Any]] = {
    "blank name": lambda ctx: ctx.ask(" "),
    "arguments no object": lambda ctx: ctx.ask("a", arguments=[1]),  # type: ignore[arg-type]
    "no schema": lambda ctx: ctx.ask("a", schema={"type": "nothing"}),
    "schema from elsewhere": lambda ctx: ctx.ask("a", schema={"$ref": "https://127.0.0.1/schema"}),
    "schema with a hole": lambda ctx: ctx.ask("a", schema={"$ref": "#/$defs/gone"}),
    "schema without end": lambda ctx: ctx.ask("a", schema=LOOP),
    "unknown mode": lambda ctx: ctx.ask("a", resume_mode="later"),
    "negative end": lambda ctx: ctx.ask("a", expires_in=-1),
    "endless end": lambda ctx: ctx.ask("a", expires_in=float("inf")),
    "nothing": lambda ctx: ctx.ask_all([]),
    "too many": lambda ctx: ctx.ask_all([Question(name="a")] * 101),
    "no question": lambda ctx: ctx.ask_all(["a"]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_a_question_that_cannot_be_put_is_refused_before_any_effect(
    refused: Callable[[Context], Any], perform: Perform
) -> None:
    errors: list[InvalidInput] = []

    def agent(ctx: Context) -> None:
        try:
            refused(ctx)
        except InvalidInput as error:
            errors.append(error)

    claim = perform(agent)
    assert len(errors) == 1
    assert (scene.run(claim).status, Ticket.objects.count()) == ("done", 0)


def test_a_step_asks_nobody(perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.step("outer", lambda: ctx.ask("inner").action))
    assert (scene.run(claim).error or {}).get("code") == "permanent"
    assert Ticket.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_an_async_agent_asks_too(perform: Perform, again: Again) -> None:
    async def agent(ctx: AsyncContext) -> Any:
        answer = await ctx.aask("refund", arguments={"cents": 5})
        both = await ctx.aask_all([Question(name="one"), Question(name="two")])
        return [answer.payload, *(one.payload for one in both)]

    claim = perform(agent)
    decided(claim, "refund", payload=0)
    again()
    decided(claim, "one", payload=1)
    decided(claim, "two", payload=2)
    again()
    assert scene.run(claim).final_output == [0, 1, 2]


async def _live_async(ctx: AsyncContext) -> Any:
    return (await ctx.await_for_decision("refund", seconds=60)).payload


def _live(ctx: Context) -> Any:
    return ctx.wait_for_decision("refund", seconds=60).payload


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("agent", [_live, _live_async])
def test_an_agent_that_waits_live_gets_the_answer_in_the_same_activation(
    agent: Any, register: Register, keeper: LeaseKeeper
) -> None:
    name = register(agent)
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    running = start(lambda: runner.run(claim, keeper=keeper, own_process=False))
    until(lambda: Ticket.objects.open().exists(), "the question is open")
    assert decided(claim, "refund", payload="live").status == "stored"
    running.result(20)
    run = scene.run(claim)
    assert (run.status, run.final_output, run.waiting) == ("done", "live", None)
    assert Dispatch.objects.of_run(claim.run_id).count() == 1
    assert Event.objects.get(kind="MailboxDecisionReceived").payload["delivery_path"] == "live"


@pytest.mark.django_db(transaction=True)
def test_an_agent_that_waits_live_is_stopped_there(register: Register, keeper: LeaseKeeper) -> None:
    contexts: list[Context] = []

    def agent(ctx: Context) -> Any:
        contexts.append(ctx)
        return ctx.wait_for_decision("refund").payload

    name = register(agent)
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    running = start(lambda: runner.run(claim, keeper=keeper, own_process=False))
    until(lambda: Ticket.objects.open().exists(), "the question is open")
    assert cancel.run(scope=scene.SCOPE, run_id=claim.run_id).outcome == "requested"
    contexts[0].stop_with(Cancelled())  # as the keeper does when it is told
    running.result(20)
    assert (scene.run(claim).termination, Ticket.objects.get().status) == ({"type": "cancelled"}, "cancelled")


def test_a_live_wait_that_is_over_goes_on_without_a_worker(perform: Perform, again: Again) -> None:
    claim = perform(lambda ctx: ctx.wait_for_decision("refund", seconds=0).payload)
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("waiting", "acked")
    decided(claim, "refund", payload="late")
    again()
    assert scene.run(claim).final_output == "late"


def test_a_live_wait_leaves_room_before_the_time_limit(perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.wait_for_decision("refund").payload, timeout_seconds=1)
    assert (scene.run(claim).status, scene.dispatch(claim).attempt_count) == ("waiting", 0)


def test_nobody_waits_live_where_nobody_can_answer(perform: Perform) -> None:
    with channel.silenced():
        claim = perform(lambda ctx: ctx.wait_for_decision("refund").payload)
    assert scene.run(claim).status == "waiting"
