"""`ctx.emit`: what an agent emits waits for nobody, is recorded with what it does next, and is lost with its lease."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from mailbox_app import telemetry
from mailbox_app.errors import InvalidInput, LeaseLost
from mailbox_app.execution import AsyncContext, Context, emitting, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Event, JournalEntry, Thread
from mailbox_app.operations import checkpoint, recover, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)

Again = Callable[..., Claim]


def seen(of: Claim, kind: str = "Seen") -> list[Any]:
    """What was recorded of the agent's own, in order."""
    found = Event.objects.filter(run_id=of.run_id, kind=kind).order_by("cursor")
    return list(found.values_list("payload", flat=True))


def transactions(of: Claim) -> dict[str, int]:
    """Which transaction wrote each of the run's events, by its number; a later one of a kind wins."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT kind, xmin::text::bigint FROM mailbox_event WHERE run_id = %s ORDER BY cursor", [of.run_id]
        )
        return dict(cursor.fetchall())


class Pausing:
    """An agent that emits, tells that it has, and does nothing until it is let go."""

    def __init__(self, *payloads: Any) -> None:
        self.payloads, self.has_emitted, self.may_go = payloads, threading.Event(), threading.Event()

    def __call__(self, ctx: Context) -> None:
        for payload in self.payloads:
            ctx.emit("Seen", payload)
        self.has_emitted.set()
        assert self.may_go.wait(30)


@pytest.fixture
def paused(perform: Perform) -> Iterator[Callable[..., tuple[Pausing, Any]]]:
    begun: list[tuple[Pausing, Any]] = []

    def begin(*payloads: Any) -> tuple[Pausing, Any]:
        agent = Pausing(*payloads)
        begun.append((agent, start(lambda: perform(agent))))
        assert agent.has_emitted.wait(30)
        return begun[-1]

    yield begin
    for agent, running in begun:
        agent.may_go.set()
        running.result(30)


def executing(agent: Callable[[Context], Any], register: Register, keeper: LeaseKeeper) -> tuple[Claim, Any]:
    """Execute a run of this agent in a thread; returns its claim, which a test may hold against it, and its end."""
    name = register(agent, name="held")
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    return claim, start(lambda: runner.run(claim, keeper=keeper, own_process=False))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder comes no sooner than a minute after an event, however slow the agent is."""
    monkeypatch.setattr(emitting, "_SOON_SECONDS", 60.0)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        (lambda ctx: ctx.say("hi"), "MessageCommitted"),
        (lambda ctx: ctx.spawn("go", agent="echo"), "ChildRunSpawned"),
        (lambda ctx: None, "RunFinished"),
        (lambda ctx: ctx.suspend("manual_pause"), "RunSuspended"),
        (lambda ctx: ctx.ask("may I?"), "ToolPermissionRequested"),
    ],
    ids=["say", "spawn", "end", "suspend", "ask"],
)
def test_what_was_emitted_is_recorded_before_the_next_verb_s_own_and_by_its_transaction(
    verb: Callable[[Context], Any], kind: str, perform: Perform
) -> None:
    def agent(ctx: Context) -> None:
        assert ctx.emit("Seen", 1) is None  # type: ignore[func-returns-value]
        ctx.emit("Seen", 2)
        verb(ctx)

    claim = perform(agent)
    kinds = scene.kinds(claim)
    assert kinds[kinds.index("Seen") :][:3] == ["Seen", "Seen", kind]
    assert seen(claim) == [1, 2]
    wrote = transactions(claim)
    assert wrote["Seen"] == wrote[kind]


