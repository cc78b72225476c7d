"""A stage on which processes are ended: a stack of web and servers alone, a wire to PostgreSQL for each kind of
process, and those processes, started when they are wanted and ended as often as somebody likes."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from mailbox_app.devtools.probes import StackProcess, living
from mailbox_app.devtools.processes import wait_until
from mailbox_app.devtools.servers import temporary_servers
from mailbox_app.doctor import examine
from mailbox_app.doctor.findings import Report
from mailbox_app.operations import submit
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live, Watched
from tests.chaos.wire import Wire
from tests.chaos.workers import Worker
from tests.proof.history import Accepted, faults

WITHOUT = [word for name in ("worker", "maintenance", "beat", "flower") for word in ("--without", name)]
WIRES = ("web", "worker", "maintenance")


class Beat(Worker):
    """`celery beat`, as `Worker` is a worker."""

    READY = "beat: Starting"

    def __init__(self, live: Live, name: str) -> None:
        super().__init__(live, name)
        self._command = [sys.executable, "-m", "celery", "-q", "-A", "mailbox_project", "beat", "--loglevel", "INFO"]
        self._command += ["-s", str(live.folder / f"{name}.schedule"), "--pidfile="]


@dataclass
class Stage(Live):
    """See the head of this file. Of each kind of process there is one at a time."""

    wires: dict[str, Wire]
    unblocked: Callable[[], AbstractContextManager[Any]]
    _crew: dict[str, Worker] = field(default_factory=dict)
    _started: int = 0

    def worker(self, pool: str) -> Worker:
        """The worker of this pool, started if there is none."""
        for name in {"prefork", "threads"} - {pool}:
            self.end(name)
        return self._of(pool, lambda name: self._wired(name, pool=pool, slots=1 if pool == "prefork" else 2))

    def maintenance(self) -> Worker:
        """The worker of the passes."""
        return self._of("maintenance", lambda name: self._wired(name, queue="mailbox.maintenance"))

    def beat(self) -> Worker:
        """Who asks for the passes."""
        return self._of("beat", lambda name: Beat(self, name))

    def end(self, kind: str) -> None:
        """End this process, if it runs."""
        worker = self._crew.pop(kind, None)
        if worker is not None:
            worker.__exit__(None, None, None)

    def close(self) -> None:
        for kind in list(self._crew):
            self.end(kind)

    def examined(self, run: Watched) -> list[str]:
        """What the doctor finds on the run's thread."""
        with self.unblocked(), _connected(self.stack.environment["DATABASE_URL"]):
            report = examine.threads(Report(), thread_id=run.row["thread_id"])
        assert report.looked_at["threads"] == 1
        return [f"{one.code}: {one.sentence}" for one in report.findings]

    def say(self, run: Watched, text: str, *, boundary: str) -> None:
        """Say something to the run while it is open."""
        with self.unblocked(), _connected(self.stack.environment["DATABASE_URL"]):
            submit.messages(scope=run.thread["scope"], thread_id=run.thread_id, messages=[text], boundary=boundary)

    def resume(self, run: Watched, payload: str) -> None:
        """Resume the run named "go", as soon as it waits."""
        wait_until(lambda: run.row["status"] == "waiting", SLACK_SECONDS)
        body = {"name": "go", "payload": payload}
        answer = self.stack.request("POST", f"/v1/runs/{run.run_id}/resume", body=body)
        assert answer.json["status"] == "resumed", (answer.text, run.row, run.lines)

    def lose_lease(self, run: Watched) -> None:
        """Kill the child that is in a step of the run, and let its lease be over."""
        pid = run.wait_said("begins")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not living({pid}), SLACK_SECONDS)
        with psycopg.connect(self.stack.environment["DATABASE_URL"]) as connection:
            connection.execute(
                "UPDATE mailbox_dispatch SET lease_until = now() - interval '1 s'"
                " WHERE run_id = %s AND status = 'claimed'",
                [run.run_id],
            )

    def assert_kept(self, run: Watched) -> None:
        """Whatever was done to it: it ended once, had one owner at a time, and its thread's history has no gap."""
        [row] = self.rows(
            """
            SELECT run.id::text, run.status, run."order" AS place,
                (SELECT count(*) FROM mailbox_event WHERE run_id = run.id AND kind = ANY(%s)) AS ended,
                (SELECT sum(lost_count)::int FROM mailbox_dispatch WHERE run_id = run.id) AS lost
            FROM mailbox_run AS run WHERE id = %s
            """,
            ["RunFinished", "RunErrored", "RunCancelled", "RunTerminated"],
            run.run_id,
        )
        accepted = Accepted(row["id"], run.thread_id, row["place"], row["status"], row["ended"], row["lost"])
        found = faults([accepted], _without_turns(run.lines))
        if run.row["termination"] != {"type": "natural_end"}:
            # It was to end otherwise than by its agent's return.
            found = [line for line in found if "never returned" not in line]
        assert found == []
        cursors = [
            row["cursor"]
            for row in self.rows("SELECT cursor FROM mailbox_event WHERE thread_id = %s ORDER BY 1", run.thread_id)
        ]
        thread = run.thread
        assert cursors == list(range(1, thread["last_cursor"] + 1))
        assert (thread["open_run_id"], thread["active_run_id"], thread["due_at"]) == (None, None, None)
        journal = self.rows("SELECT verb, name, key, n, turn FROM mailbox_journalentry WHERE run_id = %s", run.run_id)
        assert len({tuple(entry.values()) for entry in journal}) == len(journal)
        assert self.examined(run) == []

    def _wired(self, name: str, **more: Any) -> Worker:
        kind = "maintenance" if "queue" in more else "worker"
        return Worker(self, name, DATABASE_URL=self.wires[kind].url, **more)

    def _of(self, kind: str, make: Callable[[str], Worker]) -> Worker:
        worker = self._crew.get(kind)
        if worker is not None and worker.process.poll() is not None:
            self.end(kind)
            worker = None
        if worker is None:
            self._started += 1
            worker = self._crew[kind] = make(f"{kind}-{self._started}").__enter__()
        return worker


def _without_turns(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns of one claim as the one activation they are: without the return of one and the entrance of the next."""
    told: list[dict[str, Any]] = []
    for line in lines:
        if line["what"] == "enters" and told and (told[-1]["what"], told[-1]["fence"]) == ("returns", line["fence"]):
            told.pop()
        else:
            told.append(line)
    return told


@contextmanager
def staged(folder: Path, unblocked: Callable[[], AbstractContextManager[Any]]) -> Iterator[Stage]:
    """A stage for a module's tests."""
    with pytest.MonkeyPatch.context() as patch, temporary_servers() as servers:
        # Also for the processes that are the stage's own.
        patch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
        wires = {kind: Wire(servers.postgres.url) for kind in WIRES}
        environment = {**servers.environment, "DATABASE_URL": wires["web"].url}
        with StackProcess(*WITHOUT, settings=SETTINGS, environment=environment) as stack:
            stage = Stage(stack, folder, wires, unblocked)
            try:
                yield stage
            finally:
                stage.close()
        for wire in wires.values():
            wire.close()


@contextmanager
def _connected(url: str) -> Iterator[None]:
    """Have Django's queries of this thread go to the stage's database."""
    ours = connections["default"]
    theirs = ours.copy()
    parts = conninfo_to_dict(url)
    named = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    theirs.settings_dict.update({key: str(parts[part]) for key, part in named.items()})
    connections["default"] = theirs
    try:
        yield
    finally:
        theirs.close()
        connections["default"] = ours
