"""A stack under test, and one run under watch: what its agent says in its log, what the database says."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until

LEASE_SECONDS = 3.0
SWEEP_SECONDS = 1.0
SETTINGS = {
    "lease_seconds": LEASE_SECONDS,
    "sweep_seconds": SWEEP_SECONDS,
    "due_tick_seconds": 0.2,
    "broker_retry_seconds": 1.0,
    "max_lost": 3,
}
# On a busy machine a process takes a while to be scheduled, forked and connected; no promise is about that.
SLACK_SECONDS = 20.0
RECOVERED_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + SLACK_SECONDS


@dataclass
class Live:
    """A running stack, its database, and the file in which its agents say what they do."""

    stack: StackProcess
    folder: Path

    def submit(self, agent: str = "workload.steps", **options: Any) -> "Watched":
        """Post a run over HTTP; its agent logs to a file of its own."""
        log, gate = self.folder / f"{uuid.uuid4()}.log", self.folder / f"{uuid.uuid4()}.gate"
        answer = self.stack.request(
            "POST",
            "/v1/runs",
            body={
                "agent": agent,
                "messages": [{"role": "user", "content": "go"}],
                "options": {"log": str(log), "gate": str(gate), **options},
            },
        )
        assert answer.status == 202, answer.text
        return Watched(self, answer.json["run_id"], answer.json["thread_id"], log, gate)

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """What the stack's database says."""
        with psycopg.connect(self.stack.environment["DATABASE_URL"], row_factory=dict_row) as connection:
            return connection.execute(sql, parameters).fetchall()


@dataclass
class Watched:
    """One run under watch."""

    live: Live
    run_id: str
    thread_id: str
    log: Path
    gate: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def said(self, what: str, **facts: Any) -> list[dict[str, Any]]:
        """The log's lines of this kind."""
        wanted = {"what": what, **facts}
        return [line for line in self.lines if wanted.items() <= line.items()]

    def wait_said(self, what: str, *, times: int = 1, seconds: float = SLACK_SECONDS, **facts: Any) -> dict[str, Any]:
        """Wait for a line and return the newest of its kind."""
        wait_until(lambda: len(self.said(what, **facts)) >= times, seconds)
        found = self.said(what, **facts)
        assert len(found) >= times, f"{what} {facts} was not said; {self.lines}"
        return found[-1]

    @property
    def row(self) -> dict[str, Any]:
        return self.live.rows("SELECT * FROM mailbox_run WHERE id = %s", self.run_id)[0]

    @property
    def thread(self) -> dict[str, Any]:
        return self.live.rows("SELECT * FROM mailbox_thread WHERE id = %s", self.thread_id)[0]

    @property
    def dispatch(self) -> dict[str, Any]:
        return self.live.rows("SELECT * FROM mailbox_dispatch WHERE run_id = %s", self.run_id)[0]

    def open_gate(self) -> None:
        self.gate.touch()

    def wait_done(self, seconds: float = RECOVERED_SECONDS) -> dict[str, Any]:
        """Wait until the run has ended and return its row."""
        wait_until(lambda: self.row["status"] == "done", seconds)
        row = self.row
        assert row["status"] == "done", (row, self.dispatch, self.lines)
        return row

    def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All that is stored of the run and its thread."""
        tables = {
            "run": "id = %s", "dispatch": "run_id = %s", "journalentry": "run_id = %s", "event": "run_id = %s",
        }  # fmt: skip
        stored = {
            table: self.live.rows(f"SELECT * FROM mailbox_{table} WHERE {where} ORDER BY id", self.run_id)
            for table, where in tables.items()
        }
        stored["thread"] = self.live.rows("SELECT * FROM mailbox_thread WHERE id = %s", self.thread_id)
        stored["message"] = self.live.rows(
            "SELECT * FROM mailbox_message WHERE thread_id = %s ORDER BY position", self.thread_id
        )
        return stored

    def assert_told_once(self, steps: int = 3) -> None:
        """Each message, each step's record and the outcome exist exactly once."""
        stored = self.everything()
        said = [f"step {number}" for number in range(1, steps + 1)]
        outcome = f"did {' '.join(str(number) for number in range(1, steps + 1))}"
        assert [message["content"] for message in stored["message"]] == ["go", *said, outcome]
        assert [message["seq"] for message in stored["message"]] == list(range(1, steps + 3))
        names = [entry["name"] for entry in stored["journalentry"] if entry["verb"] == "step"]
        assert names == [f"step-{number}" for number in range(1, steps + 1)]
        [run], [dispatch] = stored["run"], stored["dispatch"]
        assert (run["final_output"], dispatch["status"]) == (outcome, "acked")
        kinds = [event["kind"] for event in stored["event"]]
        assert kinds.count("RunFinished") == 1
        assert kinds.count("MessageCommitted") == steps + 1
