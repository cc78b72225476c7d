"""Clients of streams that are dropped anywhere and come back, and the table by which what they were told is judged."""

import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mailbox_app.models import TERMINAL_KINDS, Event, Kind, Run, Thread
from mailbox_app.states import RunStatus
from tests.streams.served import PATIENCE_SECONDS
from tests.streams.wire import Answer, Told

_WAITS = (Kind.RUN_STARTED, Kind.RUN_RESUMED, Kind.RUN_SUSPENDED)


@dataclass
class Recorded:
    """One event of the table, also when that has it no longer."""

    cursor: int
    run_id: uuid.UUID | None
    kind: str
    payload: Any
    is_public: bool


@dataclass
class Spoken:
    """What one activation says live: all of it, and how much of that is in a message."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    fence: int
    attempt: int
    text: str = ""
    closed: int = 0
    # Nothing of it was lost: Redis has been there since it began.
    is_whole: bool = True


class Ledger:
    """Every event that ever was, as the table had it, and what was said live."""

    def __init__(self) -> None:
        self.events: dict[uuid.UUID, list[Recorded]] = {}
        self.pruned: dict[uuid.UUID, int] = {}
        self.deleted: set[uuid.UUID] = set()
        self.spoken: list[Spoken] = []

    def read(self) -> None:
        """Add what is new; each cursor follows the last."""
        for thread_id, known in self.events.items():
            for row in Event.objects.filter(thread_id=thread_id).after(len(known)):
                assert row.cursor == len(known) + 1, "the table has a gap"
                is_public = row.visibility == "public"
                known.append(Recorded(row.cursor, row.run_id, row.kind, row.payload, is_public))
            thread = Thread.objects.get(pk=thread_id)
            assert thread.last_cursor == len(known)
            self.pruned[thread_id] = thread.pruned_cursor
            if thread.deleted_at is not None:
                self.deleted.add(thread_id)

    def past(self, cursor: int, thread_id: uuid.UUID, run_id: uuid.UUID | None) -> Iterator[Recorded]:
        """The public events past a cursor, of a run or of all."""
        for one in self.events[thread_id][cursor:]:
            if one.is_public and run_id in (None, one.run_id):
                yield one

    def is_waiting_at(self, cursor: int, thread_id: uuid.UUID, run_id: uuid.UUID | None) -> bool:
        """Whether the run waits, for who has had all up to the cursor."""
        told = [one.kind for one in self.events[thread_id][:cursor] if one.run_id == run_id and one.kind in _WAITS]
        return bool(told) and told[-1] == Kind.RUN_SUSPENDED


@dataclass
class Follower:
    """One client of a thread, of a run, or of what it has posted, over all its connections."""

    ledger: Ledger
    token: str
    thread_id: uuid.UUID
    # None: all of the thread.
    run_id: uuid.UUID | None = None
    # What was posted, and is posted again with its key by who comes back.
    posted: dict[str, Any] | None = None
    asked: int = 0
    last: int | None = None
    position: int = 0
    ended: str = ""
    gone: bool = False
    told: list[int] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)
    _socket: socket.socket | None = None
    _spoke: Spoken | None = None
    _spoken_to: int = 0

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    # Connections

    def connect(self, port: int, *, by_header: bool = True) -> None:
        """Come (back), and see that the answer is the one the table wants. `by_header`: else by `?cursor`."""
        self.drop()
        self.ended = ""
        self.ledger.read()
        cursor = self.asked if self.last is None else self.last
        expected = self._expected_status(cursor)
        self._ask(port, cursor, by_header=by_header and self.last is not None)
        assert self.answer.status == expected, (self.answer.status, self.answer.body, cursor, vars(self))
        if self.posted is not None and self.run_id is None:
            self.run_id = uuid.UUID(self.answer.headers["location"].rpartition("/")[2])
            self.ledger.read()
        if expected in (200, 204):
            # What is past the end has not happened yet: it begins with what comes next.
            self.position = max(self.position, min(cursor, len(self.ledger.events[self.thread_id])))
        if expected == 200:
            if self.last is None and self.asked == 0:
                self.position = max(self.position, self.ledger.pruned[self.thread_id])
            return
        self.drop()
        if expected == 204:
            assert not self.missing, f"{self.missing} were not told, and all is said to have been"
            self.ended = "done"
        elif self.thread_id in self.ledger.deleted:
            self.gone = True
        else:  # past its retention: it begins anew, with what is kept
            self.last, self.asked, self.position = None, 0, self.ledger.pruned[self.thread_id]

    def drop(self) -> None:
        """Leave, without a word."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._spoke, self._spoken_to = None, None, 0

    def read(self, most: int = 1_000_000, *, seconds: float = 0.0) -> bool:
        """Take up to so many bytes that have come; whether there were any."""
        if self._socket is None:
            return False
        self._socket.settimeout(max(seconds, 0.0001))
        try:
            received = self._socket.recv(most)
        except TimeoutError:
            return False
        except OSError:
            received = b""
        for one in self.answer.take(received):
            self._hear(one)
        if self.answer.is_over or not received:
            self.drop()
        return True

    def _expected_status(self, cursor: int) -> int:
        if self.thread_id in self.ledger.deleted or 0 < cursor < self.ledger.pruned[self.thread_id]:
            return 410
        if self.run_id is None or Run.objects.get(pk=self.run_id).status != RunStatus.DONE:
            return 200
        kept = max(cursor, self.ledger.pruned[self.thread_id])
        return 200 if any(self.ledger.past(kept, self.thread_id, self.run_id)) else 204

    def _ask(self, port: int, cursor: int, *, by_header: bool) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        if by_header or (self.posted and cursor):
            headers["Last-Event-ID"] = str(cursor)
        if self.posted is not None:
            method, path = "POST", "/v1/runs"
            headers["Idempotency-Key"] = self.posted["key"]
        else:
            method = "GET"
            path = f"/v1/threads/{self.thread_id}" if self.run_id is None else f"/v1/runs/{self.run_id}"
            # The header wins: what an address says is where its page began.
            path += f"/events/stream?cursor={self.asked if by_header else cursor}"
        self.answer = Answer()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        body = None if self.posted is None else self.posted["body"]
        self._socket.sendall(self.answer.request(method, path, headers=headers, body=body))
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        # The head, and of a refusal all.
        while not self.answer.status or not (self.answer.is_stream or self.answer.is_over):
            assert time.monotonic() < give_up_at, "no answer"
            for one in self.answer.take(self._socket.recv(64)):
                self._hear(one)

    # What it is told

    @property
    def missing(self) -> list[int]:
        """What it should have been told and was not yet."""
        past = self.position
        if self.last is None and self.asked == 0:
            past = max(past, self.ledger.pruned[self.thread_id])
        return [one.cursor for one in self.ledger.past(past, self.thread_id, self.run_id)]

    @property
    def speaks(self) -> Spoken | None:
        """Who speaks live on what it follows, if somebody does."""
        thread = Thread.objects.get(pk=self.thread_id)
        found = [one for one in self.ledger.spoken if one.thread_id == self.thread_id]
        if not found or thread.open_run_id != found[-1].run_id or thread.claim_count != found[-1].fence:
            return None
        return found[-1] if self.run_id in (None, found[-1].run_id) else None

    def has_heard_all(self) -> bool:
        """Whether nothing is missing: no event, no end, and none of the live text."""
        if self.gone:
            return True
        if self.missing:
            return False
        if self.run_id is not None:
            run = Run.objects.get(pk=self.run_id)
            if run.status == RunStatus.DONE or (run.status == RunStatus.WAITING and self.posted):
                return bool(self.ended)
        if self.thread_id in self.ledger.deleted:
            return self.ended == "deleted"
        spoken = self.speaks
        if spoken is None or not spoken.is_whole or spoken.closed == len(spoken.text):
            return self.is_connected
        return self._spoke is spoken and self._spoken_to == len(spoken.text)

    def _hear(self, one: Told) -> None:
        if one.cursor is not None:
            self._event(one, one.cursor)
        elif one.name == "metadata":
            assert one.data["run_id"] == str(self.run_id) or self.run_id is None
        elif one.name == "delta":
            self._delta(**{**one.data, "run_id": uuid.UUID(one.data["run_id"])})
        elif one.name == "end":
            self._end(one.data["status"])
        else:
            assert (one.name, one.data["code"]) == ("error", "cursor_pruned"), one
            self.ledger.read()
            assert self.position < self.ledger.pruned[self.thread_id]

    def _event(self, one: Told, cursor: int) -> None:
        if cursor > len(self.ledger.events[self.thread_id]):
            self.ledger.read()
        if self.last is None and self.asked == 0 and cursor > self.ledger.pruned[self.thread_id]:
            # All that is kept, of what was pruned meanwhile nothing.
            self.position = max(self.position, self.ledger.pruned[self.thread_id])
        expected = next(self.ledger.past(self.position, self.thread_id, self.run_id), None)
        assert expected is not None, f"{cursor} was told again"
        assert cursor == expected.cursor, f"{cursor} was told where {expected.cursor} should have been"
        data = one.data
        assert (one.name, data["kind"], data["cursor"]) == (expected.kind, expected.kind, cursor)
        assert data["payload"] == expected.payload
        assert data["run_id"] == (expected.run_id and str(expected.run_id))
        self.position = self.last = cursor
        self.told.append(cursor)

    def _delta(self, *, run_id: uuid.UUID, attempt: int, activation: str, offset: int, text: str) -> None:
        assert self.run_id in (None, run_id)
        end = offset + len(text)
        found = [
            one
            for one in self.ledger.spoken
            if (one.run_id, one.attempt, str(one.fence)) == (run_id, attempt, activation.partition(".")[0])
        ]
        said = [one for one in found if one.text[offset:end] == text]
        assert said, f"nobody has said {text!r} at {offset}"
        [spoken] = said
        if self._spoke is not None:
            assert spoken.fence >= self._spoke.fence, "an activation that is over was heard again"
            assert spoken.fence > self._spoke.fence or offset >= self._spoken_to, "the text goes back"
        self._spoke, self._spoken_to = spoken, end

    def _end(self, status: str) -> None:
        self.ledger.read()
        assert not self.missing or status == "waiting", f"{self.missing} were not told before the end"
        known = self.ledger.events[self.thread_id]
        if status == "done":
            kinds = {one.kind for one in known if one.run_id == self.run_id}
            assert self.run_id is not None
            assert kinds & set(TERMINAL_KINDS), "a run that goes on was said to be done"
        elif status == "waiting":
            assert self.posted is not None
            assert self.ledger.is_waiting_at(self.position, self.thread_id, self.run_id)
        else:
            assert (status, self.run_id) == ("deleted", None)
            assert self.thread_id in self.ledger.deleted
        self.ended = status
