"""Submitters meet submitters and claimers on one thread, from several processes: order, numbers, one owner."""

from itertools import pairwise

import pytest

from mailbox_app.models import Dispatch, Event, Message, Run
from mailbox_app.operations import recover
from tests.operations import scene
from tests.races.actors import Process, processes

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = 64


def test_64_concurrent_submits_are_done_in_order_without_gap_one_owner_at_a_time() -> None:
    thread_id = scene.post("the first").thread_id
    submitters = [Process("submit_many", thread_id=str(thread_id), name=f"s{n}", count=21) for n in range(3)]
    drainers = [Process("drain", worker=f"d{n}@here:{n}", runs=RUNS) for n in range(3)]
    with processes(*submitters, *drainers):
        for process in (*submitters, *drainers):
            process.tell()
        accepted = [process.lines() for process in submitters]
        worked = sorted((entry for process in drainers for entry in process.lines()), key=lambda entry: entry[1])

    assert [len(runs) for runs in accepted] == [21, 21, 21]
    order = list(Run.objects.order_by("order").values_list("pk", flat=True))
    assert len(order) == RUNS
    for runs in accepted:
        assert sorted(runs, key=[str(pk) for pk in order].index) == runs, "each process's own order was kept"
    # One owner at a time: by fence, each began after the one before had ended.
    assert [fence for _, fence, _, _ in worked] == list(range(1, RUNS + 1))
    assert [run for run, _, _, _ in worked] == [str(pk) for pk in order]
    assert all(before[3] <= after[2] for before, after in pairwise(worked))
    # Numbers: every question and every answer, no gap, each run's answer right behind its question.
    log = scene.log(Run.objects.all()[0])
    assert [seq for seq, _, _ in log] == list(range(1, 2 * RUNS + 1))
    assert [role for _, role, _ in log] == ["user", "assistant"] * RUNS
    assert [content for _, _, content in log[::2]] == [content for _, _, content in log[1::2]]
    asked = Message.objects.filter(role="user").order_by("seq").values_list("run_id", flat=True)
    assert list(asked) == order
    # Events: gap-free cursors, four a run and one of the thread.
    cursors = list(Event.objects.order_by("cursor").values_list("cursor", flat=True))
    assert cursors == list(range(1, 4 * RUNS + 2))
    assert set(Dispatch.objects.values_list("status", "attempt_count", "lost_count")) == {("acked", 0, 0)}
    assert recover.repair() == 0


def test_a_thread_key_is_made_once_by_whoever_comes_first() -> None:
    made = [Process("submit_by_key", key="order-17") for _ in range(4)]
    with processes(*made):
        for process in made:
            process.tell()
        ids = {process.lines()[0] for process in made}
    assert len(ids) == 1
    assert Run.objects.count() == 4
    assert set(Run.objects.values_list("thread__key", flat=True)) == {"order-17"}
    assert scene.kinds(Run.objects.all()[0]).count("ThreadCreated") == 1
