"""The runs of `python -m tests.scale.streams`: agents that emit, in a process of their own, with their commits' times.

    python -m tests.scale.speaking --runs 50 --rate 10 --seconds 20

Prints one JSON object when all runs are claimed (`threads`), waits for a line, emits, and prints another: the commits
as (thread id, last cursor, seconds since the epoch), how many transactions they were, and the cursors before.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
import uuid
from typing import Any


def main(arguments: list[str]) -> None:
    """Play a worker with so many runs, each of which emits `rate` events a second."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale.speaking")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")
    import django

    django.setup()
    speak(given.runs, given.rate, given.seconds)


def speak(runs: int, rate: float, seconds: float) -> None:
    """Claim, say so, wait to be told, emit, and tell."""
    from mailbox_app.execution import AsyncContext, registry, runner
    from mailbox_app.execution.lease import LeaseKeeper
    from mailbox_app.models import Thread
    from mailbox_app.models.thread import recorded
    from mailbox_app.operations import claim, submit

    commits: list[tuple[str, int, float]] = []
    sent: list[int] = []
    may_begin, are_over = threading.Event(), threading.Semaphore(0)

    def note(*, cursors: dict[uuid.UUID, int], **_: Any) -> None:
        now = time.time()
        sent.append(len(cursors))
        commits.extend((str(thread_id), cursor, now) for thread_id, cursor in cursors.items())

    async def speaker(ctx: AsyncContext) -> None:
        while not may_begin.is_set():
            await asyncio.sleep(0.05)
        # Agents are not in step with one another.
        await asyncio.sleep(int(ctx.run_id[-4:], 16) / 0xFFFF / rate)
        began, number = time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            await ctx.aemit("Told", {"number": number, "text": "what a step of an agent has found, in some words"})
            number += 1
            await asyncio.sleep(max(0.0, began + number / rate - now))

    registry.agent("speaker", timeout_seconds=3600)(speaker)
    threads = [submit.run(scope="default", agent="speaker", messages=["go"]).thread_id for _ in range(runs)]
    claims: list[Any] = []
    while len(claims) < runs:
        tokens = [uuid.uuid4() for _ in range(min(32, runs - len(claims)))]
        claims += claim.due(queue="mailbox.default", agents=["speaker"], worker="s@here:1", tokens=tokens).claims
    keeper = LeaseKeeper(lambda tokens: claim.renew(tokens=tokens))
    seats = runner.Places("seat", lambda: runs + 1, on_worn=lambda reason: None)
    for one in claims:
        seats.take()
        runner.begin(one, keeper=keeper, places=seats, on_end=are_over.release)
    before = {str(pk): cursor for pk, cursor in Thread.objects.filter(pk__in=threads).values_list("pk", "last_cursor")}
    tell({"threads": [str(thread_id) for thread_id in threads]})
    sys.stdin.readline()
    recorded.connect(note)
    may_begin.set()
    for _ in claims:
        are_over.acquire()
    tell({"commits": commits, "transactions": len(sent), "before": before})


def tell(facts: dict[str, Any]) -> None:
    """One line for who measures."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
