"""Submitters meet submitters and claimers on one thread, from several processes: order, numbers, one owner."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from mailbox_app.errors import DuplicateKey, MailboxFull
from mailbox_app.models import Dispatch, Event, Message, Run, Thread
from mailbox_app.operations import recover, submit
from tests.operations import scene
from tests.races.actors import Process, crew, processes

pytestmark = pytest.mark.django_db(transaction=True)

RUNS, SUBMITTERS = 64, 4


def test_64_concurrent_submits_are_done_in_order_without_gap_one_owner_at_a_time() -> None:
    each = RUNS // SUBMITTERS
    submitters = [Process("submit_many", key="order 17", name=f"s{n}", count=each) for n in range(SUBMITTERS)]
    drainers = [Process("drain", worker=f"d{n}@here:{n}", runs=RUNS) for n in range(2)]
    with processes(*submitters, *drainers):
        for process in (*submitters, *drainers):
            process.tell()
        accepted = [process.lines() for process in submitters]
        worked = sorted((entry for process in drainers for entry in process.lines()), key=lambda entry: entry[1])

    assert Thread.objects.count() == 1, "a key is made once"
    order = [str(run) for run in Run.objects.order_by("order").values_list("pk", flat=True)]
    assert [len(runs) for runs in accepted] == [each] * SUBMITTERS
    assert sorted(run for runs in accepted for run in runs) == sorted(order)
    for runs in accepted:
        assert sorted(runs, key=order.index) == runs, "each process's own order was kept"
    # One owner at a time: by fence, each began after the one before had ended.
    assert [(run, fence) for run, fence, _, _ in worked] == list(zip(order, range(1, RUNS + 1), strict=True))
    assert all(before[3] <= after[2] for before, after in pairwise(worked))
    # Numbers: every question and every answer, no gap, each question read by its own run, in order.
    log = scene.log(Run.objects.all()[0])
    assert [(seq, role) for seq, role, _ in log] == list(enumerate(["user", "assistant"] * RUNS, start=1))
    assert [content for _, _, content in log[::2]] == [content for _, _, content in log[1::2]]
    asked = Message.objects.filter(role="user").order_by("seq").values_list("run_id", flat=True)
    assert [str(run) for run in asked] == order
    # Events: gap-free cursors, one of the thread and four a run.
    cursors = Event.objects.order_by("cursor").values_list("cursor", flat=True)
    assert list(cursors) == list(range(1, 4 * RUNS + 2))
    assert set(Dispatch.objects.values_list("status", "attempt_count", "lost_count")) == {("acked", 0, 0)}
    assert recover.repair() == 0


def test_a_thread_key_is_made_once_by_whoever_comes_first() -> None:
    with crew(4) as together:
        for number in range(3):
            post = partial(scene.post, thread_key=f"order {number}")
            assert len({receipt.thread_id for receipt in together(*[post] * 4)}) == 1
    assert (Thread.objects.count(), Run.objects.count()) == (3, 12)
    assert scene.kinds(Run.objects.all()[0]) == ["ThreadCreated", *["RunQueued"] * 4]


def test_a_dedupe_key_is_given_once_and_the_others_are_told_to_whom() -> None:
    def post() -> str:
        try:
            return str(scene.post(dedupe_key="invoice 1").run_id)
        except DuplicateKey as refused:
            return f"held by {refused.facts['run_id']}"

    with crew(4) as together:
        answers = together(*[post] * 4)
    (holder,) = Run.objects.values_list("pk", flat=True)
    assert sorted(answers) == sorted([str(holder), *[f"held by {holder}"] * 3])
    assert Thread.objects.count() == 1


def test_callers_at_the_same_time_never_overfill_a_bounded_mailbox(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_queued_per_thread": 5}

    def post(key: str) -> int:
        try:
            scene.post(thread_key=key)
        except MailboxFull:
            return 0
        return 1

    def batch(key: str) -> int:
        one = {"messages": ["hello"], "agent": "echo", "thread_key": key}
        try:
            return len(submit.many(scope=scene.SCOPE, submissions=[one, one]))
        except MailboxFull:
            return 0

    with crew(6) as together:
        for number in range(5):
            accepted = sum(together(*[partial(post, f"k{number}")] * 3, *[partial(batch, f"k{number}")] * 3))
            assert Run.objects.filter(thread__key=f"k{number}").count() == accepted
            assert accepted in (4, 5), "as much as fits, whoever came first"
            assert accepted == 5 or post(f"k{number}") == 1
