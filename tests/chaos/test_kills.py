"""Processes are ended by every signal at every point of a run, and cut off in the middle of every COMMIT.

`kills.md` shows the table of what is ended where. After each cell: the run has ended once, nothing that was recorded
happened again, nobody owned its thread beside somebody else, its history has no gap and the doctor finds nothing.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mailbox_app.devtools.probes import living
from mailbox_app.devtools.processes import wait_until
from tests.chaos import commits, kills
from tests.chaos.commits import FATES, OF_PASSES, Transaction, trapped
from tests.chaos.kills import CLAIM, WORKERS, Cell, Point, Process
from tests.chaos.live import SLACK_SECONDS, Watched
from tests.chaos.wire import Moment, Trap
from tests.chaos.wired import Stage, staged
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 2


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage"), django_db_blocker.unblock) as stage:
        yield stage


def of(*processes: Process) -> Any:
    """The wanted cells of these processes, as parameters."""
    found = [cell for cell in kills.wanted() if cell.process in processes]
    return pytest.mark.parametrize("cell", found, ids=[cell.name for cell in found])


@of(*WORKERS)
def test_a_run_survives_the_end_of_its_worker(cell: Cell, stage: Stage) -> None:
    stage.beat()
    stage.maintenance()
    pool = "threads" if cell.process is Process.THREADS else "prefork"
    worker, point = stage.worker(pool), cell.point
    with ExitStack() as held:
        run, executing, has_gone = _stopped_at(point, stage, worker, held)
        if cell.process is Process.CHILD:
            assert executing != worker.pid
        target = executing if cell.process is Process.CHILD else worker.pid
        os.kill(target, cell.number)
        _wait_noticed(cell, worker, has_gone)
        run.open_gate()
    if cell.process is not Process.CHILD:
        code = worker.wait()
        if cell.is_warm:
            # Celery calls an end by SIGINT a failure.
            assert code == (1 if cell.number is signal.SIGINT else 0)
            assert run.row["status"] == "done", "it ends what it has begun"
        stage.worker(pool)
    _assert_ended(cell, run)
    stage.assert_kept(run)
    if cell.process is Process.CHILD:
        assert worker.process.poll() is None, "only its child was ended"


@of(Process.MAINTENANCE)
def test_a_run_survives_the_end_of_who_wakes_it_or_takes_it_back(cell: Cell, stage: Stage) -> None:
    stage.beat()
    stage.worker("prefork")
    maintenance, point = stage.maintenance(), cell.point
    with ExitStack() as held:
        run = _in_need_of(point, stage, held)
        maintenance.send(cell.number)
        if cell.is_warm:
            maintenance.wait_output("Warm shutdown")
        else:
            maintenance.wait()
        run.open_gate()
    maintenance.wait()
    # Nobody has started another one: the workers stand by.
    run.wait_done()
    assert run.row["final_output"] == "did 1"
    is_taken_back = point.words == kills.RECLAIM
    dispatch = run.dispatch
    assert (dispatch["lost_count"], dispatch["attempt_count"]) == ((1, 0) if is_taken_back else (0, 1))
    assert len(run.said("ends", step=1)) == 1
    stage.assert_kept(run)


@of(Process.BEAT)
def test_a_run_survives_the_end_of_beat(cell: Cell, stage: Stage) -> None:
    stage.maintenance()
    stage.worker("prefork")
    beat = stage.beat()
    is_taken_back = cell.point.name == "lost"
    run = stage.submit("workload.ends", **({"gate_at": 1} if is_taken_back else {"end": "retry", "seconds": 2.0}))
    if not is_taken_back:
        wait_until(lambda: run.dispatch["attempt_count"] == 1, SLACK_SECONDS)
    beat.send(cell.number)
    beat.wait()
    if is_taken_back:
        stage.lose_lease(run)
        run.open_gate()
    run.wait_done()
    dispatch = run.dispatch
    assert (dispatch["lost_count"], dispatch["attempt_count"]) == ((1, 0) if is_taken_back else (0, 1))
    assert len(run.said("ends", step=1)) == 1
    stage.assert_kept(run)


CUTS = commits.wanted(("prefork", "threads"))


@pytest.mark.parametrize(
    ("pool", "transaction", "fate"), CUTS, ids=[f"{pool}-{one.name}-{fate}" for pool, one, fate in CUTS]
)
def test_a_run_survives_a_connection_cut_in_the_middle_of_its_worker_s_commit(
    pool: str, transaction: Transaction, fate: str, stage: Stage
) -> None:
    stage.beat()
    stage.maintenance()
    worker = stage.worker(pool)
    said_before = len(worker.output)
    with trapped(stage, "worker", transaction, FATES[fate], cuts=True) as trap:
        gate = {"gate_at": 1} if transaction.meanwhile else {}
        run = stage.submit(transaction.agent, **transaction.options, **gate)
        if transaction.meanwhile:
            run.wait_said("begins" if transaction.agent == "workload.ends" else "enters")
            transaction.meanwhile(stage, run)
            run.open_gate()
        if transaction.options.get("end") == "wait":
            stage.resume(run, "gone")
        trap.wait()
    if transaction.name == "renew":
        before = run.dispatch["lease_until"]
        wait_until(lambda: run.dispatch["lease_until"] > before, SLACK_SECONDS)
        assert run.dispatch["lease_until"] > before, "it is renewed again"
        run.open_gate()
    _assert_ended_as(transaction, run, stage)
    assert worker.process.poll() is None
    assert "settle.refused" not in worker.output[said_before:], "what it had won, it knows"


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("transaction", OF_PASSES, ids=[one.name for one in OF_PASSES])
def test_a_run_survives_a_connection_cut_in_the_middle_of_a_pass_s_commit(
    transaction: Transaction, fate: str, stage: Stage
) -> None:
    stage.beat()
    stage.worker("prefork")
    maintenance = stage.maintenance()
    with trapped(stage, "maintenance", transaction, FATES[fate], cuts=True) as trap:
        run = _stopping(trap, transaction, stage)
    _assert_ended_as(transaction, run, stage)
    assert maintenance.process.poll() is None


@pytest.mark.parametrize("fate", FATES)
def test_a_submission_whose_commit_was_cut_off_is_made_once_by_its_key(fate: str, stage: Stage) -> None:
    body = {"agent": "workload.noop", "messages": [{"content": "once"}], "thread_key": f"cut-{fate}"}
    headers = {"Idempotency-Key": f"cut-{fate}"}
    stage.worker("prefork")
    with stage.wires["web"].trap(b'"kind": "RunQueued"', moment=FATES[fate], cuts=True) as trap:
        first = stage.stack.request("POST", "/v1/runs", body=body, headers=headers)
        trap.wait()
    assert (first.status, first.json["code"]) == (503, "unavailable"), first.text
    again = stage.stack.request("POST", "/v1/runs", body=body, headers=headers)
    assert again.status == 202, again.text
    assert (again.headers.get("Idempotency-Replayed") == "true") == (fate == "unanswered")
    run = Watched(stage, again.json["run_id"], again.json["thread_id"], stage.folder / "none", stage.folder / "none")
    run.wait_done()
    [made] = stage.rows("SELECT id::text FROM mailbox_run WHERE thread_id = %s", run.thread_id)
    assert made["id"] == run.run_id
    assert len(run.everything()["message"]) == 1
    assert stage.examined(run) == []


def _assert_ended_as(transaction: Transaction, run: Watched, stage: Stage) -> None:
    row = run.wait_done()
    assert (row["final_output"], (row["error"] or {}).get("code", "")) == (transaction.output, transaction.error)
    stored = run.everything()
    assert sum(one["lost_count"] for one in stored["dispatch"]) == transaction.lost, run.lines
    assert sum(one["attempt_count"] for one in stored["dispatch"]) == transaction.attempts
    reasons = [event["payload"].get("reason") for event in stored["event"]]
    assert reasons.count("expired_lease_reclaimed") == transaction.lost
    kinds = [event["kind"] for event in stored["event"]]
    assert {kind: kinds.count(kind) for kind in transaction.once} == dict.fromkeys(transaction.once, 1)
    seqs = sorted(message["seq"] for message in stored["message"])
    assert seqs == list(range(1, len(seqs) + 1))
    if transaction.agent != "workload.polls":
        assert len(run.said("ends", step=1)) == row["turn"], "once a turn"
    stage.assert_kept(run)


def _in_need_of(point: Point, stage: Stage, held: ExitStack) -> Watched:
    """A run that waits for a pass, which stands at the point."""
    if not point.words:
        run = stage.submit("workload.ends", end="retry", seconds=2.0)
        wait_until(lambda: run.dispatch["attempt_count"] == 1, SLACK_SECONDS)
        return run
    [transaction] = [one for one in OF_PASSES if one.words == point.words]
    return _stopping(held.enter_context(trapped(stage, "maintenance", transaction, point.moment)), transaction, stage)


def _stopping(trap: Trap, transaction: Transaction, stage: Stage) -> Watched:
    """A run whose pass runs into the trap; one that a worker's standby was quicker to serve is let go."""
    for _ in range(20):
        run = stage.submit(transaction.agent, **transaction.options)
        if transaction.lost:
            stage.lose_lease(run)
            run.open_gate()
        wait_until(lambda run=run: trap.sprung.is_set() or run.row["status"] == "done", SLACK_SECONDS)
        if trap.sprung.is_set():
            return run
        assert run.row["status"] == "done"
    raise AssertionError("the worker of the passes was always late")


