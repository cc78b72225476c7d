"""The lease keeper with real short leases: it renews, survives a hiccup, and stops what it has lost."""

import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError

from mailbox_app.errors import Cancelled, LeaseLost, Stop
from mailbox_app.execution import Context, activation, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.places import Places
from mailbox_app.hints import Aim
from mailbox_app.models import Dispatch
from mailbox_app.operations import cancel, claim, recover, settle
from mailbox_app.operations.ownership import Claim
from tests.execution.conftest import Perform, Register
from tests.operations import scene
from tests.races.actors import lose_connection, start, until

pytestmark = pytest.mark.django_db(transaction=True)


class Renewals:
    """The real renewal, and what it was called with; its next call can be made to fail."""

    def __init__(self) -> None:
        self.calls: list[set[uuid.UUID]] = []
        self.fail_with: Exception | None = None

    def __call__(self, tokens: Collection[uuid.UUID]) -> claim.Renewed:
        self.calls.append(set(tokens))
        if self.fail_with is not None:
            raise self.fail_with
        return claim.renew(tokens=tokens)


@pytest.fixture
def renewals() -> Renewals:
    return Renewals()


@pytest.fixture
def keeper(renewals: Renewals) -> LeaseKeeper:
    return LeaseKeeper(renewals)


@pytest.fixture(autouse=True)
def _short_lease(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 1.5, "renewal_seconds": 0.1, "redis_url": ""}


def nothing() -> None:
    """No time limit is expected to pass."""


def hold(keeper: LeaseKeeper, of: Claim, stops: list[Stop]) -> Any:
    return keeper.holding(of, stop_with=stops.append, on_timeout=nothing, timeout=3600)


def aim(of: Claim) -> Aim:
    return Aim(of.thread_id, of.run_id, of.dispatch_id)


def test_all_claims_of_a_process_are_renewed_by_one_statement(keeper: LeaseKeeper, renewals: Renewals) -> None:
    claims = [scene.posted_and_taken() for _ in range(3)]
    before = scene.dispatch(claims[2]).lease_until
    with ExitStack() as stack:
        for one in claims:
            stack.enter_context(hold(keeper, one, []))
        until(lambda: len(renewals.calls) >= 2, "two renewals")
    assert renewals.calls[0] == {one.token for one in claims}
    assert before is not None
    leases = Dispatch.objects.values_list("lease_until", flat=True).distinct()
    assert len(leases) == 1, "one statement, one instant"
    assert leases[0] > before


def test_a_claim_that_is_over_is_renewed_no_more(keeper: LeaseKeeper, renewals: Renewals) -> None:
    kept, over = scene.posted_and_taken(), scene.posted_and_taken()
    with hold(keeper, kept, []):
        with hold(keeper, over, []):
            until(lambda: len(renewals.calls) >= 1, "a renewal")
        settle.complete(over)
        seen = len(renewals.calls)
        until(lambda: len(renewals.calls) >= seen + 2, "two more renewals")
        assert renewals.calls[-1] == {kept.token}


def test_a_run_longer_than_its_lease_is_never_swept(perform: Perform, keeper: LeaseKeeper) -> None:
    def agent(ctx: Context) -> int:
        first = scene.dispatch(ctx._claim).lease_until
        assert first is not None
        return until(lambda: scene.database_now() > first and 1 + recover.reclaim(), "the first lease is over")

    one = perform(agent)
    assert scene.run(one).final_output == 1, "the sweep found nothing"
    assert (scene.dispatch(one).status, scene.dispatch(one).lost_count) == ("acked", 0)


def test_a_lost_lease_stops_that_run_alone(keeper: LeaseKeeper) -> None:
    lost, kept = scene.posted_and_taken(), scene.posted_and_taken()
    stops: dict[str, list[Stop]] = {"lost": [], "kept": []}
    with hold(keeper, lost, stops["lost"]), hold(keeper, kept, stops["kept"]):
        scene.expire_lease(lost)
        # The keeper may renew an expired lease before a sweep comes by: be the sweep that was faster.
        until(lambda: scene.expire_lease(lost) or recover.reclaim(), "the sweep takes it back")
        until(lambda: stops["lost"], "the run is stopped")
    assert isinstance(stops["lost"][0], LeaseLost)
    assert (len(stops["lost"]), stops["kept"]) == (1, [])
    settle.complete(kept)


def test_a_database_hiccup_is_retried_and_stops_nothing(keeper: LeaseKeeper, renewals: Renewals) -> None:
    one, stops = scene.posted_and_taken(), []
    with hold(keeper, one, stops):
        renewals.fail_with = OperationalError("the server is restarting")
        until(lambda: len(renewals.calls) >= 4, "it is tried again, and soon")
        renewals.fail_with = None
        before = scene.dispatch(one).lease_until
        until(lambda: scene.dispatch(one).lease_until != before, "a renewal that works")
    assert stops == []
    settle.complete(one)


