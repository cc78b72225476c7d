"""How an agent's end becomes its dispatch's end; nothing an agent does ends the runner."""

import asyncio
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest

from mailbox_app import catalogue
from mailbox_app.errors import Cancelled, InvalidInput, LeaseLost, MailboxError, Permanent, Transient
from mailbox_app.execution import Context, runner
from mailbox_app.execution.contract import outcome_of, readable
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch
from mailbox_app.operations import recover
from mailbox_app.outcomes import Failed, Retry
from mailbox_app.testing import Mailbox
from tests.execution.conftest import Perform, Register
from tests.operations import scene

pytestmark = pytest.mark.django_db


def ends_with(error: BaseException) -> Callable[[Context], None]:
    def agent(ctx: Context) -> None:
        raise error

    return agent


class Overloaded(Transient):
    code = "overloaded"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Ugly(Exception):
    code = 7

    def __str__(self) -> str:
        return "nul \x00 and surrogate \ud800"


def test_a_text_is_the_final_output_and_a_message(perform: Perform) -> None:
    claim = perform(lambda ctx: ctx.messages[0].text.upper())
    assert (scene.dispatch(claim).status, scene.run(claim).final_output) == ("acked", "HELLO THERE")
    assert scene.log(claim) == [(1, "user", "hello there"), (2, "assistant", "HELLO THERE")]


def test_an_agent_knows_its_run(perform: Perform) -> None:
    def agent(ctx: Context) -> dict[str, Any]:
        return {
            "ids": [ctx.thread_id, ctx.run_id, ctx.dispatch_id],
            "counts": [ctx.attempt, ctx.turn, ctx.fence_token],
            "agent": ctx.agent,
            "given": [ctx.options, ctx.metadata, ctx.state],
            "texts": [(message.seq, message.role, message.text) for message in ctx.messages],
        }

    claim = perform(agent)
    assert scene.run(claim).final_output == {
        "ids": [str(claim.thread_id), str(claim.run_id), str(claim.dispatch_id)],
        "counts": [1, 1, 1],
        "agent": "probe",
        "given": [{}, {}, {}],
        "texts": [[1, "user", "hello there"]],
    }


LOOP: list[Any] = []
LOOP.append(LOOP)
UNSTORABLE = {
    "nul": "a\x00b",
    "surrogate": {"deep": ["\ud800"]},
    "nan": float("nan"),
    "infinity": [float("inf")],
    "object": object(),
    "bytes": b"x",
    "set": {1},
    "number as key": {1: 2},
    "loop": LOOP,
    "huge integer": 10**5000,
    "too large": "x" * 8_388_609,
}


@pytest.mark.parametrize("output", UNSTORABLE.values(), ids=UNSTORABLE.keys())
def test_an_output_that_cannot_be_stored_is_buried_at_once(output: Any, perform: Perform) -> None:
    claim = perform(lambda ctx: output)
    error = scene.run(claim).error
    assert error is not None
    assert (scene.dispatch(claim).status, error["code"]) == ("dead_letter", "invalid_output")
    assert error["message"].startswith("output")
    assert scene.run(claim).final_output is None


