"""What the queue should do, said once more in the plainest way: lists in memory, one thing at a time, no clock."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_LOST, MOST_TURNS = 2, 3
RATE_LIMIT = "rate_limit"


@dataclass(eq=False)
class Said:
    """A message: pending, committed or retracted."""

    position: int
    owner: "Intent | None"
    state: str = "pending"
    seq: int | None = None


@dataclass(eq=False)
class Entry:
    """A dispatch: one activation of a run."""

    later: bool = False
    status: str = "queued"
    attempts: int = 0
    lost: int = 0
    token: uuid.UUID | None = None
    # Who may call its own end again.
    ended_by: uuid.UUID | None = None
    left_run: str | None = None
    fence: int | None = None
    asked_to_stop: bool = False
    is_expired: bool = False
    resolved: bool = False
    days_old: int = 0
    id: uuid.UUID | None = None


@dataclass(eq=False)
class Resume:
    name: str
    payload: int
    id: str | None
    answer: str
    taken: bool = False


@dataclass(eq=False)
class Intent:
    """A run."""

    talk: "Talk"
    order: int
    agent: str
    priority: int
    most: int
    key: str | None = None
    status: str = "created"
    turn: int = 1
    ending: str | None = None
    wait: tuple[str, str] | None = None
    goes_on_by_itself: bool = False
    is_overdue: bool = False
    resumes: list[Resume] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    is_replay: bool = False
    id: uuid.UUID | None = None

    @property
    def live(self) -> Entry | None:
        return next((one for one in self.entries if one.status in ("queued", "claimed")), None)

    @property
    def queued(self) -> Entry | None:
        return next((one for one in self.entries if one.status == "queued"), None)


@dataclass(eq=False)
class Talk:
    """A thread."""

    id: uuid.UUID
    place: int
    next_order: int = 1
    last_seq: int = 0
    fence: int = 0
    open: Intent | None = None
    runs: list[Intent] = field(default_factory=list)
    log: list[Said] = field(default_factory=list)
    # Time has passed since the flag was written.
    is_stale: bool = False

    @property
    def is_active(self) -> bool:
        return self.open is not None and self.open.live is not None and self.open.live.status == "claimed"

    def take_order(self) -> int:
        self.next_order += 1
        return self.next_order - 1

    def may_start(self) -> list[Intent]:
        """Runs with something queued that nothing but time holds up."""
        if self.is_active:
            return []
        return [run for run in self.runs if run.queued and self.open in (None, run)]

    def head(self) -> Intent | None:
        due = [run for run in self.may_start() if run.queued and not run.queued.later]
        return min(due, key=lambda run: (run.priority, run.order), default=None)

    def is_blocked(self) -> bool:
        queued = [run for run in self.runs if run.queued]
        return bool(queued) and self.open is not None and not self.is_active and self.open.queued is None

    # What is asked for.

    def submit(self, *, agent: str, count: int, priority: int, most: int, later: bool, key: str | None) -> Intent:
        run = Intent(self, self.take_order(), agent, priority, most, key)
        self.log += [Said(self.take_order(), run) for _ in range(count)]
        run.entries.append(Entry(later=later))
        self.runs.append(run)
        return run

    def say(self) -> None:
        """To the open run."""
        self.log.append(Said(self.take_order(), None))

    def produce(self) -> None:
        self.last_seq += 1
        self.log.append(Said(self.take_order(), None, "committed", self.last_seq))

    def claim(self, token: uuid.UUID) -> Intent:
        run = self.head()
        assert run is not None
        assert run.queued is not None
        if run.status == "created" and not run.is_replay:
            self.read(run, [one for one in self.log if one.state == "pending" and one.owner in (None, run)])
        self.fence += 1
        entry = run.queued
        entry.status, entry.token, entry.ended_by, entry.fence = "claimed", token, token, self.fence
        entry.is_expired = False
        run.status, run.wait, run.goes_on_by_itself, run.is_overdue = "running", None, False, False
        self.open = run
        return run

    def read(self, run: Intent, unread: Iterable[Said]) -> None:
        for one in sorted(unread, key=lambda said: said.position):
            self.last_seq += 1
            one.state, one.seq, one.owner = "committed", self.last_seq, run

    def ownerless(self) -> list[Said]:
        return [one for one in self.log if one.state == "pending" and one.owner is None]

    # How a run ends, or does not.

    def end(self, run: Intent, how: str) -> None:
        """Done; what was said to it and not read is for a run of its own, in its place."""
        run.status, run.ending, run.wait, run.goes_on_by_itself = "done", how, None, False
        if self.open is not run:
            return
        self.open = None
        left = sorted(self.ownerless(), key=lambda said: said.position)
        if left:
            again = Intent(self, left[0].position, run.agent, run.priority, run.most)
            again.entries.append(Entry())
            self.runs.append(again)
            for one in left:
                one.owner = again

    def settle(self, run: Intent, status: str, how: str) -> None:
        entry = run.live
        assert entry is not None
        entry.status, entry.token, entry.left_run = status, None, "done"
        self.end(run, how)

    def requeue(self, run: Intent, *, later: bool = False) -> None:
        entry = run.live
        assert entry is not None
        entry.status, entry.token, entry.later = "queued", None, later

    def finish(self, run: Intent, *, says: bool) -> bool:
        """Whether another turn follows."""
        entry = run.live
        assert entry is not None
        if says:
            self.produce()
        if run.turn < MOST_TURNS and not entry.asked_to_stop and self.ownerless():
            run.turn += 1
            self.read(run, self.ownerless())
            entry.attempts = entry.lost = 0
            entry.is_expired = False
            return True
        self.settle(run, "acked", "natural_end")
        return False

    def fail(self, run: Intent, *, later: bool) -> None:
        entry = run.live
        assert entry is not None
        if entry.asked_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        entry.attempts += 1
        if entry.attempts >= run.most:
            self.settle(run, "dead_letter", "error")
        else:
            self.requeue(run, later=later)

    def bury(self, run: Intent) -> None:
        entry = run.live
        assert entry is not None
        entry.attempts = min(entry.attempts + 1, run.most)
        self.settle(run, "dead_letter", "error")

    def lose(self, run: Intent) -> None:
        """Its lease is over and somebody noticed."""
        entry = run.live
        assert entry is not None
        entry.ended_by, entry.is_expired = None, False
        if entry.asked_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        entry.lost += 1
        if entry.lost >= MOST_LOST:
            self.settle(run, "dead_letter", "error")
        else:
            self.requeue(run)

    def give_back(self, run: Intent) -> None:
        assert run.live is not None
        if run.live.asked_to_stop:
            self.settle(run, "cancelled", "cancelled")
        else:
            self.requeue(run)

    def suspend(self, run: Intent, reason: str, name: str) -> None:
        entry = run.live
        assert entry is not None
        if entry.asked_to_stop:
            self.settle(run, "cancelled", "cancelled")
            return
        entry.status, entry.token, entry.left_run = "acked", None, "waiting"
        run.status, run.wait, run.is_overdue = "waiting", (reason, name), False
        came = next((one for one in run.resumes if one.name == name and not one.taken), None)
        run.goes_on_by_itself = reason == RATE_LIMIT and came is None
        if came is not None:
            came.taken = True
        if came is not None or reason == RATE_LIMIT:
            run.entries.append(Entry(later=came is None))

    def resume(self, run: Intent, name: str, payload: int, resume_id: str | None) -> str:
        """What is answered: resumed, stored or conflict."""
        before = next((one for one in run.resumes if resume_id is not None and one.id == resume_id), None)
        if before is not None:
            return before.answer if (before.name, before.payload) == (name, payload) else "conflict"
        if run.status == "done":
            return "conflict"
        answer = "stored"
        if run.wait is not None and run.wait[1] == name:
            if run.queued is None:
                run.entries.append(Entry())
                answer = "resumed"
            elif run.goes_on_by_itself:
                run.queued.later = False
                answer = "resumed"
        if answer == "resumed":
            run.goes_on_by_itself = False
        run.resumes.append(Resume(name, payload, resume_id, answer, taken=answer == "resumed"))
        return answer

    def cancel(self, run: Intent) -> str:
        """What is answered."""
        if run.status == "done":
            return "already_done"
        entry = run.live
        if entry is not None and entry.status == "claimed":
            entry.asked_to_stop = True
            return "requested"
        if entry is not None:
            entry.status = "cancelled"
        for one in self.log:
            if one.owner is run and one.state == "pending":
                one.state = "retracted"
        self.end(run, "cancelled")
        return "cancelled"

    def replay(self, run: Intent, entry: Entry) -> Intent:
        entry.resolved = True
        again = Intent(self, self.take_order(), run.agent, run.priority, run.most, run.key, turn=run.turn)
        again.is_replay = True
        again.entries.append(Entry())
        self.runs.append(again)
        return again
