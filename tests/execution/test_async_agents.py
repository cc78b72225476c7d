"""`async def` agents: the verbs with an `a` in front, journalled and fenced as any; cancelled where they wait."""

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection

from mailbox_app import catalogue, saying
from mailbox_app.conf import conf
from mailbox_app.errors import LeaseLost, Permanent, Transient
from mailbox_app.execution import AsyncContext, Context, loop, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import JournalEntry, Run, Thread
from mailbox_app.operations import recover
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _short_leases(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 3.0, "renewal_seconds": 0.1, "retry_delay_seconds": 0.0}


def error_of(claim: Claim) -> dict[str, Any]:
    error = scene.run(claim).error
    assert error is not None, scene.dispatch(claim).last_error
    return error


def test_a_coroutine_function_of_any_kind_is_an_async_agent(register: Register) -> None:
    async def plain(ctx: AsyncContext) -> None: ...

    class Callables:
        async def __call__(self, ctx: AsyncContext) -> None: ...

        async def method(self, ctx: AsyncContext) -> None: ...

    register(plain, name="plain")
    register(Callables(), name="object")
    register(Callables().method, name="method")
    register(lambda ctx: None, name="sync")
    found = {name: catalogue.is_async(name) for name in ("plain", "object", "method", "sync", "none")}
    assert found == {"plain": True, "object": True, "method": True, "sync": False, "none": False}
    assert {"plain", "object", "method"} <= set(catalogue.async_names())
    assert "sync" in catalogue.sync_names()


