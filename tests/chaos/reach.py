"""How soon what is said, decided or asked of a running agent reaches its code. By hand: it needs an idle machine.

    python -m tests.chaos.reach [--times 100] [--slowly 10]

One worker, agents of both kinds that sleep (`ctx.sleep`) or wait for an answer. Measured from the COMMIT of the verb to
the line of the agent's code that follows it. Prints a JSON object for each verb and kind of agent: with Redis,
`--times` times one after the other; without, `--slowly` times each at moments spread over three renewals of the lease.
Exit code 1 if one is later than promised: 50 ms (p95) with Redis, a renewal without.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mailbox_app.devtools.probes import StackProcess
from tests.chaos.live import SLACK_SECONDS, Live, Watched
from tests.chaos.workers import Worker

AGENTS = {"threads": "workload.listens", "async": "workload.listens_async"}
PROMISED_SECONDS = 0.05
# A third of the default lease; the renewal itself, and who is told by it, take their time too.
RENEWAL_SECONDS = 10.0
RENEWED_SECONDS = RENEWAL_SECONDS + 1.0

Reach = Callable[[Watched, int], float]


def main(arguments: list[str]) -> int:
    """Print the figures; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.reach")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--slowly", type=int, default=10)
    given = parser.parse_args(arguments)
    os.environ["MAILBOX_EXTRA_APPS"] = "mailbox_app.devtools.workloads"
    is_late = False
    for figures in measure(times=given.times, slowly=given.slowly):
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
        is_late |= figures["p95_ms"] > 1000 * (PROMISED_SECONDS if figures["redis"] else RENEWED_SECONDS)
    return int(is_late)


def measure(*, times: int, slowly: int) -> Iterator[dict[str, Any]]:
    """The figures with Redis, then those without."""
    with tempfile.TemporaryDirectory(prefix="mailbox-reach-") as folder, contextlib.ExitStack() as stack:
        own = stack.enter_context(StackProcess("--without", "worker", "--without", "flower"))
        live = Live(own, Path(folder))
        _connect(own.environment)
        with Worker(live, "told", slots=2):
            for kind, agent in AGENTS.items():
                asked = live.submit(agent, asks=times)
                yield _figures("decide", kind, True, [_decide(asked, number) for number in range(times)])
                yield _figures("steer", kind, True, [_steer(asked, number) for number in range(times)])
                taken = [_cancel(asked, 0)]
                taken += [_cancel(_begun(live.submit(agent)), 0) for _ in range(times // 4)]
                yield _figures("cancel", kind, True, taken)
        _without_redis()
        # Agents that are not async keep a slot each; somebody must be left to claim for the others.
        with Worker(live, "renews", slots=3 * slowly + 2, MAILBOX_SETTINGS=json.dumps({"redis_url": ""})):
            yield from _spread(live, slowly)


def _spread(live: Live, count: int) -> Iterator[dict[str, Any]]:
    """Each verb on agents of its own, at moments that have nothing to do with the renewals."""
    verbs: dict[str, Reach] = {"decide": _decide, "steer": _steer, "cancel": _cancel}
    begun = [
        (verb, kind, _begun(live.submit(agent, asks=int(verb == "decide"))))
        for kind, agent in AGENTS.items()
        for verb in verbs
        for _ in range(count)
    ]
    random.shuffle(begun)
    committed = []
    for verb, kind, run in begun:
        time.sleep(random.uniform(0, 2 * 3 * RENEWAL_SECONDS / len(begun)))
        committed.append((verb, kind, run, _COMMITS[verb](run, 0)))
    taken: dict[tuple[str, str], list[float]] = {}
    for verb, kind, run, at in committed:
        taken.setdefault((verb, kind), []).append(_heard(run, verb, 0) - at)
    for (verb, kind), found in sorted(taken.items()):
        yield _figures(verb, kind, False, found)


def _figures(verb: str, kind: str, has_redis: bool, taken: list[float]) -> dict[str, Any]:
    hundredths = statistics.quantiles(taken, n=100, method="inclusive")
    shown = {f"p{at}_ms": round(1000 * hundredths[at - 1], 1) for at in (50, 95, 99)}
    return {"verb": verb, "agent": kind, "redis": has_redis, "times": len(taken), **shown}


def _begun(run: Watched) -> Watched:
    """Wait until its agent has nothing to do."""
    run.wait_said("enters", seconds=3 * SLACK_SECONDS)
    if run.row["activation"]["options"].get("asks"):
        _open_ticket(run, 0)
    time.sleep(0.1)
    return run


def _decide(run: Watched, number: int) -> float:
    at = _committed_decision(run, number)
    return _heard(run, "decide", number) - at


def _steer(run: Watched, number: int) -> float:
    if number == 0:
        time.sleep(0.2)
    at = _committed_message(run, number)
    return _heard(run, "steer", number) - at


def _cancel(run: Watched, number: int) -> float:
    at = _committed_cancel(run, number)
    return _heard(run, "cancel", number) - at


def _heard(run: Watched, verb: str, number: int) -> float:
    """When the agent's code has seen it."""
    what: dict[str, tuple[str, dict[str, Any]]] = {
        "decide": ("answered", {"text": str(number)}),
        "steer": ("heard", {"text": str(number)}),
        "cancel": ("leaves", {}),
    }
    name, facts = what[verb]
    return float(run.wait_said(name, **facts)["at"])


def _committed_decision(run: Watched, number: int) -> float:
    from mailbox_app.operations import decide

    ticket_id = _open_ticket(run, number)
    return _at_commit(
        lambda: decide.ticket(
            scope=run.row["scope"], run_id=run.run_id, ticket_id=ticket_id, action="resume", payload=str(number)
        )
    )


def _committed_message(run: Watched, number: int) -> float:
    from mailbox_app.operations import post

    scope = run.row["scope"]
    return _at_commit(lambda: post.to_run(scope=scope, run_id=run.run_id, messages=[str(number)]))


def _committed_cancel(run: Watched, _: int) -> float:
    from mailbox_app.operations import cancel

    row = run.row
    return _at_commit(lambda: cancel.run(scope=row["scope"], run_id=row["id"]))


_COMMITS: dict[str, Callable[[Watched, int], float]] = {
    "decide": _committed_decision,
    "steer": _committed_message,
    "cancel": _committed_cancel,
}


def _open_ticket(run: Watched, number: int) -> str:
    wanted = "SELECT ticket_id FROM mailbox_ticket WHERE run_id = %s AND name = %s AND status = 'open'"
    stop_at = time.monotonic() + 3 * SLACK_SECONDS
    while not (found := run.live.rows(wanted, run.run_id, f"question-{number}")):
        assert time.monotonic() < stop_at, f"question {number} is not open"
        time.sleep(0.01)
    # Its asker is about to wait.
    time.sleep(0.05)
    return str(found[0]["ticket_id"])


def _at_commit(verb: Callable[[], Any]) -> float:
    """Call it in a transaction; when that had been committed, and before anybody was told."""
    from django.db import transaction

    stamps: list[float] = []
    with transaction.atomic():
        transaction.on_commit(lambda: stamps.append(time.time()))
        verb()
    return stamps[0]


def _connect(environment: dict[str, str]) -> None:
    """Have this process's verbs write to the stack's database, and tell through its Redis."""
    os.environ.update(environment)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")
    import django

    django.setup()


def _without_redis() -> None:
    from django.conf import settings

    settings.MAILBOX = {**settings.MAILBOX, "redis_url": ""}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
