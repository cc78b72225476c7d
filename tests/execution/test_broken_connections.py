"""The agent's own connection breaks: its run costs no attempt, and none of its effects happens twice."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction

from mailbox_app.errors import LeaseLost, Permanent
from mailbox_app.execution import Context
from mailbox_app.models import Event, JournalEntry, Outbox, Run, Thread
from mailbox_app.operations import checkpoint, settle, submit, tick
from mailbox_app.operations import journal as writing
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform
from tests.operations import scene
from tests.races.actors import lose_connection, start

pytestmark = pytest.mark.django_db(transaction=True)

VERBS: dict[str, Callable[[Context], Any]] = {
    "step": lambda ctx: ctx.step("look-up", lambda: [1, 2]),
    "say": lambda ctx: ctx.say("hi"),
    "emit": lambda ctx: ctx.emit("Noted", {"of": "mine"}),
    "usage": lambda ctx: ctx.usage(input_tokens=3),
    "send": lambda ctx: list(ctx.send("psst", thread_key="there", agent="echo")),
    "spawn": lambda ctx: list(ctx.spawn("psst", agent="echo")),
    "checkpoint": lambda ctx: ctx.checkpoint(),
    "history": lambda ctx: [message.text for message in ctx.history()],
}
EFFECTS = ("step", "say", "emit", "usage", "send", "spawn")
OPERATIONS = {"step": "record", "say": "say", "emit": "flush", "usage": "usage", "send": "send", "spawn": "spawn"}


@pytest.fixture(autouse=True)
def _each_event_is_recorded_at_once(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_batch": 1}


def story(of: Claim) -> dict[str, Any]:
    """All that a run left behind, without the ids that every run has of its own."""
    return {
        "dispatch": (scene.dispatch(of).status, scene.dispatch(of).attempt_count, scene.dispatch(of).lost_count),
        "events": scene.kinds(of),
        "log": scene.log(of),
        "journal": journal(of),
        "used": (scene.run(of).input_tokens, scene.run(of).steps),
        "children": Run.objects.filter(parent_run_id=of.run_id).count(),
        "sent": Outbox.objects.filter(source_thread_id=of.thread_id).count(),
    }


def journal(of: Claim) -> list[tuple[str, str, int]]:
    entries = JournalEntry.objects.filter(run_id=of.run_id).order_by("created_at", "pk")
    return list(entries.values_list("verb", "name", "n"))


def answer_lost_once(monkeypatch: pytest.MonkeyPatch, operation: str, *, of: Any = checkpoint) -> list[Any]:
    """Let the operation commit, and its connection break before the first answer; returns its results."""
    real, results = getattr(of, operation), []

    def committed(*args: Any, **kwargs: Any) -> Any:
        results.append(real(*args, **kwargs))
        if len(results) == 1:
            lose_connection()
            raise OperationalError("server closed the connection unexpectedly")
        return results[-1]

    monkeypatch.setattr(of, operation, committed)
    return results


@pytest.mark.parametrize("verb", VERBS)
def test_a_connection_lost_between_two_verbs_costs_neither_an_attempt_nor_an_effect(
    verb: str, perform: Perform
) -> None:
    def agent(ctx: Context, *, broken: bool) -> Any:
        ctx.step("before", lambda: None)
        if broken:
            lose_connection()
        return [VERBS[verb](ctx), ctx.step("after", lambda: None)][1:]

    undisturbed = story(perform(lambda ctx: agent(ctx, broken=False)))
    assert undisturbed["dispatch"] == ("acked", 0, 0)
    assert story(perform(lambda ctx: agent(ctx, broken=True), max_attempts=1)) == undisturbed


def test_a_connection_lost_inside_a_step_does_not_repeat_the_step(perform: Perform) -> None:
    ran: list[int] = []

    def charge() -> int:
        ran.append(1)
        lose_connection()
        return len(ran)

    one = perform(lambda ctx: [ctx.step("charge", charge)], max_attempts=1)
    assert (scene.dispatch(one).status, scene.run(one).final_output, ran) == ("acked", [1], [1])


@pytest.mark.parametrize("verb", EFFECTS)
def test_an_effect_whose_commit_was_not_answered_happens_once(
    verb: str, perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agent(ctx: Context) -> list[Any]:
        return [VERBS[verb](ctx), ctx.step("after", lambda: None)]

    undisturbed = perform(agent)
    committed = answer_lost_once(monkeypatch, OPERATIONS[verb])
    one = perform(agent, max_attempts=1)
    assert story(one) == story(undisturbed)
    told = list(committed[0]) if verb in ("send", "spawn") else committed[0]
    assert scene.run(one).final_output == [told, None], "what was recorded is what the agent was told"


def test_two_uses_of_one_verb_stay_two_when_the_first_was_not_answered(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_lost_once(monkeypatch, "say")
    one = perform(lambda ctx: [ctx.say("hi")["seq"], ctx.say("hi")["seq"]])
    assert scene.run(one).final_output == [2, 3]
    assert scene.log(one) == [(1, "user", "hello there"), (2, "assistant", "hi"), (3, "assistant", "hi")]


def say(ctx: Context, text: str, boundary: str) -> None:
    submit.messages(scope=scene.SCOPE, thread_id=ctx.thread_id, messages=[text], boundary=boundary)


def test_a_checkpoint_whose_commit_was_not_answered_hands_its_messages_over_all_the_same(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agent(ctx: Context) -> list[Any]:
        say(ctx, "one", "next_step")
        first = [message.text for message in ctx.checkpoint()]
        say(ctx, "two", "next_step")
        return [first, *([message.text for message in ctx.checkpoint()] for _ in range(2))]

    undisturbed = scene.run(perform(agent)).final_output
    read = answer_lost_once(monkeypatch, "reach")
    assert scene.run(perform(agent, max_attempts=1)).final_output == undisturbed == [["one"], ["two"], []]
    assert [len(messages) for messages in read] == [1, 1, 1, 0]


def test_a_turn_whose_beginning_was_not_answered_is_begun_once(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Any] = []

    def agent(ctx: Context) -> str:
        turns.append((ctx.turn, [message.text for message in ctx.messages], dict(ctx.state)))
        ctx.state["turns"] = ctx.turn
        if ctx.turn == 1:
            say(ctx, "more", "on_natural_end")
        return f"answer {ctx.turn}"

    answer_lost_once(monkeypatch, "complete", of=settle)
    one = perform(agent, max_attempts=1)
    assert turns == [(1, ["hello there"], {}), (2, ["more"], {"turns": 1})]
    assert [content for _, _, content in scene.log(one)] == ["hello there", "answer 1", "more", "answer 2"]
    assert (scene.run(one).status, scene.run(one).state) == ("done", {"turns": 2})


def test_a_wait_whose_commit_was_not_answered_is_begun_once(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_lost_once(monkeypatch, "suspend", of=settle)
    one = perform(lambda ctx: ctx.suspend("manual_pause"), max_attempts=1)
    assert scene.run(one).status == "waiting"
    assert scene.kinds(one).count("RunSuspended") == 1


@pytest.mark.parametrize("is_committed", [False, True], ids=["not committed", "not answered"])
def test_a_burial_that_fails_once_is_told_again_and_the_agent_is_not_called_again(
    is_committed: bool, perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury, calls, tries = settle.dead_letter, [], []

    def fails_once(*args: Any, **given: Any) -> None:
        tries.append(1)
        if is_committed or len(tries) > 1:
            bury(*args, **given)
        if len(tries) == 1:
            lose_connection()
            raise OperationalError("server closed the connection unexpectedly")

    def agent(ctx: Context) -> None:
        calls.append(ctx.attempt)
        raise Permanent("no such model")

    monkeypatch.setattr(settle, "dead_letter", fails_once)
    one = perform(agent)
    assert (calls, len(tries)) == ([1], 2)
    dispatch, run = scene.dispatch(one), scene.run(one)
    assert (dispatch.status, dispatch.attempt_count, dispatch.lost_count) == ("dead_letter", 1, 0)
    assert run.error == {"code": "permanent", "message": "Permanent: no such model"}
    assert (run.status, scene.kinds(one).count("RunErrored")) == ("done", 1)


@pytest.mark.parametrize("failing", ["function", "record"])
def test_a_step_the_agent_tried_again_by_itself_is_found_by_its_replay(
    failing: str, perform: Perform, again: Callable[..., Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    trouble = [failing]
    write = writing.write

    def charge() -> int:
        if failing == "function" and trouble:
            raise DatabaseError(trouble.pop())
        ran.append(1)
        return 7

    def fail_once(*args: Any) -> None:
        if failing == "record" and trouble:
            raise DatabaseError(trouble.pop())
        write(*args)

    def agent(ctx: Context) -> list[int]:
        try:
            found = ctx.step("charge", charge)
        except DatabaseError:
            found = ctx.step("charge", charge)
        if ctx.attempt == 1:
            raise TimeoutError("after its record was committed")
        return [found]

    monkeypatch.setattr(writing, "write", fail_once)
    one = perform(agent)
    executions = {"function": 1, "record": 2}[failing]
    assert (trouble, len(ran), journal(one)) == ([], executions, [("step", "charge", 1)])
    scene.make_available(one)
    tick.promote()
    again()
    assert (scene.dispatch(one).status, scene.run(one).final_output) == ("acked", [7])
    assert (len(ran), journal(one)) == (executions, [("step", "charge", 1)])


@pytest.mark.parametrize("verb", [*EFFECTS, "checkpoint"])
def test_a_verb_inside_the_agent_s_own_transaction_is_refused_and_nothing_is_written(
    verb: str, perform: Perform
) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> None:
        with transaction.atomic():
            try:
                VERBS[verb](ctx)
            except Permanent as error:
                seen.append(start(is_fence_free, ctx.thread_id).result(20))
                seen.append(str(error))
                raise

    one = perform(agent)
    message = "a verb of the context was called inside transaction.atomic(); call it outside"
    assert seen == [True, message]
    assert (scene.dispatch(one).status, journal(one), len(scene.log(one))) == ("dead_letter", [], 1)
    assert scene.run(one).error == {"code": "permanent", "message": f"Permanent: {message}"}
    assert not Event.objects.filter(kind="Noted").exists()


def test_a_step_inside_the_agent_s_own_transaction_is_refused_before_its_function_runs(perform: Perform) -> None:
    ran: list[int] = []

    def agent(ctx: Context) -> None:
        with transaction.atomic():
            ctx.step("charge", lambda: ran.append(1))

    assert scene.dispatch(perform(agent)).status == "dead_letter"
    assert ran == []


def is_fence_free(thread_id: str) -> bool:
    with transaction.atomic():
        return Thread.objects.select_for_update(no_key=True, skip_locked=True).filter(pk=thread_id).exists()


@pytest.mark.parametrize("verb", ["step", "history"])
def test_a_database_that_is_away_for_longer_than_the_lease_ends_the_run_and_nothing_is_written(
    verb: str, perform: Perform, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 0.6, "renewal_seconds": 0.2}
    raised: list[BaseException] = []
    away: list[bool] = []
    wrapper = type(connection.copy())
    real = wrapper.get_new_connection

    def reached(self: Any, parameters: Any) -> Any:
        if away:
            raise OperationalError("connection refused")
        return real(self, parameters)

    monkeypatch.setattr(wrapper, "get_new_connection", reached)

    def agent(ctx: Context) -> str:
        ctx.step("before", lambda: None)
        lose_connection()
        away.append(True)
        try:
            VERBS[verb](ctx)
        except LeaseLost as error:
            raised.append(error)
        away.clear()
        return "as if nothing had happened"

    one = perform(agent)
    assert len(raised) == 1
    assert (scene.dispatch(one).status, scene.run(one).status) == ("claimed", "running")
    assert (scene.kinds(one), scene.log(one)) == (
        ["ThreadCreated", "RunQueued", "RunStarted"],
        [(1, "user", "hello there")],
    )
    assert journal(one) == [("step", "before", 1)]
