"""Measure a running stack: how fast it takes work, how fast it does it, how soon it begins.

`manage.py mailbox_bench` starts the stack and this module as a process of its own, one scenario a call:
`python -m mailbox_app.devtools.bench SCENARIO OPTIONS` prints one JSON object. The broker's signals, durable commits
and every row are real; agents do nothing.
"""

import http.client
import json
import logging
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

SCOPE = "bench"
QUEUE = "mailbox.default"
# Longer than any scenario takes on a slow machine; a stack that stands still is told, not waited for.
MOST_SECONDS = 300.0

Figures = dict[str, float]


def submit(*, count: int) -> Figures:
    """One Python client, one submission a transaction, each on a new thread; nobody works on them meanwhile."""
    from mailbox_app.operations import submit

    def one() -> None:
        submit.run(scope=SCOPE, agent="workload.parked", messages=["hello"])

    def all_of_them() -> None:
        for _ in range(count):
            one()

    return {"submits_per_second": _rate(count, all_of_them)}


def bulk(*, count: int, batch: int = 100) -> Figures:
    """One Python client, `batch` submissions a transaction."""
    from mailbox_app.operations import submit

    submissions = [{"agent": "workload.parked", "messages": ["hello"]}] * batch

    def all_of_them() -> None:
        for _ in range(max(1, count // batch)):
            submit.many(scope=SCOPE, submissions=submissions)

    return {"submits_per_second": _rate(max(1, count // batch) * batch, all_of_them)}


def http_submit(*, count: int, clients: int, url: str, token: str) -> Figures:
    """`clients` connections that POST one run after the other."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"agent": "workload.parked", "messages": [{"content": "hello"}]})
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def client(posts: int) -> list[float]:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        taken = []
        for _ in range(posts):
            began = time.monotonic()
            connection.request("POST", "/v1/runs", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 202:
                raise SystemExit(f"POST /v1/runs answered {answer.status}")
            taken.append(time.monotonic() - began)
        connection.close()
        return taken

    with ThreadPoolExecutor(clients) as pool:
        began = time.monotonic()
        taken = [one for many in pool.map(client, [count // clients] * clients) for one in many]
        seconds = time.monotonic() - began
    return {"posts_per_second": len(taken) / seconds, **_percentiles(taken)}


def drain(*, count: int, threads: int) -> Figures:
    """Runs spread over so many threads, all due before the first is claimed; from the first start to the last end."""
    from django.db import connection

    from mailbox_app import channel, hints
    from mailbox_app.operations import submit

    mark = uuid.uuid4().hex
    with channel.silenced():  # nobody is woken while the queue is filled
        for begin in range(0, count, 100):
            rows = [
                {"agent": "workload.noop", "messages": ["hello"], "thread_key": f"{mark}-{number % threads}"}
                for number in range(begin, min(count, begin + 100))
            ]
            submit.many(scope=SCOPE, submissions=rows)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    hints.fill(QUEUE, signals=8)
    _until(lambda: not _open(mark))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM max(run.finished_at) - min(run.started_at)) FROM mailbox_run AS run "
            "JOIN mailbox_thread AS thread ON thread.id = run.thread_id WHERE thread.key LIKE %s",
            [f"{mark}-%"],
        )
        seconds = float(cursor.fetchone()[0])
    return {"runs_per_second": count / seconds}


def latency(*, count: int) -> Figures:
    """An idle stack: from the call of `submit.run` to the agent's first line, one run after the other."""
    from mailbox_app.models import Run
    from mailbox_app.operations import submit

    taken: list[float] = []
    for _ in range(count):
        began = time.time()
        receipt = submit.run(scope=SCOPE, agent="workload.clock", messages=["hello"])

        def is_done(run_id: uuid.UUID = receipt.run_id) -> bool:
            return Run.objects.done().filter(pk=run_id).exists()

        time.sleep(0.02)  # asking while it begins would slow what is measured
        _until(is_done, pause=0.01)
        first_line: Any = Run.objects.values_list("final_output", flat=True).get(pk=receipt.run_id)
        taken.append(first_line - began)
    return _percentiles(taken)


def scheduled(*, count: int) -> Figures:
    """An idle stack: how long after its time a scheduled run's agent begins; one run every tenth of a second."""
    from mailbox_app.models import Run
    from mailbox_app.operations import submit

    mark, first = uuid.uuid4().hex, datetime.now(UTC) + timedelta(seconds=2)
    due = {f"{mark}-{number}": first + timedelta(seconds=0.1 * number) for number in range(count)}
    rows = [
        {"agent": "workload.clock", "messages": ["hello"], "thread_key": key, "available_at": at}
        for key, at in due.items()
    ]
    submit.many(scope=SCOPE, submissions=rows)
    _until(lambda: not _open(mark))
    begun: Any = Run.objects.filter(thread__key__startswith=f"{mark}-").values_list("thread__key", "final_output")
    taken = [at - due[key].timestamp() for key, at in begun]
    return {**_percentiles(taken), "max_ms": 1000 * max(taken)}


def waiting(*, count: int, seconds: float) -> Figures:
    """Runs of an async agent that wait for so long on the event loops: how many do at once, and how long all take."""
    from mailbox_app.models import Run
    from mailbox_app.operations import submit

    mark = uuid.uuid4().hex
    began = time.time()
    rows = [
        {"agent": "workload.idle", "messages": ["hello"], "thread_key": f"{mark}-{n}", "options": {"seconds": seconds}}
        for n in range(count)
    ]
    submit.many(scope=SCOPE, submissions=rows)
    _until(lambda: not _open(mark))
    spans: Any = Run.objects.filter(thread__key__startswith=f"{mark}-").values_list("final_output", flat=True)
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    at_once = most = 0
    for _, change in moments:
        at_once += change
        most = max(most, at_once)
    return {"most_at_once": float(most), "seconds_in_all": max(end for _, end in spans) - began}


def celery(*, count: int) -> Figures:
    """The yardstick: bare Celery tasks that do nothing and keep nothing, from the first sent to the last done."""
    from celery import current_app

    from mailbox_app.devtools.workloads.tasks import nothing

    began = time.monotonic()
    for _ in range(count):
        nothing.apply_async(queue=QUEUE)
    sent = time.monotonic() - began
    with current_app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        _until(lambda: not channel.client.llen(QUEUE), pause=0.005)
    return {"sends_per_second": count / sent, "tasks_per_second": count / (time.monotonic() - began)}


SCENARIOS: dict[str, Callable[..., Figures]] = {
    one.__name__: one for one in (submit, bulk, http_submit, drain, latency, scheduled, waiting, celery)
}


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return count / (time.monotonic() - began)


def _percentiles(taken: list[float]) -> Figures:
    """Milliseconds."""
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"p50_ms": 1000 * cuts[49], "p95_ms": 1000 * cuts[94], "p99_ms": 1000 * cuts[98]}


def _open(mark: str) -> bool:
    from mailbox_app.models import Run

    return Run.objects.not_done().filter(thread__key__startswith=f"{mark}-").exists()


def _until(condition: Callable[[], bool], *, pause: float = 0.05) -> None:
    give_up_at = time.monotonic() + MOST_SECONDS
    while not condition():
        if time.monotonic() >= give_up_at:
            raise SystemExit(f"the stack did not finish within {MOST_SECONDS:g} s")
        time.sleep(pause)


def main(name: str, options: str) -> None:
    """Run one scenario on the stack of this process's environment."""
    import django

    django.setup()
    logging.disable(logging.INFO)
    given = json.loads(options)
    warm_up = {**given, "count": min(given["count"], 2 * given.get("clients", 1))}
    if name not in ("drain", "waiting"):
        SCENARIOS[name](**{**warm_up, **({"batch": 1} if name == "bulk" else {})})
    print(json.dumps(SCENARIOS[name](**given)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
