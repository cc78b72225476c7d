"""A round of runs over many threads, a steady load of them, and the judgement of what became of it.

Agents of real workers write what they do into one log (`workload.steps`); `proof/history.py` judges it by the rows.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from mailbox_app.devtools.processes import wait_until
from mailbox_app.models.event import TERMINAL_KINDS
from tests.chaos.live import RECOVERED_SECONDS, SLACK_SECONDS, Live
from tests.chaos.workers import ROOT
from tests.proof.history import Accepted, faults

# MAILBOX_CHAOS_SECONDS=<seconds> makes each storm last that long.
STORM_SECONDS = float(os.environ.get("MAILBOX_CHAOS_SECONDS", "5"))
# What a round may last on a slow machine; one that was asked to be long may take as long as it likes.
TIMEOUT = 300 if "MAILBOX_CHAOS_SECONDS" not in os.environ else 0


class Round:
    """Runs over many threads, and the one log in which their agents write."""

    def __init__(self, live: Live) -> None:
        name = uuid.uuid4().hex
        self.live, self.log, self.gate = live, live.folder / f"{name}.log", live.folder / f"{name}.gate"
        self.runs: list[tuple[str, str]] = []

    def post(self, *bodies: dict[str, Any]) -> list[str]:
        """Submit these until they are accepted, under one key; the receipts are what was accepted."""
        runs = [{"agent": "workload.steps", "messages": [{"content": "go"}], **body} for body in bodies]
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        give_up_at = time.monotonic() + 3 * SLACK_SECONDS
        while True:
            try:
                answer = self.live.stack.request("POST", "/v1/runs/batch", body={"runs": runs}, headers=headers)
                said = f"{answer.status} {answer.text}"
                if answer.status == 202:
                    break
                # In flight still, or the database is away: whether it was taken, the same key tells.
                assert answer.status in (409, 500, 503), said
            except OSError as error:
                said = repr(error)
            assert time.monotonic() < give_up_at, said
            time.sleep(0.1)
        items = answer.json["items"]
        self.runs += [(item["run_id"], item["thread_id"]) for item in items]
        return [item["run_id"] for item in items]

    def options(self, **more: Any) -> dict[str, Any]:
        return {"steps": 1, "log": str(self.log), "gate": str(self.gate), **more}

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def count(self, what: str) -> int:
        return sum(line["what"] == what for line in self.lines)

    def gated(self) -> list[dict[str, Any]]:
        """Who has begun the step that waits for the gate and not ended it."""
        waiting = {line["run"]: line for line in self.lines if line["what"] == "begins"}
        for line in self.lines:
            if line["what"] == "ends":
                waiting.pop(line["run"], None)
        return list(waiting.values())

    def accepted(self) -> list[Accepted]:
        """What the rows say of each run that was accepted."""
        kinds = [str(kind) for kind in TERMINAL_KINDS]
        rows = self.live.rows(
            """
            SELECT run.id::text, run.status, run."order" AS place,
                (SELECT count(*) FROM mailbox_event WHERE run_id = run.id AND kind = ANY(%s)) AS ended,
                (SELECT count(*) FROM mailbox_event
                    WHERE run_id = run.id AND kind = 'RunRescheduled' AND payload->>'reason' = 'handed_back')
                    AS handed_back,
                (SELECT sum(lost_count) FROM mailbox_dispatch WHERE run_id = run.id) AS lost
            FROM mailbox_run AS run
            """,
            kinds,
        )
        by_id = {row["id"]: row for row in rows}
        return [
            Accepted(
                run_id, thread, row["place"], row["status"], row["ended"], int(row["lost"] or 0), row["handed_back"]
            )
            for run_id, thread in self.runs
            for row in (by_id[run_id],)
        ]

    def open_count(self) -> int:
        return int(self.live.rows("SELECT count(*) FROM mailbox_run WHERE status <> 'done'")[0]["count"])

    def costs(self) -> tuple[int, int]:
        """Failed attempts and lost leases of all that is stored."""
        [row] = self.live.rows("SELECT sum(attempt_count) AS failed, sum(lost_count) AS lost FROM mailbox_dispatch")
        return int(row["failed"]), int(row["lost"])

    def assert_kept(self) -> list[Accepted]:
        """Wait for the end of everything; each promise was kept. With `-s`, says of how many runs."""
        wait_until(lambda: self.open_count() == 0, 2 * RECOVERED_SECONDS)
        accepted = self.accepted()
        found = faults(accepted, self.lines)
        assert not found, found
        [row] = self.live.rows(
            "SELECT count(*) FROM mailbox_run WHERE activation->'options'->>'log' = %s", str(self.log)
        )
        assert row["count"] == len(accepted), "a submission that was repeated under its key made one more run"
        lost, handed_back = sum(run.lost for run in accepted), sum(run.handed_back for run in accepted)
        sys.stdout.write(f"{len(accepted)} runs ended once; {lost} leases lost, {handed_back} runs handed back\n")
        return accepted


@dataclass
class Load:
    """Submits steadily inside the block, on many threads, from several clients; tells how long the slowest waited."""

    told: Round
    threads: int = 30
    clients: int = 2
    # Of each client, a batch of so many.
    batch: int = 3
    every_seconds: float = 0.4
    step_seconds: float = 0.05
    slowest: float = 0.0
    _is_over: threading.Event = field(default_factory=threading.Event)
    _workers: list[threading.Thread] = field(default_factory=list)
    _errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._workers = [threading.Thread(target=self._submit, args=(n,), daemon=True) for n in range(self.clients)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        for worker in self._workers:
            worker.join(4 * SLACK_SECONDS)
        if error is None:
            assert not self._errors, self._errors

    def _submit(self, client: int) -> None:
        options = self.told.options(seconds=self.step_seconds, steps=2)
        try:
            for number in itertools.count(client * 7):
                keys = [f"t{(number * self.batch + n) % self.threads}" for n in range(self.batch)]
                began = time.monotonic()
                self.told.post(*({"thread_key": key, "options": options} for key in keys))
                self.slowest = max(self.slowest, time.monotonic() - began)
                if self._is_over.wait(self.every_seconds):
                    return
        except BaseException as error:
            self._errors.append(error)


def assert_healthy(live: Live) -> None:
    """The doctor finds nothing in what the stack has stored; what is merely late it may find at first."""
    command = [sys.executable, "manage.py", "mailbox_doctor", "--json"]
    environment = {**os.environ, **live.stack.environment}
    said: dict[str, Any] = {}

    def is_healthy() -> bool:
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode in (0, 1), ended.stderr[-2000:]
        said.update(json.loads(ended.stdout))
        return bool(said["healthy"])

    wait_until(is_healthy, SLACK_SECONDS, every=1.0)
    assert said["healthy"], said["findings"]