def test_a_state_that_cannot_be_stored_is_buried_at_once(perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        ctx.state["when"] = object()

    claim = perform(agent)
    assert scene.run(claim).error == {
        "code": "invalid_output",
        "message": "state.when is a object, which JSON cannot hold",
    }


def test_runs_that_fail_for_good_are_one_call_each(mailbox: Mailbox, registered_agent: Register) -> None:
    called: list[Any] = []

    def agent(ctx: Context) -> None:
        called.append(ctx.run_id)
        raise Permanent("no quota")

    registered_agent(agent, max_attempts=5)
    runs = [mailbox.submit("go", agent="probe").pk for _ in range(50)]
    assert mailbox.run_until_idle() == 50
    assert sorted(map(str, called)) == sorted(map(str, runs))
    assert set(Dispatch.objects.values_list("status", flat=True)) == {"dead_letter"}


def test_a_mapping_of_any_kind_is_an_object(perform: Perform) -> None:
    claim = perform(lambda ctx: [MappingProxyType({"a": MappingProxyType({"b": (1, 2)})})])
    assert scene.run(claim).final_output == [{"a": {"b": [1, 2]}}]


TRANSIENT = {
    "overloaded": (Overloaded("later"), "overloaded", "Overloaded: later"),
    "its base": (Transient("later"), "transient", "Transient: later"),
    "timeout": (TimeoutError(), "TimeoutError", "TimeoutError"),
    "connection": (ConnectionResetError("gone"), "ConnectionResetError", "ConnectionResetError: gone"),
    "a bug": (ZeroDivisionError("oops"), "ZeroDivisionError", "ZeroDivisionError: oops"),
    "sys.exit": (SystemExit(3), "RuntimeError", "RuntimeError: sys.exit(3)"),
    "cancelled task": (asyncio.CancelledError(), "CancelledError", "CancelledError"),
    "generator": (GeneratorExit(), "GeneratorExit", "GeneratorExit"),
    "unprintable": (Unprintable(), "Unprintable", "Unprintable: its text raised ZeroDivisionError"),
    "unstorable": (Ugly(), "Ugly", "Ugly: nul \ufffd and surrogate ?"),
    "a stop of its own": (Cancelled("I say so"), "cancelled", "Cancelled: I say so"),
    "a loss of its own": (LeaseLost("I say so"), "lease_lost", "LeaseLost: I say so"),
}


@pytest.mark.parametrize(("error", "code", "message"), TRANSIENT.values(), ids=TRANSIENT.keys())
def test_an_unknown_or_transient_error_is_tried_again(
    error: BaseException, code: str, message: str, perform: Perform
) -> None:
    claim = perform(ends_with(error))
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.attempt_count, dispatch.last_error) == ("queued", 1, f"{code}: {message}")
    # Every reader of the run sees the event: the text of an error that is not ours stays with the operators.
    shown = message if isinstance(error, MailboxError) else f"the agent raised {message.partition(':')[0]}"
    assert scene.last_event(claim).payload["error"] == {"code": code, "message": shown}


PERMANENT = {
    "permanent": (Permanent("no such model"), "permanent", "Permanent: no such model"),
    "refused input": (InvalidInput("kind", "blank", "kind must not be blank"), "invalid_input", None),
}


@pytest.mark.parametrize(("error", "code", "message"), PERMANENT.values(), ids=PERMANENT.keys())
def test_a_permanent_error_is_buried_at_once(
    error: Exception, code: str, message: str | None, perform: Perform
) -> None:
    claim = perform(ends_with(error))
    assert scene.dispatch(claim).status == "dead_letter"
    assert scene.run(claim).error == {"code": code, "message": message or f"InvalidInput: {error}"}


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(7, 7.0), ("7", 7.0), (0, 0.0), (-5, 0.0), (float("inf"), 604_800.0), (1e300, 604_800.0)],
    ids=repr,
)
def test_a_retry_after_is_kept_within_what_a_row_can_hold(given: Any, seconds: float, perform: Perform) -> None:
    before = scene.database_now()
    claim = perform(ends_with(Transient("later", retry_after=given)))
    delay = scene.dispatch(claim).available_at - before
    assert timedelta(seconds=seconds) <= delay < timedelta(seconds=seconds + 10)


@pytest.mark.parametrize("given", [None, float("nan"), "Wed, 21 Oct 2026 07:28:00 GMT", object()], ids=repr)
def test_a_retry_after_that_is_no_number_leaves_the_backoff(given: Any) -> None:
    assert outcome_of(Transient("later", retry_after=given)) == Retry(
        code="transient", message="Transient: later", detail="Transient: later"
    )


def test_a_long_error_is_cut() -> None:
    failed = outcome_of(Permanent("x" * 5000))
    assert isinstance(failed, Failed)
    assert (len(failed.message), failed.message[-1]) == (2000, "…")
    assert readable("x" * 2000) == "x" * 2000


