"""What becomes of all that is said to a thread, said once more in the plainest way: lists in memory, nothing indexed.

The rules are those of the design, applied to every message there is, in order. What a thread does beside its messages
is the other oracle's (`oracle.py`).
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_LOST, MOST_TURNS, MOST_ATTEMPTS = 3, 3, 2
LANES = ("interrupt", "next_step", "on_natural_end", "new_run")
USER_INPUT, TOOL_PERMISSION, RATE_LIMIT = "user_input", "tool_permission", "rate_limit"
GONE_ON = ("external_event", "manual_pause", RATE_LIMIT)


@dataclass(kw_only=True)
class How:
    """How something is said: `delivery.Delivery`, and what else decides who reads it."""

    posted: bool = False
    word: str = "enqueue"
    boundary: str = "new_run"
    alone: bool = False
    barrier: bool = False
    target: "Reader | None" = None
    falls_back: bool = False
    own_run: bool = False
    expected: "Reader | None" = None
    agent: str = ""
    sender: str = ""
    by: str = ""
    later: bool = False

    @property
    def is_plain(self) -> bool:
        return not (self.alone or self.barrier or self.own_run)


@dataclass(eq=False)
class Said:
    """A message."""

    text: str
    position: int
    owner: "Reader | None"
    boundary: str = "new_run"
    alone: bool = False
    barrier: bool = False
    target: "Reader | None" = None
    falls_back: bool = False
    held: bool = False
    state: str = "pending"
    revision: int = 1
    seq: int | None = None
    read_turn: int | None = None
    read_at: str = ""
    reason: str = ""
    id: uuid.UUID | None = None


@dataclass(eq=False)
class Asked:
    """A ticket."""

    name: str
    ticket_id: str
    has_schema: bool
    ends: bool
    status: str = "open"
    is_late: bool = False
    decision: tuple[str, str, int] | None = None


@dataclass(eq=False)
class Reader:
    """A run."""

    order: int
    agent: str
    status: str = "created"
    ending: tuple[str, str] | None = None
    turn: int = 1
    # Who said what to it, where others may join; None: nobody may.
    posted: dict[str, list[Said]] | None = None
    sender: str = ""
    waits: str = ""
    wait_name: str = ""
    waited: list[Asked] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    later: bool = False
    goes_on_by_itself: bool = False
    is_overdue: bool = False
    is_to_stop: bool = False
    failures: int = 0
    losses: int = 0
    id: uuid.UUID | None = None

    @property
    def live(self) -> str:
        """Where its activation stands: queued, claimed, or blank."""
        last = self.activations[-1] if self.activations else ""
        return last if last in ("queued", "claimed") else ""

    @property
    def takes_input(self) -> bool:
        return self.status == "waiting" and self.waits == USER_INPUT


@dataclass(eq=False)
class Dialogue:
    """A thread."""

    id: uuid.UUID
    next_order: int = 1
    last_seq: int = 0
    epoch: int = 0
    revision: int = 1
    open: Reader | None = None
    latest: Reader | None = None
    readers: list[Reader] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    # What was announced of messages: (event, message) by number.
    told: "Counter[tuple[str, Said]]" = field(default_factory=Counter)

    def take_order(self) -> int:
        self.next_order += 1
        return self.next_order - 1

    def pending(self, *, held: bool = False) -> list[Said]:
        return sorted(
            (one for one in self.said if one.state == "pending" and one.held == held), key=lambda one: one.position
        )

    # Who reads what.

    def may_read(self, one: Said, run: Reader, boundary: str) -> bool:
        """Whether the run may read it there, whatever stands in front of it."""
        if one.owner not in (None, run):
            return False
        if boundary == "resume_input":
            return one.boundary == boundary and one.target is run
        if boundary == "new_run":
            has_lane = one.boundary != "resume_input" and one.target is None
            return has_lane or one.falls_back
        if one.boundary == "resume_input" or LANES.index(one.boundary) > LANES.index(boundary):
            return False
        return one.target in (None, run)

    def would_read(self, run: Reader, boundary: str) -> list[Said]:
        """The scan, over all that is pending: what it comes to before something ends it."""
        taken: list[Said] = []
        has_skipped = False
        for one in self.pending():
            if self.may_read(one, run, boundary):
                if (one.barrier and has_skipped) or (one.alone and taken):
                    break
                taken.append(one)
                if one.barrier or one.alone:
                    break
                continue
            is_anothers = one.owner not in (None, run)
            keeps_its_place = one.boundary == "new_run" if boundary != "new_run" else not one.falls_back
            if one.barrier or not (is_anothers or keeps_its_place):
                break
            has_skipped = True
        return taken

    def head(self) -> Reader | None:
        """The run that whoever comes now is given."""
        if self.open is not None:
            return self.open if self.open.live == "queued" and not self.open.later else None
        for run in self.queued():
            if not run.later and self.would_read(run, "new_run"):
                return run
        return None

    def queued(self) -> list[Reader]:
        """Unstarted runs in the order in which they are to start."""
        return sorted((run for run in self.readers if run.status == "created"), key=lambda run: run.order)

    def blocked(self) -> str:
        if self.open is not None:
            is_behind = not self.open.live and any(run.live == "queued" for run in self.readers)
            return "open_run" if is_behind else ""
        is_due = any(not run.later for run in self.queued())
        return "barrier" if is_due and self.head() is None else ""

    def commit(self, run: Reader, messages: Iterable[Said], read_at: str) -> list[Said]:
        read = list(messages)
        for one in read:
            assert one.state == "pending"
            self.last_seq += 1
            one.state, one.seq, one.owner, one.read_turn, one.read_at = (
                *("committed", self.last_seq, run),
                *(run.turn, read_at),
            )
        self.revision += bool(read)
        return read

    # What is said.

    def append(self, texts: Iterable[str], owner: Reader | None, how: How, boundary: str) -> list[Said]:
        added = []
        for text in texts:
            one = Said(text, self.take_order(), owner, boundary, how.alone)
            if owner is None:
                one.target, one.falls_back = how.target, how.falls_back
            added.append(one)
        added[-1].barrier = how.barrier
        self.said += added
        self.revision += 1
        return added

    def queue(self, texts: list[str], how: How) -> Reader:
        agent = how.agent or ("echo" if self.latest is None else self.latest.agent)
        run = Reader(self.take_order(), agent, sender=how.sender, later=how.later)
        run.activations.append("queued")
        added = self.append(texts, run, how, "new_run")
        if how.posted and how.is_plain:
            run.posted = {how.by: added}
        self.readers.append(run)
        self.latest = run
        return run

    def join(self, texts: list[str], how: How) -> Reader | None:
        """The last run that could start now, if it was said to the thread just so."""
        agent = how.agent or ("echo" if self.latest is None else self.latest.agent)
        started = [self.open] if self.open is not None and self.open.live == "queued" else []
        last = max(
            (run for run in [*self.queued(), *started] if not run.later), key=lambda run: run.order, default=None
        )
        if last is None or last is self.open or last.posted is None:
            return None
        if (last.agent, last.sender) != (agent, how.sender):
            return None
        last.posted.setdefault(how.by, []).extend(self.append(texts, last, How(), "new_run"))
        return last

    def feed(self, run: Reader, texts: list[str], how: How, boundary: str) -> None:
        """To the open run: for its next step or turn; one that waits for input goes on with it."""
        if not (run.takes_input and boundary != "on_natural_end"):
            self.append(texts, None, how, boundary)
            return
        if how.target is None:
            how = How(alone=how.alone, barrier=how.barrier, target=run, falls_back=True)
        self.append(texts, None, how, "resume_input")
        if not run.live:
            run.activations.append("queued")

    def requeue(self, run: Reader, messages: Iterable[Said]) -> Reader | None:
        """A run of their own for those of these messages that a new run may read; in the place of the first."""
        left = [one for one in messages if one.state == "pending" and self.may_read(one, run, "new_run")]
        if not left:
            return None
        again = Reader(left[0].position, run.agent)
        again.activations.append("queued")
        for one in left:
            one.owner, one.held = again, False
            self.told["MessageRequeued", one] += 1
        self.revision += 1
        self.readers.append(again)
        self.latest = again
        return again

    def retract(self, one: Said, reason: str, *, is_told: bool = True) -> None:
        one.state, one.reason = "retracted", reason
        if is_told:
            self.told["MessageRetracted", one] += 1

    # How a run ends.

    def unread(self, run: Reader) -> list[Said]:
        return [one for one in self.pending() if one.owner in (None, run)]

    def end(self, run: Reader, how: str, detail: str, unread: list[Said]) -> None:
        """Done. What was for it alone is retracted, the rest of what it has not read gets a run of its own."""
        was_open = self.open is run
        run.status, run.ending, run.waits, run.waited = "done", (how, detail), "", []
        run.later = run.goes_on_by_itself = run.is_overdue = False
        for ticket in run.asked:
            if ticket.status == "open":
                ticket.status = "cancelled"
        if was_open:
            self.open = None
            for one in [one for one in self.said if one.state == "pending"]:
                if one.target is run and not one.falls_back:
                    self.retract(one, "target_ended")
                    self.revision += 1
        self.requeue(run, unread)

    def drop(self, run: Reader, by: str, detail: str) -> None:
        if run.live:
            run.activations[-1] = by
        self.end(run, "cancelled", detail, [])

    def settle(self, run: Reader, status: str, how: str, detail: str = "") -> None:
        """Its claimed activation is over, and so is it."""
        run.activations[-1] = status
        self.end(run, how, detail, self.unread(run))

    def bury(self, run: Reader, detail: str) -> None:
        self.commit(run, [one for one in self.unread(run) if one.owner is run], "start")
        self.settle(run, "dead_letter", "error", detail)