def test_a_step_s_record_is_not_there_without_what_was_emitted_before_it(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", "before")
        ctx.step("look-up", lambda: None)
        assert seen(claim_of(ctx)) == ["before"]

    claim = perform(agent)
    assert scene.run(claim).status == "done"
    records = JournalEntry.objects.filter(run_id=claim.run_id).order_by("pk").values_list("verb", flat=True)
    assert list(records) == ["emit", "step"]


def claim_of(ctx: Context) -> Claim:
    return ctx._claim


def test_what_was_emitted_before_a_failure_stays_and_is_not_emitted_again(perform: Perform, again: Again) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", "always")
        if ctx.attempt == 1:
            raise TimeoutError
        ctx.emit("Seen", "later")

    claim = perform(agent)
    assert scene.kinds(claim)[-2:] == ["Seen", "RunRescheduled"]
    scene.make_available(claim)
    tick.promote()
    again()
    assert seen(claim) == ["always", "later"]


def test_a_dead_letter_keeps_what_was_emitted(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", 1)
        raise ValueError

    assert scene.kinds(perform(agent, max_attempts=1))[-2:] == ["Seen", "RunErrored"]


def test_what_was_emitted_before_a_cancel_is_recorded_before_it(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", 1)
        scene.ask_to_cancel(claim_of(ctx))
        ctx.checkpoint()

    assert scene.kinds(perform(agent))[-2:] == ["Seen", "RunCancelled"]


def test_what_was_emitted_past_the_time_limit_s_warning_is_recorded_before_the_retry(perform: Perform) -> None:
    over = threading.Event()

    def agent(ctx: Context) -> None:
        ctx.emit("Seen", 1)
        over.wait(30)

    running = start(lambda: perform(agent, timeout_seconds=1.0))
    until(lambda: Event.objects.filter(kind="RunRescheduled").exists(), "the time limit")
    over.set()
    claim = running.result(30)
    assert scene.kinds(claim)[-2:] == ["Seen", "RunRescheduled"]


@pytest.mark.usefixtures("late")
def test_what_a_worker_that_lost_its_lease_had_emitted_is_lost_and_the_next_attempt_emits_it(
    perform: Perform, again: Again, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_seconds": 60.0}
    raised: list[type[BaseException]] = []

    def agent(ctx: Context) -> None:
        ctx.emit("Begun")
        ctx.checkpoint()
        ctx.emit("Seen", ctx.attempt)
        if ctx.attempt > 1:
            return
        scene.expire_lease(claim_of(ctx))
        until(recover.reclaim, "the sweep")
        try:
            ctx.checkpoint()
        except BaseException as error:
            raised.append(type(error))
            raise

    claim = perform(agent)
    assert raised == [LeaseLost]
    assert seen(claim) == []
    again()
    assert seen(claim) == [2]


def test_after_the_lease_was_lost_nothing_is_emitted(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        scene.expire_lease(claim_of(ctx))
        recover.reclaim()
        for emit in (lambda: ctx.emit("Seen", 1), ctx.checkpoint, lambda: ctx.emit("Seen", 2)):
            with contextlib.suppress(LeaseLost):
                emit()

    assert seen(perform(agent)) == []


def test_an_agent_that_goes_silent_has_what_it_emitted_recorded_all_the_same(
    paused: Callable[..., tuple[Pausing, Any]],
) -> None:
    agent, running = paused(1, 2)
    until(lambda: Event.objects.filter(kind="Seen").count() == 2, "the recorder")
    agent.may_go.set()
    claim = running.result(30)
    assert seen(claim) == [1, 2]
    wrote = transactions(claim)
    assert wrote["RunStarted"] < wrote["Seen"] < wrote["RunFinished"]


def test_no_emit_waits_for_who_holds_the_thread_and_no_other_run_s_events_do(
    paused: Callable[..., tuple[Pausing, Any]], register: Register, keeper: LeaseKeeper
) -> None:
    held, has_emitted, may_go = threading.Event(), threading.Event(), threading.Event()

    def agent(ctx: Context) -> None:
        assert held.wait(30)
        ctx.emit("Held", 1)
        has_emitted.set()
        assert may_go.wait(30)

    claim, running = executing(agent, register, keeper)
    with transaction.atomic():
        Thread.objects.lock([claim.thread_id])
        held.set()
        assert has_emitted.wait(30), "emit waits for nobody"
        paused("free")
        until(lambda: Event.objects.filter(kind="Seen").exists(), "the other run's event")
        assert not Event.objects.filter(kind="Held").exists()
    until(lambda: Event.objects.filter(kind="Held").exists(), "its own, once the thread is free")
    may_go.set()
    running.result(30)
    assert seen(claim, "Held") == [1]


def test_a_run_s_events_are_recorded_by_few_transactions(perform: Perform, settings: Any) -> None:
    """No more than one for each `emit_seconds`, and one at the end."""
    settings.MAILBOX = {**settings.MAILBOX, "emit_seconds": 0.2}
    took: list[float] = []

    def agent(ctx: Context) -> None:
        began = time.monotonic()
        for number in range(50):
            ctx.emit("Seen", number)
            time.sleep(0.01)  # an agent at work
        took.append(time.monotonic() - began)

    claim = perform(agent)
    assert seen(claim) == list(range(50))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM mailbox_event WHERE kind = 'Seen'")
        (count,) = cursor.fetchone()
    assert 2 <= count <= took[0] / 0.2 + 2


def test_the_recorder_does_not_come_sooner_because_a_verb_has_just_been_there(
    paused: Callable[..., tuple[Pausing, Any]],
    register: Register,
    keeper: LeaseKeeper,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_seconds": 60.0}
    monkeypatch.setattr(emitting, "_SOON_SECONDS", 1.0)
    has_emitted, may_go = threading.Event(), threading.Event()

    def agent(ctx: Context) -> None:
        ctx.emit("First", 1)
        ctx.step("look-up", lambda: None)
        ctx.emit("First", 2)
        has_emitted.set()
        assert may_go.wait(30)

    claim, running = executing(agent, register, keeper)
    assert has_emitted.wait(30)
    paused("later")
    until(lambda: Event.objects.filter(kind="Seen").exists(), "an event of a run that came later")
    assert seen(claim, "First") == [1]
    may_go.set()
    running.result(30)
    assert seen(claim, "First") == [1, 2]


def test_a_full_batch_is_recorded_by_the_agent_itself(perform: Perform, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_batch": 3, "emit_seconds": 60.0}
    found: list[Any] = []

    def agent(ctx: Context) -> None:
        for number in range(7):
            ctx.emit("Seen", number)
            found.append(len(seen(claim_of(ctx))))

    claim = perform(agent)
    # The recorder may have come first; who emits never waits for it, and never leaves more than two behind.
    assert all(number + 1 - there <= 2 for number, there in enumerate(found))
    assert seen(claim) == list(range(7))


@pytest.mark.usefixtures("late")
def test_much_to_record_is_a_full_batch_too(perform: Perform, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_batch": 10_000, "emit_seconds": 60.0, "max_metadata_bytes": 600_000}
    left: list[bool] = []

    def agent(ctx: Context) -> None:
        for number in range(2):
            ctx.emit("Seen", [number, "x" * 550_000])
        left.append(claim_of(ctx).emitted.is_empty)

    perform(agent)
    assert left == [True]


@pytest.mark.usefixtures("late")
def test_a_batch_whose_commit_was_not_answered_is_recorded_once(
    perform: Perform, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the verb that is tried again, nor by whatever comes first then."""
    settings.MAILBOX = {**settings.MAILBOX, "emit_seconds": 60.0}

    def agent(ctx: Context) -> None:
        ctx.emit("Seen", 1)
        ctx.emit("Seen", 2, key="two")
        with monkeypatch.context() as patch:
            patch.setattr(connection, "run_and_clear_commit_hooks", forgetful)
            checkpoint.reach(claim_of(ctx))
        assert not claim_of(ctx).emitted.is_empty, "nobody has told that it was committed"
        ctx.emit("Seen", 3)
        ctx.checkpoint()
        assert claim_of(ctx).emitted.is_empty

    def forgetful() -> None:
        connection.run_on_commit = []

    claim = perform(agent)
    assert (scene.run(claim).status, seen(claim)) == ("done", [1, 2, 3])


def test_the_recorder_outlives_its_connection(
    paused: Callable[..., tuple[Pausing, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, broken = checkpoint.flush_some, []

    def breaks_once(claims: Any) -> Any:
        if not broken:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                broken.append(cursor.fetchone()[0])
            assert start(end, broken[0]).result(10)
        return flush(claims)

    def end(pid: int) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            return bool(cursor.fetchone()[0])

    monkeypatch.setattr(checkpoint, "flush_some", breaks_once)
    paused(1)
    until(lambda: Event.objects.filter(kind="Seen").exists(), "the recorder's second try")
    assert broken


@pytest.mark.usefixtures("late")
def test_a_run_that_is_over_leaves_nothing_to_the_recorder(perform: Perform, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "emit_seconds": 60.0}
    claims: list[Claim] = []

    def agent(ctx: Context) -> None:
        claims.append(claim_of(ctx))
        ctx.emit("Begun")
        ctx.checkpoint()
        ctx.emit("Seen", 1)
        scene.expire_lease(claim_of(ctx))
        until(recover.reclaim, "the sweep")

    claim = perform(agent)
    assert (claims[0].emitted.is_empty, seen(claim)) == (True, [])


def test_each_turn_records_its_own(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", ctx.turn)
        if ctx.turn == 1:
            submit.messages(scope=scene.SCOPE, thread_id=ctx.thread_id, messages=["more"], boundary="on_natural_end")

    claim = perform(agent)
    assert seen(claim) == [1, 2]
    turns = JournalEntry.objects.filter(run_id=claim.run_id, verb="emit").order_by("pk").values_list("turn", "n")
    assert list(turns) == [(1, 1), (2, 1)]
    kinds = scene.kinds(claim)
    assert kinds.index("Seen") < kinds.index("TurnStarted")


def test_an_event_of_a_later_turn_waits_no_longer_than_one_of_the_first(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitting, "_SOON_SECONDS", 1.0)  # the first turn has ended before it is looked for

    def agent(ctx: Context) -> None:
        ctx.emit("Seen", ctx.turn)
        if ctx.turn == 1:
            submit.messages(scope=scene.SCOPE, thread_id=ctx.thread_id, messages=["more"], boundary="on_natural_end")
        else:
            until(lambda: seen(claim_of(ctx)) == [1, 2], "the event of an agent that is silent then")

    assert scene.run(perform(agent)).status == "done"


def test_a_thread_that_a_turn_has_left_behind_emits_nothing_in_the_next(perform: Perform) -> None:
    left: list[Context] = []

    def agent(ctx: Context) -> None:
        left.append(ctx)
        if ctx.turn == 1:
            submit.messages(scope=scene.SCOPE, thread_id=ctx.thread_id, messages=["more"], boundary="on_natural_end")
            ctx.emit("Seen", 1)
            return
        with pytest.raises(LeaseLost):
            left[0].emit("Seen", 2)

    assert seen(perform(agent)) == [1]


@pytest.mark.usefixtures("late")
def test_an_async_agent_s_emits_wait_for_nothing_either(perform: Perform) -> None:
    async def agent(ctx: AsyncContext) -> None:
        assert await ctx.aemit("Seen", 1) is None
        await ctx.aemit("Seen", 2)
        await ctx.asay("hi")

    claim = perform(agent)
    assert seen(claim) == [1, 2]
    wrote = transactions(claim)
    assert wrote["Seen"] == wrote["MessageCommitted"]


def test_what_is_refused_is_refused_at_once_and_takes_nothing_else_along(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.emit("Seen", 1)
        with pytest.raises(InvalidInput):
            ctx.emit("Seen", "\x00")
        ctx.emit("Seen", 2)

    assert seen(perform(agent)) == [1, 2]


def test_a_run_whose_events_cannot_be_recorded_holds_up_no_other_s(
    register: Register, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    emitted: list[str] = []
    tried: list[int] = []
    flush = checkpoint.flush_some

    def noted(claims: Any) -> Any:
        tried.append(len(claims))
        if len(tried) > 1:
            return flush(claims)
        until(lambda: len(emitted) == 3, "all of them have emitted")
        return claims  # as if somebody held their threads

    def agent(ctx: Context) -> None:
        ctx.emit("Refused" if ctx.messages[0].text == "refused" else "Seen", 1)
        emitted.append(ctx.run_id)
        until(lambda: Event.objects.filter(kind="Seen").count() == 2, "the other runs' events")
        until(lambda: refused, "what is told of the one that failed")

    monkeypatch.setattr(emitting, "_SOON_SECONDS", 0.0)
    monkeypatch.setattr(emitting, "_HELD_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "flush_some", noted)
    name = register(agent, name="held")
    for text in ("seen", "refused", "seen"):
        scene.post(text, agent=name)
    claims = [scene.taken(agents=(name,)) for _ in range(3)]
    running = [start(lambda claim=claim: runner.run(claim, keeper=keeper, own_process=False)) for claim in claims]
    met = [error for one in running if (error := one.exception(30)) is not None]
    assert [type(error) for error in met] == [IntegrityError], "its own end met it too"
    assert tried[1] == 3, "they came together"
    # And nothing of what it emitted.
    assert refused == ['IntegrityError: new row for relation "mailbox_event" violates check constraint "refused"']


@pytest.fixture
def refused() -> Iterator[list[str]]:
    """Events of the kind Refused are not accepted; returns the errors the recorder tells."""
    told: list[str] = []

    def hear(name: str, fields: dict[str, Any], **_: Any) -> None:
        if name == "emit.failed":
            told.append(f"{fields['error']}: {fields['message']}")

    table, rule = "ALTER TABLE mailbox_event", "CONSTRAINT refused"
    with connection.cursor() as cursor:
        cursor.execute(f"{table} ADD {rule} CHECK (kind <> 'Refused')")
    telemetry.observed.connect(hear, weak=False)
    yield told
    telemetry.observed.disconnect(hear)
    with connection.cursor() as cursor:
        cursor.execute(f"{table} DROP {rule}")
