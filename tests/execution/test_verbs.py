"""What a context refuses before any effect, and what it hands out."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from mailbox_app.errors import Permanent
from mailbox_app.execution import Context
from mailbox_app.models import Event, JournalEntry
from tests.execution.conftest import Perform
from tests.operations import scene

pytestmark = pytest.mark.django_db

EFFECTS: dict[str, Callable[[Context], Any]] = {
    "step": lambda ctx: ctx.step("inner", lambda: 1),
    "say": lambda ctx: ctx.say("inner"),
    "emit": lambda ctx: ctx.emit("Inner"),
    "usage": lambda ctx: ctx.usage(),
    "send": lambda ctx: ctx.send("inner", thread_key="inner"),
    "suspend": lambda ctx: ctx.suspend("manual_pause", name="inner"),
    "ask": lambda ctx: ctx.ask("inner"),
    "wait_for_decision": lambda ctx: ctx.wait_for_decision("inner"),
}


@pytest.mark.parametrize("verb", EFFECTS)
def test_steps_do_not_nest(verb: str, perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.step("outer", lambda: EFFECTS[verb](ctx)))
    error = scene.run(claim).error
    assert error is not None
    assert error["code"] == "permanent"
    assert error["message"].endswith("inside step 'outer': steps do not nest")
    assert (JournalEntry.objects.count(), len(scene.log(claim))) == (0, 1)


def test_after_a_step_that_failed_another_may_follow(perform: Perform) -> None:
    def agent(ctx: Context) -> int:
        with pytest.raises(ZeroDivisionError):
            ctx.step("fails", lambda: 1 // 0)
        return ctx.step("works", lambda: 2)

    assert scene.run(perform(agent)).final_output == 2


@pytest.mark.parametrize("verb", EFFECTS)
def test_a_verb_from_another_thread_without_a_key_is_refused_before_any_effect(verb: str, perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(EFFECTS[verb], ctx).result()

    claim = perform(agent)
    error = scene.run(claim).error
    assert error is not None
    assert error["message"].endswith("was called from another thread or task than the agent's; it needs a key=")
    assert (JournalEntry.objects.count(), Event.objects.filter(kind="Inner").count()) == (0, 0)


@pytest.mark.django_db(transaction=True)
def test_threads_of_an_agent_may_be_in_steps_at_the_same_time_by_key(perform: Perform) -> None:
    inside = threading.Barrier(3)

    def agent(ctx: Context) -> list[int]:
        def work(number: int) -> int:
            inside.wait(timeout=20)
            return number * 10

        def one(number: int) -> int:
            try:
                return ctx.step("work", work, number, key=str(number))
            finally:
                if number:
                    connections.close_all()

        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(one, 1), pool.submit(one, 2)]
            return [one(0), *(other.result() for other in others)]

    claim = perform(agent)
    assert scene.run(claim).final_output == [0, 10, 20]
    rows = JournalEntry.objects.order_by("key").values_list("key", "n", "result")
    assert list(rows) == [("0", 1, 0), ("1", 1, 10), ("2", 1, 20)]


REFUSED: dict[str, Callable[[Context], Any]] = {
    "step result": lambda ctx: ctx.step("bad", lambda: {1, 2}),
    "step result nan": lambda ctx: ctx.step("bad", lambda: float("nan")),
    "step argument": lambda ctx: ctx.step("bad", len, object()),
    "step without name": lambda ctx: ctx.step(" ", lambda: 1),
    "say nothing": lambda ctx: ctx.say(""),
    "say nul": lambda ctx: ctx.say("a\x00b"),
    "emit a system kind": lambda ctx: ctx.emit("RunFinished"),
    "emit nul": lambda ctx: ctx.emit("Mine", {"text": "\x00"}),
    "emit too much": lambda ctx: ctx.emit("Mine", "x" * 65_536),
    "emit to whom": lambda ctx: ctx.emit("Mine", visibility="everybody"),
    "emit blank key": lambda ctx: ctx.emit("Mine", key=" "),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_stored_is_refused_before_any_effect(call: Callable[[Context], Any], perform: Perform) -> None:
    claim = perform(call)
    error = scene.run(claim).error
    assert error is not None
    assert (scene.dispatch(claim).status, error["code"]) == ("dead_letter", "invalid_input")
    assert JournalEntry.objects.count() == 0
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunErrored"]


def test_a_permanent_of_the_context_can_be_caught_like_any_other(perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        with pytest.raises(Permanent):
            ctx.step("outer", lambda: ctx.say("inner"))
        return "went on"

    assert scene.run(perform(agent)).final_output == "went on"


def test_what_an_agent_says_is_in_the_log_at_once_and_in_order(perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        first = ctx.say("one")
        second = ctx.say([{"type": "text", "text": "two"}])
        assert (first["seq"], second["seq"]) == (2, 3)
        return "three"

    claim = perform(agent)
    assert scene.log(claim) == [
        (1, "user", "hello there"),
        (2, "assistant", "one"),
        (3, "assistant", [{"type": "text", "text": "two"}]),
        (4, "assistant", "three"),
    ]


def test_an_event_of_a_team_s_own_kind_is_numbered_among_the_others(perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.emit("Priced", {"cents": 5}, visibility="internal"))
    event = Event.objects.get(kind="Priced")
    assert (event.cursor, event.payload, event.visibility) == (4, {"cents": 5}, "internal")
    assert (event.run_id, event.dispatch_id, event.key) == (claim.run_id, claim.dispatch_id, None)
    assert scene.run(claim).final_output is None


def test_history_ends_before_the_turn_s_input_and_is_bounded(perform: Perform) -> None:
    claim = perform(lambda ctx: [m.text for m in ctx.history()], "first")
    assert scene.run(claim).final_output == []