def _stopped_at(point: Point, stage: Stage, worker: Worker, held: ExitStack) -> tuple[Watched, int, Callable[[], bool]]:
    """A run of two steps that stands at the point, the pid of who executes it, and whether that has ended."""
    if not point.words:
        run = stage.submit(steps=STEPS, gate_at=2)
        pid = int(run.wait_said("begins", step=2)["pid"])
        return run, pid, lambda: not living({pid})
    by = CLAIM[0] if point.moment is Moment.NEXT else b""
    trap = held.enter_context(stage.wires["worker"].trap(*point.words, moment=point.moment, by=by))
    run = stage.submit(steps=STEPS)
    trap.wait()
    assert (run.row["status"] == "done") == point.is_settled
    return run, trap.sender(worker.pid), trap.has_gone


def _wait_noticed(cell: Cell, worker: Worker, has_gone: Callable[[], bool]) -> None:
    """Wait until the signal has done what it does at once."""
    if cell.number is signal.SIGKILL or (cell.process is Process.THREADS and not cell.is_warm):
        wait_until(has_gone, SLACK_SECONDS)
        assert has_gone(), "a child goes with its parent, a thread with its process"
    elif cell.process is Process.PARENT or cell.is_warm:
        if cell.process is not Process.CHILD:
            worker.wait_output("Warm shutdown" if cell.is_warm else "Cold shutdown")
    else:
        # A child that is told to end may be in the middle of a statement, and wait for its answer first.
        wait_until(has_gone, 1.0)


def _assert_ended(cell: Cell, run: Watched) -> None:
    """By whoever it was: each message, record and outcome once, and what had a record was not done again."""
    run.wait_done()
    run.assert_told_once(STEPS)
    dispatch = run.dispatch
    assert dispatch["attempt_count"] == 0
    assert dispatch["lost_count"] in cell.lost, run.lines
    for step in range(1, STEPS + 1):
        times = len(run.said("ends", step=step))
        most = 1 if step <= cell.point.recorded else 1 + dispatch["lost_count"]
        assert 1 <= times <= most, run.lines
