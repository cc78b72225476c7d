"""A turn that is run again finds what it had completed: nothing of it happens twice."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mailbox_app.execution import Context, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Event, JournalEntry, Message
from mailbox_app.operations import recover, tick
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene

pytestmark = pytest.mark.django_db

Again = Callable[..., Claim]


class Killed(KeyboardInterrupt):
    """Ends the worker where it stands, as kill -9 does: nothing of the runner's runs after it but `finally`."""


def die(register: Register, keeper: LeaseKeeper, function: Callable[[Context], Any], **options: Any) -> Claim:
    """Run the agent in a worker that is killed in the middle; the sweep has taken its lease back."""
    name = register(function, **options)
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    with pytest.raises(Killed):
        runner.run(claim, keeper=keeper, own_process=False)
    assert scene.dispatch(claim).status == "claimed"
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    return claim


def test_steps_completed_before_a_crash_are_not_called_again(
    register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    calls: Counter[str] = Counter()
    seen: list[Any] = []

    def count(name: str) -> dict[str, Any]:
        calls[name] += 1
        return {"name": name, "call": calls[name]}

    def agent(ctx: Context) -> str:
        for name in ("one", "two", "three"):
            if name == "three" and ctx.attempt == 1:
                raise Killed
            seen.append(ctx.step(name, count, name))
        return "done"

    claim = die(register, keeper, agent)
    assert JournalEntry.objects.filter(run_id=claim.run_id).count() == 2
    assert again().attempt == 2
    assert calls == {"one": 1, "two": 1, "three": 1}
    assert seen[:2] == seen[2:4]
    assert (scene.run(claim).status, scene.run(claim).final_output) == ("done", "done")
    assert (scene.dispatch(claim).lost_count, scene.dispatch(claim).attempt_count) == (1, 0)
    assert scene.kinds(claim) == [
        *("ThreadCreated", "RunQueued", "RunStarted", "RunRescheduled"),
        *("RunResumed", "MessageCommitted", "RunFinished"),
    ]


def test_a_step_that_was_killed_before_its_record_is_called_again(
    register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    calls: list[int] = []

    def agent(ctx: Context) -> int:
        def work() -> int:
            calls.append(ctx.attempt)
            if ctx.attempt == 1:
                raise Killed
            return 7

        return ctx.step("work", work)

    claim = die(register, keeper, agent)
    again()
    assert calls == [1, 2]
    assert scene.run(claim).final_output == 7


RESULTS = [
    {"zebra": 1, "a": 2, "mm": {"y": 1, "b": 2}},
    (1, 2),
    1e20,
    12345678901234567890,
    1.0,
    0.1,
    1e-7,
    -0.0,
    None,
    "",
    [],
    {},
    True,
    "naïve 🎈 \ufffe",
    {"": {"": []}},
]


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_a_result_is_the_same_the_first_time_and_when_it_is_replayed(
    result: Any, register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    seen: list[str] = []

    def agent(ctx: Context) -> None:
        seen.append(repr(ctx.step("work", lambda: result)))
        if ctx.attempt == 1:
            raise Killed

    die(register, keeper, agent)
    again()
    assert seen[0] == seen[1]


def test_messages_and_events_said_before_a_crash_exist_once(
    register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    answers: list[Any] = []

    def agent(ctx: Context) -> None:
        answers.append(ctx.say("working"))
        ctx.emit("Half", {"done": 50})
        ctx.emit("Half", {"done": 50}, key="half")
        ctx.checkpoint()
        if ctx.attempt == 1:
            raise Killed
        ctx.say("ready")

    claim = die(register, keeper, agent)
    again()
    assert answers[0] == answers[1]
    assert [content for _, _, content in scene.log(claim)] == ["hello there", "working", "ready"]
    assert Event.objects.filter(kind="Half").count() == 2


def test_a_keyed_event_is_recorded_once_in_its_thread(perform: Perform, again: Again) -> None:
    claim = perform(lambda ctx: ctx.emit("Priced", {"cents": 5}, key="price"))
    scene.post(agent="probe", thread_id=claim.thread_id)
    again()
    assert Event.objects.filter(kind="Priced", key="price").count() == 1
    told = JournalEntry.objects.filter(verb="emit").values_list("result", flat=True)
    assert list(told) == [{"cursor": Event.objects.get(kind="Priced").cursor}] * 2


def test_changed_arguments_are_a_replay_mismatch_and_permanent(
    register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    def agent(ctx: Context) -> None:
        ctx.step("charge", lambda cents: cents, 500 if ctx.attempt == 1 else 900)
        if ctx.attempt == 1:
            raise Killed

    claim = die(register, keeper, agent)
    again()
    error = scene.run(claim).error
    assert error is not None
    assert (scene.dispatch(claim).status, error["code"]) == ("dead_letter", "replay_mismatch")
    assert "use 1 of step 'charge'" in error["message"]


def test_each_use_of_a_name_has_a_record_of_its_own(register: Register, keeper: LeaseKeeper, again: Again) -> None:
    drawn = iter(range(10))

    def agent(ctx: Context) -> list[int]:
        numbers = [ctx.step("draw", lambda: next(drawn)) for _ in range(3)]
        numbers.append(ctx.step("draw", lambda: next(drawn), key="extra"))
        if ctx.attempt == 1:
            raise Killed
        return numbers

    claim = die(register, keeper, agent)
    again()
    assert scene.run(claim).final_output == [0, 1, 2, 3]
    rows = JournalEntry.objects.order_by("id").values_list("verb", "name", "key", "n", "result")
    assert list(rows) == [
        ("step", "draw", key, n, r) for key, n, r in (("", 1, 0), ("", 2, 1), ("", 3, 2), ("extra", 1, 3))
    ]


def test_a_step_an_agent_tried_twice_is_not_tried_again_by_its_replay(
    register: Register, keeper: LeaseKeeper, again: Again
) -> None:
    calls: list[str] = []

    def charge() -> str:
        calls.append("charge")
        if len(calls) == 1:
            raise ConnectionError("the first time it fails")
        return "charged"

    def agent(ctx: Context) -> str:
        try:
            charged = ctx.step("charge", charge)
        except ConnectionError:
            charged = ctx.step("charge", charge)
        if ctx.attempt == 1:
            raise Killed
        return charged

    claim = die(register, keeper, agent)
    again()
    assert calls == ["charge", "charge"]
    assert scene.run(claim).final_output == "charged"


def test_a_retried_attempt_replays_its_journal_and_begins_with_the_turn_s_state(perform: Perform, again: Again) -> None:
    calls: list[int] = []
    states: list[Any] = []

    def agent(ctx: Context) -> str:
        states.append(dict(ctx.state))
        ctx.state["touched"] = True
        ctx.step("once", calls.append, ctx.turn)
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return "done"

    claim = perform(agent)
    assert scene.dispatch(claim).last_error == "ConnectionError: ConnectionError: away"
    scene.make_available(claim)
    assert tick.promote() == 1
    assert again().run_id == claim.run_id
    assert (calls, states) == ([1], [{}, {}])
    assert (scene.run(claim).final_output, scene.run(claim).state) == ("done", {"touched": True})


def test_a_replay_gets_the_same_messages_and_history(register: Register, keeper: LeaseKeeper, again: Again) -> None:
    seen: list[Any] = []

    def agent(ctx: Context) -> str:
        seen.append(([m.id for m in ctx.messages], [m.text for m in ctx.history()]))
        ctx.say("half way")
        if ctx.attempt == 1 and ctx.messages[0].text == "second":
            raise Killed
        return f"answer to {ctx.messages[0].text}"

    register(agent)
    thread_id = scene.post("first", agent="probe").thread_id
    again()
    scene.post("second", agent="probe", thread_id=thread_id)
    claim = scene.taken(agents=("probe",))
    with pytest.raises(Killed):
        runner.run(claim, keeper=keeper, own_process=False)
    Message.objects.create(scope="acme", thread_id=thread_id, role="user", content="later", position=999, held=True)
    scene.expire_lease(claim)
    recover.reclaim()
    again()
    assert seen[1] == seen[2]
    assert seen[1][1] == ["first", "half way", "answer to first"]
    assert claim.first_seq == 4
