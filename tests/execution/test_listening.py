"""A running agent hears of what was said to it, of the answer it waits for and of its end: by a nudge, or by a renewal.

Where the lease is renewed in an hour, the nudge alone can have told; where there is no Redis, the renewal alone.
"""

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import redis
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailbox_app import channel, hints
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.execution import AsyncContext, Context, runner
from mailbox_app.execution.attention import Attention
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Message, Run, Ticket
from mailbox_app.operations import cancel, claim, decide, interrupt, pending, post, settle, submit
from mailbox_app.operations.ownership import Claim
from mailbox_app.testing import run_until_idle
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)


class Counting:
    """The real renewal, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tokens: Any) -> claim.Renewed:
        self.calls += 1
        return claim.renew(tokens=tokens)


renewals = Counting()


def listeners() -> int:
    return int(redis.Redis.from_url(conf.redis_url).pubsub_numsub("mailbox:nudge")[0][1])


@pytest.fixture(scope="module")
def listening() -> Iterator[LeaseKeeper]:
    """A keeper that hears nudges, as that of a worker process."""
    before, keeper, is_over = listeners(), LeaseKeeper(renewals), threading.Event()
    keeper.listen(lambda: itertools.takewhile(lambda _: not is_over.is_set(), hints.nudges()))
    until(lambda: listeners() > before, "it listens")
    yield keeper
    is_over.set()
    channel.publish("nudge", {name: str(uuid.uuid4()) for name in hints.Aim._fields})
    until(lambda: listeners() == before, "it listens no more")


@pytest.fixture
def nudged(listening: LeaseKeeper, settings: Any) -> LeaseKeeper:
    """Only a nudge can tell: the lease is renewed in half an hour."""
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 3600, "renewal_seconds": 1800}
    return listening


@pytest.fixture
def renewing(settings: Any) -> LeaseKeeper:
    """Only a renewal can tell: there is no Redis."""
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 60, "renewal_seconds": 0.1, "redis_url": ""}
    return LeaseKeeper(lambda tokens: claim.renew(tokens=tokens))


def sleeping(heard: list[Any]) -> Callable[[Context], str]:
    """An agent that does nothing but sleep, and reads what wakes it, until it is told to end."""

    def agent(ctx: Context) -> str:
        heard.append("asleep")
        while True:
            is_woken = ctx.sleep(3600)
            heard.append([is_woken, *(message.text for message in ctx.checkpoint())])
            if "end" in heard[-1]:
                return "woken"

    return agent


def sleeping_async(heard: list[Any]) -> Any:
    async def agent(ctx: AsyncContext) -> str:
        heard.append("asleep")
        while True:
            is_woken = await ctx.asleep(3600)
            heard.append([is_woken, *(message.text for message in await ctx.acheckpoint())])
            if "end" in heard[-1]:
                return "woken"

    return agent


BOTH = pytest.mark.parametrize("agent", [sleeping, sleeping_async], ids=["threads", "async"])


def running(register: Register, keeper: LeaseKeeper, agent: Any) -> tuple[Claim, "Future[Any]"]:
    name = register(agent)
    scene.post(agent=name)
    one = scene.taken(agents=(name,))
    return one, start(lambda: runner.run(one, keeper=keeper, own_process=False))


def steer(of: Claim, text: str) -> None:
    submit.messages(scope=scene.SCOPE, thread_id=of.thread_id, messages=[text], boundary="next_step")


DOORS: dict[str, Callable[[Claim], Any]] = {
    "submit": lambda of: submit.run(
        scope=scene.SCOPE, agent="probe", thread_id=of.thread_id, messages=["end"], if_active="steer"
    ),
    "messages": lambda of: post.to_thread(
        scope=scene.SCOPE, thread_id=of.thread_id, messages=["end"], if_active="steer"
    ),
    "inputs": lambda of: post.to_run(scope=scene.SCOPE, run_id=of.run_id, messages=["end"]),
    "delivery": lambda of: post.to_thread(
        scope=scene.SCOPE,
        thread_id=of.thread_id,
        messages=["end"],
        delivery={"boundary": "next_step", "target_run_id": str(of.run_id)},
    ),
}


@BOTH
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_what_is_said_to_a_run_wakes_its_sleeping_agent_at_once(
    door: Callable[[Claim], Any], agent: Any, register: Register, nudged: LeaseKeeper
) -> None:
    heard: list[Any] = []
    one, run = running(register, nudged, agent(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    door(one)
    run.result(20)
    assert (heard, scene.run(one).final_output) == (["asleep", [True, "end"]], "woken")


@BOTH
def test_without_redis_the_next_renewal_wakes_it(agent: Any, register: Register, renewing: LeaseKeeper) -> None:
    heard: list[Any] = []
    one, run = running(register, renewing, agent(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    steer(one, "end")
    run.result(20)
    assert (heard, scene.run(one).final_output) == (["asleep", [True, "end"]], "woken")


STOPS: dict[str, Callable[[Claim], Any]] = {
    "cancel": lambda of: cancel.run(scope=scene.SCOPE, run_id=of.run_id),
    "interrupt": lambda of: interrupt.thread(scope=scene.SCOPE, thread_id=of.thread_id),
}


@BOTH
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
@pytest.mark.parametrize("keeper", ["nudged", "renewing"])
def test_a_request_to_stop_ends_the_sleep(
    keeper: str, stop: Callable[[Claim], Any], agent: Any, register: Register, request: pytest.FixtureRequest
) -> None:
    heard: list[Any] = []
    one, run = running(register, request.getfixturevalue(keeper), agent(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    stop(one)
    run.result(20)
    assert (heard, scene.run(one).termination) == (["asleep"], {"type": "cancelled"})


def test_an_agent_asks_whether_it_was_cancelled_without_a_verb(register: Register, nudged: LeaseKeeper) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> None:
        with CaptureQueriesContext(connection) as asked:
            seen.append((ctx.is_cancelled, ctx.has_input))
            until(lambda: ctx.has_input, "somebody has said something")
            seen.append((ctx.is_cancelled, ctx.has_input))
            until(lambda: ctx.is_cancelled, "somebody has cancelled it")
            seen.append((ctx.is_cancelled, ctx.has_input))
        seen.append(len(asked))

    one, run = running(register, nudged, agent)
    until(lambda: seen, "it runs")
    steer(one, "hello?")
    until(lambda: len(seen) == 2, "it was told")
    cancel.run(scope=scene.SCOPE, run_id=one.run_id)
    run.result(20)
    assert seen == [(False, False), (False, True), (True, True), 0]
    assert scene.run(one).termination == {"type": "cancelled"}, "whatever it returns"


@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "async"])
def test_an_answer_ends_the_live_wait_for_it_at_once(
    is_async: bool, register: Register, nudged: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailbox_app.execution.asking.LOOK_SECONDS", 3600.0)
    monkeypatch.setattr("mailbox_app.execution.async_context.LOOK_SECONDS", 3600.0)

    def agent(ctx: Context) -> Any:
        return ctx.wait_for_decision("refund", seconds=600).payload

    async def agent_async(ctx: AsyncContext) -> Any:
        return (await ctx.await_for_decision("refund", seconds=600)).payload

    one, run = running(register, nudged, agent_async if is_async else agent)
    until(lambda: Ticket.objects.open().exists(), "the question is open")
    asked = Ticket.objects.get()
    decide.ticket(scope=scene.SCOPE, run_id=one.run_id, ticket_id=asked.ticket_id, action="resume", payload="yes")
    run.result(20)
    assert (scene.run(one).final_output, Dispatch.objects.of_run(one.run_id).count()) == ("yes", 1)


def test_forged_stale_and_doubled_nudges_wake_nobody(register: Register, nudged: LeaseKeeper) -> None:
    heard: list[Any] = []
    one, run = running(register, nudged, sleeping(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    before = renewals.calls
    whole = hints.Aim(one.thread_id, one.run_id, one.dispatch_id)
    for part in hints.Aim._fields:
        channel.publish("nudge", {k: str(v) for k, v in whole._replace(**{part: uuid.uuid4()})._asdict().items()})
    for rubbish in ({}, {"dispatch_id": str(one.dispatch_id)}, {**whole._asdict(), "run_id": None}, ["x"]):
        channel.publish("nudge", {k: str(v) for k, v in rubbish.items()} if isinstance(rubbish, dict) else rubbish)  # type: ignore[arg-type]
    hints.nudge(scene.dispatch(one))
    until(lambda: renewals.calls == before + 1, "the row was asked for the one that names it whole")
    steer(one, "hello?")
    until(lambda: len(heard) > 1, "it was woken")
    for _ in range(5):
        hints.nudge(scene.dispatch(one))
    steer(one, "end")
    run.result(20)
    said = [entry[1:] for entry in heard[1:] if entry[1:]]
    assert (heard[0], heard[1], said) == ("asleep", [True, "hello?"], [["hello?"], ["end"]])
    # What was read may not have been all: one look more. The doubled nudges were worth none.
    assert len(heard) <= 5


def test_messages_that_are_read_one_by_one_are_all_read(register: Register, nudged: LeaseKeeper) -> None:
    heard: list[Any] = []
    one, run = running(register, nudged, sleeping(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    post.to_thread(
        scope=scene.SCOPE,
        thread_id=one.thread_id,
        messages=["a", "b", "end"],
        delivery={"boundary": "next_step", "granularity": "one"},
    )
    run.result(20)
    assert heard == ["asleep", [True, "a"], [True, "b"], [True, "end"]]


def test_what_comes_to_be_readable_wakes_it_too(register: Register, nudged: LeaseKeeper) -> None:
    heard: list[Any] = []
    one, run = running(register, nudged, sleeping(heard))
    until(lambda: heard == ["asleep"], "it sleeps")
    in_front = submit.messages(
        scope=scene.SCOPE, thread_id=one.thread_id, messages=["later"], boundary="on_natural_end"
    )
    steer(one, "end")
    until(lambda: heard == ["asleep", [True]], "it has looked, and may not read past what is in front")
    pending.retract(scope=scene.SCOPE, thread_id=one.thread_id, message_id=in_front.message_ids[0])
    run.result(20)
    assert heard == ["asleep", [True], [True, "end"]]


def test_an_agent_that_does_not_read_is_woken_once_for_each_thing_said(register: Register, nudged: LeaseKeeper) -> None:
    heard: list[bool] = []

    def agent(ctx: Context) -> None:
        while True:
            heard.append(ctx.sleep(3600))

    one, run = running(register, nudged, agent)
    steer(one, "a")
    until(lambda: heard == [True], "woken")
    steer(one, "b")
    until(lambda: heard == [True, True], "woken again")
    cancel.run(scope=scene.SCOPE, run_id=one.run_id)
    run.result(20)
    assert heard == [True, True]


def test_a_sleep_that_nothing_ends_lasts_its_time(perform: Perform) -> None:
    lasted: list[Any] = []

    def agent(ctx: Context) -> None:
        before = time.monotonic()
        lasted.append((ctx.sleep(0.2), time.monotonic() - before >= 0.2))

    perform(agent)
    assert lasted == [(False, True)]


def test_a_turn_that_is_run_again_has_its_messages_to_read(perform: Perform, again: Callable[..., Claim]) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> None:
        seen.append((ctx.has_input, [message.text for message in ctx.checkpoint()], ctx.has_input))
        if ctx.attempt == 1:
            steer(ctx._claim, "read once")
            seen.append([message.text for message in ctx.checkpoint()])
            ctx.retry_after(0)

    perform(agent)
    again()
    assert seen == [(False, [], False), ["read once"], (True, ["read once"], True)]


@pytest.mark.parametrize("seconds", [-1, "long", None, True, float("inf"), 400 * 86_400])
def test_a_sleep_takes_a_number_of_seconds(seconds: Any, perform: Perform) -> None:
    refused: list[InvalidInput] = []

    def agent(ctx: Context) -> None:
        try:
            ctx.sleep(seconds)
        except InvalidInput as error:
            refused.append(error)

    perform(agent)
    assert [error.errors[0]["field"] for error in refused] == ["seconds"]


@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "async"])
def test_a_test_does_not_wait_for_a_sleeping_agent(is_async: bool, register: Register) -> None:
    def agent(ctx: Context) -> bool:
        return ctx.sleep(3600)

    async def agent_async(ctx: AsyncContext) -> bool:
        return await ctx.asleep(3600)

    name = register(agent_async if is_async else agent)
    posted = scene.post(agent=name)
    assert run_until_idle(agents=[name]) == 1
    assert scene.run(posted).final_output is False


def test_a_coroutine_that_is_cancelled_in_its_sleep_leaves_nobody_to_be_woken() -> None:
    attention = Attention(has_input=False)

    async def main() -> None:
        async def sleeps() -> None:
            with attention.waiting_on_loop() as wait:
                await wait(3600)

        task = asyncio.create_task(sleeps())
        await asyncio.sleep(0)
        assert len(attention._waiting) == 1
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert attention._waiting == []


def test_what_happens_between_two_waits_ends_the_next_one() -> None:
    attention = Attention(has_input=False)
    with attention.waiting() as wait:
        attention.stir()
        waiting = threading.Thread(target=wait, args=(3600,))
        waiting.start()
        waiting.join(20)
        assert not waiting.is_alive()


def test_what_is_there_is_news_once() -> None:
    attention = Attention(has_input=False)
    attention.told(5)
    assert (attention.has_input, attention.take_news(), attention.take_news()) == (True, True, False)
    attention.told(5)
    assert (attention.has_input, attention.take_news()) == (True, False)
    attention.forget()
    attention.told(5)
    assert (attention.has_input, attention.take_news()) == (False, False), "it was looked at, and could not be read"
    attention.told(6)
    assert (attention.has_input, attention.take_news()) == (True, True)


def say(of: Claim, **delivery: Any) -> uuid.UUID:
    said = post.to_thread(scope=scene.SCOPE, thread_id=of.thread_id, messages=["x"], delivery=delivery)
    return said.message_ids[0]


def test_only_what_the_executing_run_may_read_at_its_next_step_is_worth_a_nudge() -> None:
    one = scene.posted_and_taken()
    with channel.silenced() as heard:
        say(one, boundary="on_natural_end")
        say(one, boundary="new_run")
        scene.post(thread_id=one.thread_id)
        assert [topic for topic, _ in heard if topic == "nudge"] == []
        say(one, boundary="next_step")
        say(one, boundary="next_step", target_run_id=str(one.run_id))
        settle.nack(one, code="flaky", message="again")
        say(one, boundary="next_step")
    aim = {"thread_id": str(one.thread_id), "run_id": str(one.run_id), "dispatch_id": str(one.dispatch_id)}
    assert [message for topic, message in heard if topic == "nudge"] == [aim, aim]


def test_a_renewal_says_for_which_claims_there_is_something_to_read() -> None:
    quiet, steered, later, held, targeted = (scene.posted_and_taken() for _ in range(5))
    say(steered, boundary="next_step")
    say(later, boundary="on_natural_end")
    scene.post(thread_id=later.thread_id)
    Message.objects.filter(pk=say(held, boundary="next_step")).update(held=True)
    message_id = say(targeted, boundary="next_step", target_run_id=str(targeted.run_id))
    everyone = (quiet, steered, later, held, targeted)
    found = claim.renew(tokens=[one.token for one in everyone])
    assert (set(found.lost), dict(found.cancelled)) == (set(), {})
    revisions = {one.token: scene.thread(one).pending_revision for one in (steered, targeted)}
    assert dict(found.readable) == revisions
    Message.objects.filter(pk=message_id).update(target_run_id=uuid.uuid4())
    Message.objects.filter(thread_id=steered.thread_id, state="pending").update(run=Run.objects.get(pk=steered.run_id))
    assert set(claim.renew(tokens=[one.token for one in everyone]).readable) == {steered.token}


def test_a_renewal_is_one_statement_whatever_there_is_to_read() -> None:
    claims = [scene.posted_and_taken() for _ in range(5)]
    for one in claims[:3]:
        say(one, boundary="next_step")
    with CaptureQueriesContext(connection) as asked:
        claim.renew(tokens=[one.token for one in claims])
    assert len(asked) == 1