def test_an_async_agent_knows_its_run_and_does_what_a_sync_one_can(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> dict[str, Any]:
        found = await ctx.astep("look-up", lambda text: {"found": text}, ctx.messages[-1].text)
        slow = await ctx.astep("ask", asyncio.sleep, 0.01, result=["from", "a", "coroutine"])
        said = await ctx.asay("working on it")
        await ctx.aemit("Progress", {"done": 1})
        ctx.delta("li")
        await ctx.adelta("ve")
        ctx.state = {"seen": len(await ctx.ahistory()), "steered": await ctx.acheckpoint()}
        ids = [ctx.thread_id, ctx.run_id, ctx.agent, ctx.attempt, ctx.turn, ctx.options, ctx.config]
        return {"found": found, "slow": slow, "said": said["seq"], "ids": ids}

    claim = perform(agent)
    run = scene.run(claim)
    assert run.final_output == {
        "found": {"found": "hello there"},
        "slow": ["from", "a", "coroutine"],
        "said": 2,
        "ids": [str(claim.thread_id), str(claim.run_id), "probe", 1, 1, {}, {}],
    }, scene.dispatch(claim).last_error
    assert run.state == {"seen": 0, "steered": []}
    assert scene.log(claim) == [(1, "user", "hello there"), (2, "assistant", "working on it")]
    verbs = JournalEntry.objects.order_by("id").values_list("verb", "name", "n")
    assert list(verbs) == [("step", "look-up", 1), ("step", "ask", 1), ("say", "message", 1), ("emit", "Progress", 1)]


def test_a_retried_async_agent_replays_its_journal(perform: Perform, again: Callable[..., Claim]) -> None:
    done: list[str] = []

    async def work(what: str) -> str:
        done.append(what)
        return what

    async def agent(ctx: AsyncContext) -> list[str]:
        both = [await ctx.astep("work", work, "first"), await ctx.astep("work", work, "second")]
        beside = await asyncio.gather(*(ctx.astep("work", work, name, key=name) for name in ("left", "right")))
        if ctx.attempt == 1:
            raise Transient("once more", retry_after=0)
        return [*both, *beside, await ctx.astep("work", work, "third")]

    first = perform(agent)
    assert scene.dispatch(first).status == "queued"
    claim = again()
    assert scene.run(claim).final_output == ["first", "second", "left", "right", "third"]
    assert (done[:2], sorted(done[2:4]), done[4:]) == (["first", "second"], ["left", "right"], ["third"])


def test_a_step_that_fails_leaves_no_record_and_its_next_use_is_the_same(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> str:
        async def fail() -> None:
            raise ZeroDivisionError

        async def work() -> str:
            return "at last"

        for function in (fail, lambda: 1 // 0):
            with pytest.raises(ZeroDivisionError):
                await ctx.astep("work", function)
        return str(await ctx.astep("work", work))

    claim = perform(agent)
    assert scene.run(claim).final_output == "at last"
    assert list(JournalEntry.objects.values_list("name", "n")) == [("work", 1)]


def test_a_verb_of_another_task_needs_a_key_and_is_refused_before_any_effect(perform: Perform) -> None:
    ran: list[str] = []

    async def agent(ctx: AsyncContext) -> None:
        await asyncio.gather(ctx.astep("look-up", lambda: ran.append("a")), ctx.asay("beside"))

    claim = perform(agent)
    assert error_of(claim)["code"] == "permanent"
    assert error_of(claim)["message"].endswith("another thread or task than the agent's; it needs a key=")
    assert (ran, scene.log(claim), JournalEntry.objects.count()) == ([], [(1, "user", "hello there")], 0)


def test_a_verb_of_another_task_with_a_key_is_done(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> list[Any]:
        await asyncio.gather(ctx.asay("left", key="l"), ctx.asay("right", key="r"))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.astep("n", asyncio.sleep, 0.01, n, key=str(n))) for n in range(20)]
        return [task.result() for task in tasks]

    claim = perform(agent)
    assert scene.run(claim).final_output == list(range(20))
    assert {content for _, _, content in scene.log(claim)[1:]} == {"left", "right"}


@pytest.mark.parametrize("kind", ["coroutine", "function", "task"])
def test_steps_of_an_async_agent_do_not_nest(kind: str, perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> None:
        async def inside() -> None:
            await ctx.asay("inside", key="k")

        async def in_a_task() -> None:
            await asyncio.create_task(inside())

        def in_a_thread() -> None:
            ctx._context.say("inside", key="k")

        await ctx.astep("outer", {"coroutine": inside, "function": in_a_thread, "task": in_a_task}[kind])

    claim = perform(agent)
    assert error_of(claim)["message"].endswith("was called inside step 'outer': steps do not nest")
    assert JournalEntry.objects.count() == 0


def test_a_sync_verb_of_an_async_agent_names_the_one_to_await(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> list[str]:
        found = []
        for name in (
            "say",
            "step",
            "checkpoint",
            "nothing",
            "anothing",
            "stop_with",
            "astop_with",
            "_claim",
            "a_check",
        ):
            with pytest.raises(AttributeError) as caught:
                getattr(ctx, name)
            found.append(str(caught.value))
        return found[:2]

    assert scene.run(perform(agent)).final_output == [
        "this agent is async: await ctx.asay(…)",
        "this agent is async: await ctx.astep(…)",
    ]


def test_a_verb_that_is_added_to_the_context_is_there_with_an_a(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(self: Context, tokens: int, *, of: str) -> list[Any]:
        """A verb of tomorrow."""
        return [self.run_id, tokens, of, threading.current_thread().name]

    monkeypatch.setattr(Context, "usage", usage, raising=False)

    async def agent(ctx: AsyncContext) -> Any:
        return await ctx.ausage(7, of="input")

    claim = perform(agent)
    assert scene.run(claim).final_output == [str(claim.run_id), 7, "input", "mailbox-verb"]


def test_verbs_see_the_context_variables_of_the_agent_and_the_agent_sees_no_database(perform: Perform) -> None:
    tenant = contextvars.ContextVar("tenant", default="none")

    async def agent(ctx: AsyncContext) -> Any:
        tenant.set("acme")
        with pytest.raises(SynchronousOnlyOperation):
            Run.objects.count()
        return [await ctx.astep("who", tenant.get), await Run.objects.acount()]

    assert scene.run(perform(agent)).final_output == ["acme", 1]


ENDINGS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "bug": (lambda: ZeroDivisionError("oops"), "ZeroDivisionError"),
    "sys.exit": (lambda: SystemExit(3), "RuntimeError"),
    "interrupt": (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
    "cancelled": (lambda: asyncio.CancelledError(), "CancelledError"),
    "transient": (lambda: Transient("later"), "transient"),
    "loss": (lambda: LeaseLost("I say so"), "lease_lost"),
}


@pytest.mark.parametrize(("make", "code"), ENDINGS.values(), ids=ENDINGS.keys())
def test_nothing_an_async_agent_raises_ends_the_loop(
    make: Callable[[], BaseException], code: str, perform: Perform
) -> None:
    async def agent(ctx: AsyncContext) -> None:
        raise make()

    claim = perform(agent)
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.last_error.partition(":")[0]) == ("queued", code)
    assert loop.loop.answers(within=5)


def test_nothing_a_task_of_an_agent_raises_ends_the_loop(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> str:
        async def leave() -> None:
            sys.exit("bye")

        task = asyncio.create_task(leave())
        await asyncio.wait([task])
        await asyncio.sleep(0)
        return type(task.exception()).__name__

    assert scene.run(perform(agent)).final_output == "SystemExit"
    assert loop.loop.answers(within=5)


def test_a_permanent_error_of_a_task_group_is_buried_at_once(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> None:
        async def fail(error: Exception) -> None:
            raise error

        async with asyncio.TaskGroup() as group:
            group.create_task(fail(KeyError("passing")))
            group.create_task(fail(Permanent("no such model")))

    claim = perform(agent)
    assert (scene.dispatch(claim).status, error_of(claim)["code"]) == ("dead_letter", "permanent")


def test_what_an_agent_left_running_is_cancelled_when_it_ends(perform: Perform) -> None:
    ended: list[str] = []

    async def agent(ctx: AsyncContext) -> str:
        async def linger() -> None:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        asyncio.create_task(linger())  # noqa: RUF006
        await asyncio.sleep(0)
        return "done"

    assert scene.run(perform(agent)).final_output == "done"
    assert ended == ["cancelled"]


def test_the_connection_of_an_agent_s_own_queries_is_closed_after_its_run(perform: Perform) -> None:
    @sync_to_async
    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    async def agent(ctx: AsyncContext) -> int:
        return await backend()

    used = scene.run(perform(agent)).final_output
    until(lambda: not _alive({used}), "it is closed")


def test_a_cancellation_waits_for_the_verb_that_has_begun(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(self: Context) -> str:
        time.sleep(0.2)
        return self.say("said to the end")["message_id"]

    monkeypatch.setattr(Context, "slowly", slowly, raising=False)

    async def agent(ctx: AsyncContext) -> list[Any]:
        try:
            async with asyncio.timeout(0.05):
                await ctx.aslowly()
        except TimeoutError:
            return [JournalEntry.__name__, await JournalEntry.objects.acount()]
        return ["in time"]

    assert scene.run(perform(agent)).final_output == ["JournalEntry", 1]


def test_a_request_to_cancel_reaches_an_agent_that_waits(perform: Perform) -> None:
    heard: list[str] = []

    async def agent(ctx: AsyncContext) -> str:
        await asyncio.to_thread(lambda: _ask_to_cancel(ctx.dispatch_id))
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError as error:
            heard.append(type(error).__name__)
        for verb in (ctx.asay("after"), ctx.astep("after", lambda: heard.append("ran")), ctx.acheckpoint()):
            try:
                await verb
            except BaseException as error:
                heard.append(type(error).__name__)
        return "as if nothing had happened"

    claim = perform(agent)
    assert heard == ["CancelledError", "Cancelled", "Cancelled", "Cancelled"]
    assert (scene.dispatch(claim).status, scene.run(claim).termination) == ("cancelled", {"type": "cancelled"})


def test_a_request_to_cancel_reaches_a_sync_agent_at_its_next_verb(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        _ask_to_cancel(ctx.dispatch_id)
        until(lambda: ctx.stop, "the keeper hears of it")
        ctx.say("after")

    claim = perform(agent)
    assert (scene.dispatch(claim).status, scene.log(claim)) == ("cancelled", [(1, "user", "hello there")])


def test_a_lost_lease_cancels_the_agent_and_settles_nothing(perform: Perform) -> None:
    heard: list[str] = []

    async def agent(ctx: AsyncContext) -> str:
        await asyncio.to_thread(lambda: _lose(ctx))
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            heard.append("cancelled")
        return "done"

    claim = perform(agent)
    assert heard == ["cancelled"]
    assert (scene.dispatch(claim).status, scene.dispatch(claim).lost_count) == ("queued", 1)
    assert scene.kinds(claim)[-1] == "RunRescheduled"


def test_an_async_run_past_its_limit_is_settled_and_cancelled(perform: Perform) -> None:
    heard: list[str] = []

    async def agent(ctx: AsyncContext) -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            heard.append("cancelled")
        try:
            await ctx.asay("too late")
        except LeaseLost as error:
            heard.append(str(error).partition(" ran ")[2])
        return "too late"

    claim = perform(agent, timeout_seconds=0.3)
    assert heard == ["cancelled", "past its limit of 0.3 s"]
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.attempt_count) == ("queued", 1)
    assert dispatch.last_error == "timed_out: ran past its limit of 0.3 s"
    assert scene.log(claim) == [(1, "user", "hello there")]


def test_deltas_are_said_in_order_and_before_the_message_that_holds_them(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few of the verbs' threads are free."""
    said: list[str] = []
    say, close = saying.Speech.say, saying.Speech.close

    def noted(speech: saying.Speech, text: str) -> int:
        said.append(text)
        return say(speech, text)

    def closed(speech: saying.Speech) -> None:
        said.append("closed")
        close(speech)

    monkeypatch.setattr(saying.Speech, "say", noted)
    monkeypatch.setattr(saying.Speech, "close", closed)
    may_go = threading.Event()

    async def agent(ctx: AsyncContext) -> None:
        for number in range(20):
            await ctx.adelta("!")
            await ctx.astep("from a thread", ctx.delta, "?")
            ctx.delta(f"{number}")
            await ctx.asay(f"!?{number}")
        ctx.delta("at last")

    others = [loop.verbs.submit(lambda: may_go.wait(30)) for _ in range(conf.async_verb_threads - 1)]
    try:
        claim = perform(agent)
    finally:
        may_go.set()
    assert all(other.result(30) for other in others)
    assert scene.run(claim).status == "done", scene.dispatch(claim).last_error
    assert said == [*(text for n in range(20) for text in ("!", "?", f"{n}", "closed")), "at last"]


def test_a_delta_of_an_agent_that_was_stopped_raises_why(perform: Perform) -> None:
    raised: list[str] = []

    async def agent(ctx: AsyncContext) -> None:
        ctx._context.stop_with(LeaseLost("gone"))
        with pytest.raises(LeaseLost):
            ctx.delta("unheard")
        with pytest.raises(LeaseLost):
            await ctx.adelta("unheard")
        raised.append("both")

    perform(agent)
    assert raised == ["both"]


def test_a_hundred_async_runs_wait_at_once_with_eight_threads_for_their_verbs(
    register: Register, keeper: LeaseKeeper
) -> None:
    inside: set[str] = set()
    gate: list[bool] = []

    async def agent(ctx: AsyncContext) -> str:
        await ctx.asay("in")
        inside.add(ctx.run_id)
        while not gate:
            await asyncio.sleep(0.01)
        return "out"

    name = register(agent)
    for _ in range(100):
        scene.post(agent=name)
    claims = [scene.taken(agents=(name,)) for _ in range(100)]
    ended: list[int] = []
    seats = runner.Places("seat", lambda: 100, on_worn=lambda reason: None)
    for claim in claims:
        runner.begin(claim, keeper=keeper, places=seats, on_end=lambda: ended.append(1))
    until(lambda: len(inside) == 100, "all of them wait", seconds=60)
    assert sum(thread.name == "mailbox-verb" for thread in threading.enumerate()) <= 8
    gate.append(True)
    until(lambda: len(ended) == 100, "all of them end", seconds=60)
    assert set(Run.objects.values_list("status", "final_output")) == {("done", "out")}


def test_the_connections_of_verbs_are_closed_when_nothing_is_to_do(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailbox_app.execution.pool._IDLE_SECONDS", 0.2)
    backends: set[int] = set()

    def backend(self: Context) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            backends.add(cursor.fetchone()[0])
        return 0

    monkeypatch.setattr(Context, "backend", backend, raising=False)

    async def agent(ctx: AsyncContext) -> None:
        await asyncio.gather(*(ctx.abackend() for _ in range(4)))

    perform(agent)
    assert backends
    until(lambda: not _alive(backends), "their connections are closed")


def _alive(backends: set[int]) -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", [list(backends)])
        return {row[0] for row in cursor.fetchall()}


def _ask_to_cancel(dispatch_id: str) -> None:
    def ask() -> None:
        from mailbox_app.models import Dispatch

        row = Dispatch.objects.get(pk=dispatch_id)
        with Thread.objects.fence(row.thread_id) as thread:
            row = Dispatch.objects.get(pk=dispatch_id)
            thread.change(row, cancel_requested_at=thread.locked_at)

    start(ask).result(20)


def _lose(ctx: AsyncContext) -> None:
    """The lease runs out, and the sweep is quicker than the keeper."""
    claim = ctx._context._claim

    def lose() -> None:
        until(lambda: scene.expire_lease(claim) is None and recover.reclaim(), "the sweep takes it back")

    start(lose).result(20)
