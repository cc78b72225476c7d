"""What is counted of one activation, by how it ends; and that nothing is counted which did not happen."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction

from mailbox_app import metrics
from mailbox_app.errors import Permanent, Transient
from mailbox_app.execution import Context
from mailbox_app.operations import recover, settle
from mailbox_app.tally import tally
from tests.execution.conftest import Perform
from tests.operations import scene

pytestmark = pytest.mark.django_db(transaction=True)

Counts = dict[tuple[str, ...], float]


@pytest.fixture
def counted(settings: Any) -> Iterator[Callable[[], Counts]]:
    """Counters and the counts of histograms since the test began: {(name, label value, …): count}, zeros left out."""
    tally.close()
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": ""}

    def now() -> Counts:
        samples = [sample for family in metrics.counted() for sample in family.samples]
        kept = [s for s in samples if s.name.endswith(("_total", "_count")) and s.value]
        return {(s.name.removeprefix("mailbox_"), *s.labels.values()): s.value for s in kept}

    yield now
    tally.close()


def _raise(error: Exception) -> Callable[[Context], None]:
    def agent(ctx: Context) -> None:
        raise error

    return agent


BEGUN = {
    ("runs_submitted_total", "probe", "mailbox.default"): 1,
    ("claims_total", "probe", "mailbox.default"): 1,
    ("enqueue_to_start_seconds_count", "probe"): 1,
}


@pytest.mark.parametrize(
    ("agent", "options", "outcome", "counter"),
    [
        (lambda ctx: None, {}, "natural_end", None),
        (_raise(Transient()), {}, "retry", "retries_total"),
        (_raise(Transient()), {"max_attempts": 1}, "dead_letter", "dead_letters_total"),
        (_raise(Permanent()), {}, "dead_letter", "dead_letters_total"),
    ],
    ids=["natural end", "retry", "attempts used up", "permanent"],
)
def test_an_activation_is_counted_once_by_its_outcome(
    agent: Any,
    options: dict[str, Any],
    outcome: str,
    counter: str | None,
    counted: Callable[[], Counts],
    perform: Perform,
) -> None:
    perform(agent, **options)
    ended = {("start_to_complete_seconds_count", "probe", outcome): 1}
    assert counted() == {**BEGUN, **ended, **({(counter, "probe"): 1} if counter else {})}


def test_a_lost_lease_and_a_refused_settle_are_counted(counted: Callable[[], Counts], perform: Perform) -> None:
    def agent(ctx: Context) -> None:
        scene.Dispatch.objects.filter(pk=ctx.dispatch_id).update(lease_until=scene.Now() - scene.timedelta(seconds=1))
        assert recover.reclaim() == 1

    perform(agent)
    assert counted() == {
        **BEGUN,
        ("leases_lost_total", "probe"): 1,
        ("start_to_complete_seconds_count", "probe", "lease_lost"): 1,
        ("settles_refused_total",): 1,
    }


def test_a_claim_that_is_handed_back_is_counted(counted: Callable[[], Counts]) -> None:
    scene.post()
    assert settle.hand_back(tokens=[scene.taken().token]) == 1
    assert counted()["hand_backs_total", "echo"] == 1


def test_waiting_is_measured_from_when_the_work_could_start(counted: Callable[[], Counts]) -> None:
    posted = scene.post()
    scene.Dispatch.objects.filter(pk=posted.dispatch_id).update(available_at=scene.Now() - scene.timedelta(seconds=20))
    scene.taken()
    [family] = [one for one in metrics.counted() if one.name == "mailbox_enqueue_to_start_seconds"]
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (buckets["10.0"], buckets["30.0"], buckets["+Inf"]) == (0, 1, 1)
    [total] = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert 20 <= total < 30


def test_what_was_rolled_back_is_not_counted(counted: Callable[[], Counts]) -> None:
    with transaction.atomic():
        scene.post()
        assert counted() == {}
        transaction.set_rollback(True)
    assert counted() == {}
    with transaction.atomic():
        scene.post()
    assert counted() == {("runs_submitted_total", "echo", "mailbox.default"): 1}
