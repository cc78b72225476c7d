"""Many clients on many threads: each says, edits, withdraws, orders, steers, interrupts, answers and cancels at random.

What a client was told, it writes down; `proof/spoken.py` judges that against what agents wrote down and the rows.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from mailbox_app.devtools.processes import wait_until
from mailbox_app.models.event import TERMINAL_KINDS
from tests.chaos.live import SLACK_SECONDS, Live
from tests.proof.spoken import Stored

# What is refused for having come too late, or in vain: it must have changed nothing, as the rows will show.
_REFUSED = (404, 409, 410, 422, 429)

_MESSAGES = """
    SELECT id::text, thread_id::text AS thread, run_id::text AS run, state, seq, position, content #>> '{}' AS text,
        retract_reason AS reason, read_turn AS turn, boundary,
        EXISTS (
            SELECT FROM mailbox_event AS event WHERE event.thread_id = message.thread_id
                AND event.kind = 'MessageRequeued' AND event.payload->>'message_id' = message.id::text
        ) AS requeued
    FROM mailbox_message AS message WHERE producer_run_id IS NULL
"""
_RUNS = """
    SELECT id::text, status, termination->>'type' AS ending,
        (SELECT count(*) FROM mailbox_event WHERE run_id = run.id AND kind = ANY(%s)) AS ended,
        (SELECT coalesce(sum(lost_count), 0) FROM mailbox_dispatch WHERE run_id = run.id)
            + (SELECT count(*) FROM mailbox_event WHERE run_id = run.id AND kind = 'RunRescheduled') AS lost
    FROM mailbox_run AS run
"""
_TICKETS = """
    SELECT run_id::text AS run, ticket_id AS ticket, name, turn, status, decision_id AS decision, answer
    FROM mailbox_ticket
