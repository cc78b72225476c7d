"""Hundreds of clients of one web process, for as long as you like, while whatever there is is killed; and figures."""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.chaos import storms
from tests.chaos.audience import Drop, Viewer, any_drop, faults, table, till
from tests.chaos.live import RECOVERED_SECONDS, SLACK_SECONDS, Live

# Threads on which runs follow each other, and threads on which nothing happens after their first run.
BUSY, QUIET = 10, 10
# Of one run: it lasts about so many seconds.
EVENTS, RATE = 60, 10
# A client that has followed something so long goes over to something else.
STAYS_SECONDS = (8.0, 40.0)
BLOWS_SECONDS = (3.0, 9.0)
# The web process is not killed any more in the last part, so that its memory can be told at both ends of that.
KILLS_UNTIL = 0.4


@dataclass
class Soak:
    """One soak: who looks, what is done to the stack, and what was seen of the web process."""

    live: Live
    clients: int
    seconds: float
    seed: int
    viewers: list[Viewer] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)
    threads: list[str] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)
    _began: float = 0.0
    _is_over: bool = False
    # Of each thread: its id by its key, and in the end its last public event.
    _ids: dict[str, str] = field(default_factory=dict)
    _heads: dict[str, int] = field(default_factory=dict)

    async def run(self) -> dict[str, Any]:
        """Soak, let everybody catch up, judge; returns the figures. Raises AssertionError for what was told wrongly."""
        self._began = time.monotonic()
        self.threads = [f"soak-{number}" for number in range(BUSY + QUIET)]
        for key in self.threads:
            await self._submit(key, random.Random(f"{self.seed} {key}"))
        background = [asyncio.create_task(work) for work in (self._feed(), self._strike(), self._measure())]
        clients = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        await asyncio.sleep(self.seconds)
        self._is_over = True
        await asyncio.gather(*background)
        soaked = time.monotonic() - self._began
        assert await till(self._are_done, RECOVERED_SECONDS + 4 * SLACK_SECONDS), "runs go on without an end"
        rows = await asyncio.to_thread(table, self.live)
        # Clients of threads, which have no end, leave once they have the last event there is.
        self._heads = {thread: events[-1][0] for thread, events in rows.items()}
        await asyncio.wait_for(asyncio.gather(*clients), 4 * SLACK_SECONDS)
        found = faults(self.viewers, rows)
        assert found == [], (len(found), sorted(set(found))[:10])
        return self._figures(soaked, rows)

    @property
    def quiet_thread(self) -> str:
        """On which nothing happens any more."""
        return self._ids[self.threads[-1]]

    async def _client(self, number: int) -> None:
        dice = random.Random(f"{self.seed} client {number}")
        await asyncio.sleep(dice.uniform(0.0, 2.0))
        while not self._is_over:
            viewer = self._viewer(dice)
            self.viewers.append(viewer)
            leaves_at = time.monotonic() + dice.uniform(*STAYS_SECONDS)

            def goes_on(viewer: Viewer = viewer, leaves_at: float = leaves_at) -> bool:
                if not self._is_over:
                    return time.monotonic() < leaves_at
                # Whoever is there at the end stays until all was told.
                head = self._heads.get(viewer.thread_id)
                return head is None or viewer.last is None or viewer.last < head

            def drop(_: Viewer) -> Drop | None:
                return None if self._is_over else any_drop(dice)

            await viewer.watch(goes_on, drop)
            if viewer.last is not None and self._heads.get(viewer.thread_id) == viewer.last:
                viewer.has_left = False

    def _viewer(self, dice: random.Random) -> Viewer:
        key = dice.choice(self.threads)
        match dice.choice(("thread", "thread", "run", "post")):
            case "run":
                return Viewer(self.live, run_id=self.runs[key])
            case "post":
                return Viewer(self.live, body=self._body(f"posted-{dice.randrange(BUSY)}", dice, count=20))
        return Viewer(self.live, thread_id=self._ids[key])

    def _body(self, key: str, dice: random.Random, *, count: int = 0) -> dict[str, Any]:
        options = {"count": count or dice.randint(EVENTS // 2, EVENTS), "rate": RATE}
        return {"agent": "streamer", "thread_key": key, "messages": [{"content": "go"}], "options": options}

    async def _submit(self, key: str, dice: random.Random) -> None:
        with contextlib.suppress(OSError):  # the next round does it
            answer = await asyncio.to_thread(self.live.stack.request, "POST", "/v1/runs", body=self._body(key, dice))
            if answer.status == 202:
                self.runs[key], self._ids[key] = answer.json["run_id"], answer.json["thread_id"]

    async def _feed(self) -> None:
        """A busy thread whose run has ended gets another one."""
        dice = random.Random(f"{self.seed} feed")
        while not self._is_over:
            with contextlib.suppress(psycopg.Error):
                idle = await asyncio.to_thread(
                    self.live.rows,
                    "SELECT key FROM mailbox_thread AS thread WHERE key = ANY(%s) AND NOT EXISTS "
                    "(SELECT FROM mailbox_run WHERE thread_id = thread.id AND status <> 'done')",
                    self.threads[:BUSY],
                )
                for row in idle:
                    await self._submit(row["key"], dice)
            await asyncio.sleep(0.3)

    async def _strike(self) -> None:
        dice = random.Random(f"{self.seed} blows")
        while not self._is_over:
            await asyncio.sleep(dice.uniform(*BLOWS_SECONDS))
            is_early = time.monotonic() - self._began < KILLS_UNTIL * self.seconds
            what = dice.choice(("redis", "pause", "worker", "backends", *(("web", "stop") if is_early else ())))
            with contextlib.suppress(psycopg.Error, redis.RedisError, OSError, AssertionError):
                await asyncio.to_thread(self._blow, what, dice)
                self.blows[what] += 1

    def _blow(self, what: str, dice: random.Random) -> None:
        match what:
            case "pause":
                storms.pause_redis(self.live, dice.uniform(0.5, 3.0))
            case "backends":
                storms.terminate_backends(self.live)
            case "stop":  # in order, as a deployment does it
                self.live.stack.kill("web", signal.SIGTERM)
            case _:
                self.live.stack.kill(what, signal.SIGKILL)

    async def _measure(self) -> None:
        """The web process's memory, while nobody kills it any more."""
        while not self._is_over:
            pid = self.live.stack.pid("web")
            if pid is not None and time.monotonic() - self._began > (KILLS_UNTIL + 0.1) * self.seconds:
                with contextlib.suppress(OSError, ValueError):
                    self.memory.append(resident_mib(pid))
            await asyncio.sleep(1.0)

    async def _are_done(self) -> bool:
        def look() -> bool:
            with contextlib.suppress(psycopg.Error):
                return bool(
                    self.live.rows("SELECT count(*) = 0 AS done FROM mailbox_run WHERE status <> 'done'")[0]["done"]
                )
            return False

        return await asyncio.to_thread(look)

    def _figures(self, soaked: float, rows: dict[str, Any]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for viewer in self.viewers:
            counts += viewer.counts
        told = sum(len(viewer.told) for viewer in self.viewers)
        return {
            "seed": self.seed,
            "seconds": round(soaked, 1),
            "clients": self.clients,
            "followed": len(self.viewers),
            "to the end": sum(not viewer.has_left for viewer in self.viewers),
            "public events": sum(len(events) for events in rows.values()),
            "events told": told,
            "events told a second": round(told / soaked),
            "blows": dict(sorted(self.blows.items())),
            "web MiB at 50 %": self.memory[0] if self.memory else None,
            "web MiB most": max(self.memory, default=None),
            "web MiB at the end": self.memory[-1] if self.memory else None,
            **dict(sorted(counts.items())),
        }


@dataclass(frozen=True)
class Held:
    """What a web process holds: of itself, of Redis and of PostgreSQL."""

    threads: int
    files: int
    topics: tuple[str, ...]
    listeners: int
    in_transaction: int


def held(live: Live) -> Held:
    pid = live.stack.pid("web")
    assert pid is not None
    with storms.client(live) as one:
        topics = sorted(str(topic) for topic in one.pubsub_channels("mailbox:run:*"))
        [(_, listeners)] = one.pubsub_numsub("mailbox:events")
    [row] = live.rows(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
        "AND state <> 'idle' AND xact_start < clock_timestamp() - interval '5 seconds'"
    )
    return Held(
        threads=len(os.listdir(f"/proc/{pid}/task")),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        topics=tuple(topics),
        listeners=int(listeners),
        in_transaction=int(row["count"]),
    )


@contextlib.contextmanager
def one_listener(live: Live, thread_id: str) -> Iterator[None]:
    """A client of a quiet thread inside the block: whatever the process still hears beside it was left behind."""
    is_over = False

    async def watch() -> None:
        await Viewer(live, thread_id=thread_id).watch(lambda: not is_over, lambda _: None)

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    try:
        yield
    finally:
        is_over = True
        thread.join(SLACK_SECONDS)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024, 1)