def test_a_database_that_stays_away_stops_the_run_when_its_lease_is_over(
    keeper: LeaseKeeper, renewals: Renewals
) -> None:
    one, stops = scene.posted_and_taken(), []
    renewals.fail_with = OperationalError("away")
    with hold(keeper, one, stops):
        held_since = time.monotonic()
        until(lambda: stops, "the run is stopped")
        assert time.monotonic() - held_since >= 1.4, "not before its lease was over"
    assert isinstance(stops[0], LeaseLost)


def test_a_renewal_whose_backend_is_terminated_is_made_up_for() -> None:
    one, stops = scene.posted_and_taken(), []
    before, killed = scene.dispatch(one).lease_until, []

    def renew(tokens: Collection[uuid.UUID]) -> claim.Renewed:
        if not killed:
            killed.append(True)
            lose_connection()
        return claim.renew(tokens=tokens)

    with hold(LeaseKeeper(renew), one, stops):
        until(lambda: killed and scene.dispatch(one).lease_until != before, "a renewal after the loss")
    assert stops == []


def test_a_settle_whose_connection_is_terminated_is_told_again(perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        lose_connection()
        return "done"

    one = perform(agent)
    assert (scene.dispatch(one).status, scene.run(one).final_output) == ("acked", "done")
    assert scene.kinds(one).count("RunFinished") == 1


def test_a_run_past_its_limit_is_settled_without_its_agent(
    register: Register, keeper: LeaseKeeper, settings: Any
) -> None:
    raised: list[BaseException] = []
    go_on, done = threading.Event(), threading.Event()

    def agent(ctx: Context) -> str:
        go_on.wait(20)
        try:
            ctx.say("too late")
        except BaseException as error:
            raised.append(error)
        return "too late as well"

    register(agent, timeout_seconds=0.2)
    scene.post(agent="probe")
    one = scene.taken(agents=("probe",))

    def work() -> None:
        runner.run(one, keeper=keeper, own_process=False)
        done.set()

    start(work)
    until(lambda: scene.dispatch(one).status == "queued", "the run is settled")
    assert not done.is_set(), "its agent is still at it"
    assert scene.dispatch(one).last_error == "timed_out: ran past its limit of 0.2 s"
    assert (scene.dispatch(one).attempt_count, scene.thread(one).active_run_id) == (1, None)
    with scene.nothing_changes():
        go_on.set()
        assert done.wait(20)
    assert [type(error) for error in raised] == [LeaseLost]


def test_a_keeper_that_settles_a_time_limit_goes_on_renewing_the_others(
    register: Register, keeper: LeaseKeeper, renewals: Renewals
) -> None:
    kept = scene.posted_and_taken()
    slow = scene.posted_and_taken()
    settling, release = threading.Event(), threading.Event()

    def settle_slowly() -> None:
        settling.set()
        release.wait(20)

    with hold(keeper, kept, []), keeper.holding(slow, stop_with=[].append, on_timeout=settle_slowly, timeout=0.01):
        assert settling.wait(20)
        seen = len(renewals.calls)
        until(lambda: len(renewals.calls) >= seen + 2, "two more renewals")
        release.set()


def test_a_run_that_ignores_its_cancellation_is_settled_without_its_agent(
    register: Register, keeper: LeaseKeeper, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "cancel_grace_seconds": 0.5}
    raised: list[BaseException] = []
    go_on, done = threading.Event(), threading.Event()

    def agent(ctx: Context) -> str:
        go_on.wait(20)
        try:
            ctx.say("too late")
        except BaseException as error:
            raised.append(error)
        return "too late as well"

    register(agent)
    posted = scene.post(agent="probe")
    behind = scene.post(agent="probe", thread_id=posted.thread_id)
    one = scene.taken(agents=("probe",))
    places = Places("slot", lambda: 0, on_worn=lambda reason: None)

    def work() -> None:
        runner.run(one, keeper=keeper, own_process=False, places=places)
        done.set()

    start(work)
    assert cancel.run(scope=scene.SCOPE, run_id=one.run_id).outcome == "requested"
    until(lambda: scene.run(one).status == "done", "the run is settled")
    assert not done.is_set(), "its agent is still at it"
    run, dispatch = scene.run(one), scene.dispatch(one)
    assert (run.termination, run.final_output, dispatch.status) == ({"type": "cancelled"}, None, "cancelled")
    assert dispatch.cancel_requested_at is not None
    assert run.finished_at is not None
    assert run.finished_at - dispatch.cancel_requested_at >= timedelta(seconds=0.5), "not before its grace was over"
    until(lambda: places.abandoned == 1, "its place is counted as abandoned")
    assert scene.taken(agents=("probe",)).run_id == behind.run_id, "its thread is free"
    with scene.nothing_changes():
        go_on.set()
        assert done.wait(20)
    assert [type(error) for error in raised] == [Cancelled]
    assert places.abandoned == 0


def test_a_run_that_stops_within_its_grace_keeps_its_place_and_its_process(
    register: Register, keeper: LeaseKeeper, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "cancel_grace_seconds": 0.1}
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(activation.os, "kill", lambda *given: kills.append(given))
    calls: list[Callable[[], None]] = []

    class Grasping(LeaseKeeper):
        def holding(self, claim: Claim, **given: Any) -> Any:
            calls.append(given["on_ignored"])
            return super().holding(claim, **given)

    def agent(ctx: Context) -> None:
        cancel.run(scope=scene.SCOPE, run_id=uuid.UUID(ctx.run_id))
        ctx.checkpoint()

    register(agent)
    scene.post(agent="probe")
    one = scene.taken(agents=("probe",))
    runner.run(one, keeper=Grasping(lambda tokens: claim.renew(tokens=tokens)), own_process=True)
    assert scene.run(one).termination == {"type": "cancelled"}
    with scene.nothing_changes():
        calls[0]()
    assert kills == []


def test_a_nudge_brings_the_renewal_of_that_claim_alone_forward(renewals: Renewals, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 60, "renewal_seconds": 20}
    keeper = LeaseKeeper(renewals)
    named, other = scene.posted_and_taken(), scene.posted_and_taken()
    stops: dict[str, list[Stop]] = {"named": [], "other": []}
    with hold(keeper, named, stops["named"]), hold(keeper, other, stops["other"]):
        keeper.nudge(aim(named))
        until(lambda: renewals.calls == [{named.token}], "the row is asked")
        assert stops == {"named": [], "other": []}, "a nudge stops nobody: the row does"
        cancel.run(scope=scene.SCOPE, run_id=named.run_id)
        for other_one in ("thread_id", "run_id", "dispatch_id"):
            keeper.nudge(aim(named)._replace(**{other_one: uuid.uuid4()}))
        keeper.nudge(aim(named))
        until(lambda: stops["named"], "the run is stopped", seconds=10)
        keeper.nudge(aim(named))
    assert (renewals.calls, stops["other"]) == ([{named.token}] * 2, [])


def test_a_nudge_for_another_thread_run_or_dispatch_is_nobody_s(keeper: LeaseKeeper) -> None:
    one, nudges = scene.posted_and_taken(), []
    with keeper.holding(
        one, stop_with=[].append, on_timeout=nothing, timeout=3600, on_nudge=lambda: nudges.append("looks")
    ):
        for part in Aim._fields:
            keeper.nudge(aim(one)._replace(**{part: uuid.uuid4()}))
        assert nudges == []
        keeper.nudge(aim(one))
        assert nudges == ["looks"]


def test_a_nudge_that_comes_before_its_claim_is_kept_is_not_lost(renewals: Renewals, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 60, "renewal_seconds": 20}
    keeper, one, stops = LeaseKeeper(renewals), scene.posted_and_taken(), []
    with hold(keeper, scene.posted_and_taken(), []):
        cancel.run(scope=scene.SCOPE, run_id=one.run_id)
        keeper.nudge(aim(one))
        with hold(keeper, one, stops):
            until(lambda: stops, "the run is stopped", seconds=10)
    assert isinstance(stops[0], Cancelled)


def test_a_time_limit_that_comes_after_the_agent_s_end_neither_settles_nor_kills(
    register: Register, renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may be running another claim by then."""
    calls: list[Callable[[], None]] = []
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(activation.os, "kill", lambda *given: kills.append(given))

    class Grasping(LeaseKeeper):
        def holding(self, claim: Claim, **given: Any) -> Any:
            calls.append(given["on_timeout"])
            return super().holding(claim, **given)

    register(lambda ctx: 1 // 0)
    scene.post(agent="probe")
    one = scene.taken(agents=("probe",))
    runner.run(one, keeper=Grasping(renewals), own_process=True)
    assert scene.dispatch(one).attempt_count == 1
    with scene.nothing_changes():
        calls[0]()
    assert kills == []


def test_a_token_that_is_no_claim_is_lost() -> None:
    one = scene.posted_and_taken()
    forged = replace(one, token=uuid.uuid4())
    assert claim.renew(tokens=[one.token, forged.token]).lost == {forged.token}
    assert not claim.renew(tokens=[]).lost


def test_a_keeper_that_had_nothing_to_keep_watches_and_renews_what_comes_next(
    keeper: LeaseKeeper, renewals: Renewals
) -> None:
    with hold(keeper, scene.posted_and_taken(), []):
        until(lambda: renewals.calls, "a renewal")
    until(lambda: keeper._is_idle and keeper._looks_at == float("inf"), "both of its threads have nothing to do")
    renewals.calls.clear()
    has_ended = threading.Event()
    following = scene.posted_and_taken()
    with keeper.holding(following, stop_with=lambda stop: None, on_timeout=has_ended.set, timeout=0.3):
        assert has_ended.wait(20), "its time limit"
        until(lambda: renewals.calls, "a renewal of it")
    assert renewals.calls[0] == {following.token}