"""


@dataclass
class Talking:
    """Clients who talk inside the block, each from a thread of its own."""

    live: Live
    threads: int = 50
    clients: int = 6
    seed: int = 1
    told: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    _ids: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _workers: list[threading.Thread] = field(default_factory=list)
    _errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> "Talking":
        self._ids = [self._ask("POST", "/v1/threads", {})["id"] for _ in range(self.threads)]
        self._workers = [threading.Thread(target=self._talk, args=(n,), daemon=True) for n in range(self.clients)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        for worker in self._workers:
            worker.join(4 * SLACK_SECONDS)
        if error is None:
            assert not self._errors, self._errors

    def end(self, seconds: float) -> None:
        """Release what is held and answer what is asked, until every run has ended."""
        for thread_id in self._ids:
            self._ask("POST", f"/v1/threads/{thread_id}/pending/release", {})

        def has_ended() -> bool:
            for row in self.live.rows(f"{_TICKETS} WHERE status = 'open'"):
                self._answer(row, random.Random(0))
            return int(self.live.rows("SELECT count(*) FROM mailbox_run WHERE status <> 'done'")[0]["count"]) == 0

        wait_until(has_ended, seconds, every=0.3)

    def stored(self) -> Stored:
        """What is left of it."""
        return Stored(
            messages=self.live.rows(_MESSAGES),
            runs=self.live.rows(_RUNS, [str(kind) for kind in TERMINAL_KINDS]),
            tickets=self.live.rows(_TICKETS),
        )

    def _talk(self, client: int) -> None:
        dice = random.Random(f"{self.seed} {client}")
        acts: list[tuple[Callable[[str, random.Random], None], int]] = [
            *((self._say, 8), (self._steer, 4), (self._edit, 4), (self._withdraw, 3), (self._order, 2)),
            *((self._answer_one, 4), (self._interrupt, 1), (self._release, 1), (self._cancel, 1), (self._feed, 2)),
        ]
        try:
            while not self._is_over.is_set():
                act = dice.choices([one for one, _ in acts], [weight for _, weight in acts])[0]
                # Few threads see most of it: there they meet.
                act(self._ids[min(dice.randrange(self.threads), dice.randrange(self.threads))], dice)
        except BaseException as error:
            self._errors.append(error)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        """The answer; None where it was refused."""
        answer = self.live.stack.request(method, path, body=body, seconds=3 * SLACK_SECONDS)
        if answer.status in _REFUSED:
            self.refused += 1
            if answer.json.get("code") == "already_consumed" and method in ("PATCH", "DELETE"):
                self.told.append({"what": "consumed", "message": path.split("?")[0].rpartition("/")[2]})
            return None
        assert answer.status in (200, 201, 202), f"{method} {path}: {answer.status} {answer.text}"
        return json.loads(answer.text)

    def _post(self, path: str, thread_id: str, dice: random.Random, **how: Any) -> None:
        texts = [f"{dice.getrandbits(64):x}" for _ in range(dice.choice((1, 1, 2)))]
        receipt = self._ask("POST", path, {"messages": [{"content": text} for text in texts], **how})
        if receipt is not None:
            said = list(zip(receipt["message_ids"], texts, strict=True))
            self.told.append({"what": "said", "thread": thread_id, "messages": said})

    def _say(self, thread_id: str, dice: random.Random) -> None:
        deliveries = (None, None, None, {"granularity": "one"}, {"barrier": True}, {"boundary": "new_run"})
        delivery = dice.choice(deliveries)
        self._post(f"/v1/threads/{thread_id}/messages", thread_id, dice, agent="talker", delivery=delivery)

    def _steer(self, thread_id: str, dice: random.Random) -> None:
        open_id = self._open(thread_id)
        how: dict[str, Any] = {"agent": "talker", "if_active": "steer"}
        match dice.randrange(4):
            case 0 if open_id is not None:
                how = {"expected_run_id": open_id, "if_active": "steer"}
            case 1 if open_id is not None:
                fallback = dice.choice((None, "new_run"))
                how = {"delivery": {"boundary": "next_step", "target_run_id": open_id, "fallback": fallback}}
            case 2:
                how = {"agent": "talker", "delivery": {"boundary": "on_natural_end"}}
        self._post(f"/v1/threads/{thread_id}/messages", thread_id, dice, **how)

    def _feed(self, thread_id: str, dice: random.Random) -> None:
        open_id = self._open(thread_id)
        if open_id is not None:
            self._post(f"/v1/runs/{open_id}/inputs", thread_id, dice)

    def _interrupt(self, thread_id: str, dice: random.Random) -> None:
        if dice.random() < 0.6:
            self.told.append({"what": "stopped", "thread": thread_id})
            self._post(f"/v1/threads/{thread_id}/messages", thread_id, dice, agent="talker", if_active="interrupt")
        else:
            self._ask("POST", f"/v1/threads/{thread_id}/interrupt", {})

    def _release(self, thread_id: str, dice: random.Random) -> None:
        self._ask("POST", f"/v1/threads/{thread_id}/pending/release", {})

    def _cancel(self, thread_id: str, dice: random.Random) -> None:
        # Before: whoever reads the rows meanwhile finds a reason.
        self.told.append({"what": "stopped", "thread": thread_id})
        open_id = self._open(thread_id)
        if open_id is not None and dice.random() < 0.7:
            self._ask("POST", f"/v1/runs/{open_id}/cancel", {})
        else:
            self._ask("POST", f"/v1/threads/{thread_id}/cancel", {})

    def _edit(self, thread_id: str, dice: random.Random) -> None:
        for one in self._some_pending(dice, 1):
            text = f"{dice.getrandbits(64):x}"
            revision = dice.choice((None, one["revision"]))
            path = f"/v1/threads/{one['thread']}/pending/{one['id']}"
            edited = self._ask("PATCH", path, {"content": text, "revision": revision})
            if edited is not None:
                revision = edited["message"]["revision"]
                self.told.append({"what": "edited", "message": one["id"], "text": text, "revision": revision})

    def _withdraw(self, thread_id: str, dice: random.Random) -> None:
        for one in self._some_pending(dice, 1):
            guard = dice.choice(("", f"?revision={one['revision']}"))
            if self._ask("DELETE", f"/v1/threads/{one['thread']}/pending/{one['id']}{guard}", None) is not None:
                self.told.append({"what": "withdrawn", "message": one["id"]})

    def _order(self, thread_id: str, dice: random.Random) -> None:
        found = self._some_pending(dice, 3)
        if found:
            thread_id = found[0]["thread"]
            self.told.append({"what": "ordered", "thread": thread_id})
            body = {"message_ids": [one["id"] for one in found]}
            self._ask("PUT", f"/v1/threads/{thread_id}/pending/order", body)

    def _answer_one(self, thread_id: str, dice: random.Random) -> None:
        asked = self.live.rows(f"{_TICKETS} WHERE status = 'open' LIMIT 20")
        if asked:
            self._answer(dice.choice(asked), dice)
        else:
            time.sleep(0.05)

    def _answer(self, ticket: dict[str, Any], dice: random.Random) -> None:
        action, payload = dice.choice(("resume", "resume", "cancel")), {"n": dice.randrange(9)}
        decision = f"{dice.getrandbits(64):x}"
        body = {"ticket_id": ticket["ticket"], "action": action, "payload": payload, "decision_id": decision}
        if self._ask("POST", f"/v1/runs/{ticket['run']}/decision", body) is not None:
            named = {"run": ticket["run"], "ticket": ticket["ticket"]}
            facts = {"decision": decision, "action": action, "payload": payload}
            self.told.append({"what": "answered", **named, **facts})

    def _open(self, thread_id: str) -> str | None:
        [row] = self.live.rows("SELECT open_run_id::text AS id FROM mailbox_thread WHERE id = %s", thread_id)
        found: str | None = row["id"]
        return found

    def _some_pending(self, dice: random.Random, most: int) -> list[dict[str, Any]]:
        """Of one thread, of those that have any."""
        found = self.live.rows(
            "SELECT id::text, thread_id::text AS thread, revision FROM mailbox_message WHERE state = 'pending'"
        )
        threads = sorted({one["thread"] for one in found})
        chosen = dice.choice(threads) if threads else ""
        theirs = [one for one in found if one["thread"] == chosen]
        return dice.sample(theirs, min(most, len(theirs)))