class WorkerShutdown(SystemExit):
    """As Celery's own."""


@pytest.mark.parametrize(
    "error", [WorkerShutdown(0), *(SystemExit(number - 256) for number in (signal.SIGTERM, signal.SIGQUIT))], ids=repr
)
def test_the_worker_s_own_shutdown_passes_through(error: SystemExit, register: Register, keeper: LeaseKeeper) -> None:
    register(ends_with(error))
    scene.post(agent="probe")
    claim = scene.taken(agents=("probe",))
    with pytest.raises(type(error)):
        runner.run(claim, keeper=keeper, own_process=False)
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.attempt_count) == ("claimed", 0), "its lease runs out"


def test_sys_exit_in_an_agent_ends_its_attempt_and_no_more(perform: Perform) -> None:
    claim = perform(lambda ctx: sys.exit("bye"))
    assert scene.dispatch(claim).last_error == "RuntimeError: RuntimeError: sys.exit('bye')"


def test_an_agent_this_worker_does_not_have_is_left_to_another(register: Register, keeper: LeaseKeeper) -> None:
    name = register(lambda ctx: "never")
    scene.post(agent=name)
    claim = scene.taken(agents=(name,))
    catalogue.remove(name)
    runner.run(claim, keeper=keeper, own_process=False)
    assert (scene.dispatch(claim).status, scene.dispatch(claim).attempt_count) == ("queued", 1)
    assert scene.dispatch(claim).last_error == "agent_missing: this worker has no agent named 'probe'"


def test_a_cancellation_is_seen_at_the_next_checkpoint(perform: Perform) -> None:
    reached = []

    def agent(ctx: Context) -> str:
        assert ctx.checkpoint() == []
        scene.ask_to_cancel(ctx._claim)
        reached.append("asked")
        ctx.checkpoint()
        reached.append("not stopped")
        return "done"

    claim = perform(agent)
    assert reached == ["asked"]
    assert (scene.dispatch(claim).status, scene.run(claim).termination) == ("cancelled", {"type": "cancelled"})


def test_a_swallowed_cancellation_is_raised_by_every_later_verb_and_settles_the_run(perform: Perform) -> None:
    raised: list[str] = []

    def agent(ctx: Context) -> str:
        scene.ask_to_cancel(ctx._claim)
        for verb in (
            ctx.checkpoint,
            lambda: ctx.step("after", lambda: 1),
            lambda: ctx.say("after"),
            lambda: ctx.emit("After"),
            lambda: ctx.delta("after"),
            ctx.history,
            ctx.checkpoint,
        ):
            try:
                verb()
            except:  # noqa: E722
                raised.append(type(sys.exc_info()[1]).__name__)
        return "as if nothing had happened"

    claim = perform(agent)
    assert raised == ["Cancelled"] * 7
    assert (scene.dispatch(claim).status, scene.run(claim).final_output) == ("cancelled", None)
    assert scene.log(claim) == [(1, "user", "hello there")]


def test_a_lost_lease_is_raised_by_every_later_verb_and_settles_nothing(perform: Perform) -> None:
    raised: list[str] = []

    def agent(ctx: Context) -> str:
        scene.expire_lease(ctx._claim)
        recover.reclaim()
        for verb in (lambda: ctx.say("stale"), ctx.checkpoint, lambda: ctx.step("stale", lambda: raised.append("ran"))):
            try:
                verb()
            except:  # noqa: E722
                raised.append(type(sys.exc_info()[1]).__name__)
        return "done"

    claim = perform(agent)
    assert raised == ["LeaseLost"] * 3
    assert (scene.dispatch(claim).status, scene.dispatch(claim).lost_count) == ("queued", 1)
    assert scene.kinds(claim)[-1] == "RunRescheduled"


def test_a_loss_that_only_the_settle_notices_ends_quietly(perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        scene.expire_lease(ctx._claim)
        recover.reclaim()
        return "done"

    claim = perform(agent)
    assert (scene.dispatch(claim).status, scene.run(claim).status) == ("queued", "running")
