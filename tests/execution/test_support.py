"""The example agent `support`: what it tells, asks and pays, steered, answered and broken off."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import testing
from mailbox_app.errors import InvalidInput
from mailbox_app.execution import Context
from mailbox_app.models import Event, JournalEntry, Message, Run, Thread, Ticket
from mailbox_app.operations import cancel, children, decide, post, tick
from mailbox_app.testing import Mailbox
from mailbox_project import support

TOLD = [
    "Order A-10420 is 1 wool rug for 189.00 EUR.",
    "It was placed from AT on 2 September 2026.",
    "One costs 210.00 EUR, which makes 189.00 EUR with the coupon WELCOME10.",
]
ANNOUNCED = (
    "189.00 EUR for order A-10420 are above the 50.00 EUR that I may refund by myself. "
    "I am asking somebody who may decide."
)


@pytest.fixture(autouse=True)
def _speaks_at_once(settings: Any) -> None:
    settings.MAILBOX_SUPPORT_WORD_SECONDS = 0


@pytest.fixture
def say(mailbox: Mailbox) -> Callable[..., Run]:
    """Say something to the one customer's thread, and let it be answered as far as it goes."""

    def say(*texts: str) -> Run:
        run = mailbox.submit(*texts, agent="support", thread_key="customer")
        mailbox.run_until_idle()
        return run

    return say


@pytest.fixture
def at_word(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Context], None]], list[str]]:
    """Do something in the moment the agent first speaks a word; returns the words since."""

    def at_word(word: str, act: Callable[[Context], None]) -> list[str]:
        spoken: list[str] = []
        delta = Context.delta

        def heard(ctx: Context, text: str) -> None:
            delta(ctx, text)
            is_first = text.strip() == word and text.strip() not in spoken
            spoken.append(text.strip())
            if is_first:
                act(ctx)

        monkeypatch.setattr(Context, "delta", heard)
        return spoken

    return at_word


def steer(text: str) -> Callable[[Context], None]:
    def steered(ctx: Context) -> None:
        post.to_thread(
            scope="test", thread_id=ctx.thread_id, messages=[text], if_active="steer", origin="test", by="test"
        )

    return steered


def answer(run: Run, **given: Any) -> None:
    ticket = Ticket.objects.open().get(run_id=run.pk, name="approve-refund")
    decide.ticket(scope="test", run_id=run.pk, ticket_id=ticket.ticket_id, **given)


def paid(run: Run) -> list[dict[str, str]]:
    events = Event.objects.filter(thread=run.thread_id, kind="RefundPaid").order_by("cursor")
    return list(events.values_list("payload", flat=True))


def log(run: Run) -> list[str]:
    return [message.text for message in Message.objects.filter(thread=run.thread_id).committed().in_order()]


def test_an_order_is_told_word_by_word(say: Callable[..., Run], mailbox: Mailbox) -> None:
    run = say("Tell me about a-10420")
    told = testing.assert_run_finished(run).final_output
    assert isinstance(told, str)
    assert told.startswith(" ".join(TOLD))
    assert "".join(mailbox.streamed(run)) == told
    assert len(mailbox.streamed(run)) == len(told.split())


@pytest.mark.parametrize(
    ("text", "beginning"),
    [("Hello!", "I look after the orders"), ("Tell me about A-99999", "I find no order A-99999. I look after")],
)
def test_who_names_no_order_is_told_how_to(say: Callable[..., Run], text: str, beginning: str) -> None:
    assert str(testing.assert_run_finished(say(text)).final_output).startswith(beginning)


def test_the_orders_it_says_it_has_are_those_of_the_file() -> None:
    numbers = sorted(support._orders())
    assert f"the orders {numbers[0]} to {numbers[-1]}." in support._HELP[0]
    assert len(numbers) == int(numbers[-1][2:]) - int(numbers[0][2:]) + 1


def test_a_small_refund_is_paid_at_once_and_once(say: Callable[..., Run]) -> None:
    say("Tell me about A-10424, in short")
    run = say("Refund it")
    testing.assert_run_finished(run, output="Done: 24.50 EUR of order A-10424 go back to the customer.")
    again = say("Refund it, please")
    testing.assert_run_finished(again, output="24.50 EUR of order A-10424 were refunded already.")
    assert paid(run) == [{"order": "A-10424", "amount": "24.50"}]
    assert not Ticket.objects.exists()


def test_a_part_of_an_order_can_be_refunded(say: Callable[..., Run]) -> None:
    assert paid(say("Refund 30,5 of A-10420")) == [{"order": "A-10420", "amount": "30.50"}]


def test_nobody_gets_more_than_was_paid(say: Callable[..., Run]) -> None:
    assert paid(say("Refund 1000 of A-10424")) == [{"order": "A-10424", "amount": "24.50"}]


def test_a_large_refund_waits_for_approval_and_pays_what_was_approved(
    say: Callable[..., Run], mailbox: Mailbox
) -> None:
    run = say("Refund A-10420")
    testing.assert_waiting(run, "tool_permission")
    assert log(run) == ["Refund A-10420", ANNOUNCED]
    assert paid(run) == []
    answer(run, action="resume", payload={"approved": True, "amount": 120})
    mailbox.run_until_idle()
    testing.assert_run_finished(run)
    assert log(run)[2] == "Done: 120.00 EUR of order A-10420 go back to the customer."
    assert paid(run) == [{"order": "A-10420", "amount": "120.00"}]
    assert mailbox.streamed(run).count("189.00") == 1, "what was announced before the question is not spoken again"


def test_a_child_writes_the_letter_on_a_thread_of_its_own(say: Callable[..., Run], mailbox: Mailbox) -> None:
    run = say("Refund A-10420")
    answer(run, action="resume", payload={"approved": True, "amount": 120, "note": "Please keep the rug."})
    mailbox.run_until_idle()
    child = Run.objects.get(parent_run_id=run.pk)
    assert child.thread_id != run.thread_id
    written = str(testing.assert_run_finished(child).final_output)
    assert "wool rug, order A-10420 of 2 September 2026" in written
    assert "120.00 EUR back to you, the same way as you paid. Please keep the rug." in written
    assert "".join(mailbox.streamed(child)) == written
    testing.assert_run_finished(run, output=f"This is the letter for the customer:\n\n{written}")


def test_who_waits_for_the_letter_keeps_no_worker(say: Callable[..., Run], mailbox: Mailbox) -> None:
    run = say("Refund A-10420")
    answer(run, action="resume", payload={"approved": True})
    mailbox.run_until_idle(agents=["support"])
    assert (testing.assert_waiting(run, "background_tasks").waiting or {})["message"] == "the letter is being written"
    child = Run.objects.get(parent_run_id=run.pk)
    cancel.run(scope="test", run_id=child.pk)
    mailbox.run_until_idle()
    said = "The letter for the customer could not be written; please write it by hand."
    testing.assert_run_finished(run, output=said)


def test_who_stops_the_refund_stops_the_letter(say: Callable[..., Run], mailbox: Mailbox) -> None:
    run = say("Refund A-10420")
    answer(run, action="resume", payload={"approved": True})
    mailbox.run_until_idle(agents=["support"])
    cancel.run(scope="test", run_id=run.pk)
    # In a transaction of the test's own nothing is told after a commit.
    assert children.batch() == 1
    mailbox.run_until_idle()
    child = Run.objects.get(parent_run_id=run.pk)
    assert (child.status, child.termination) == ("done", {"type": "cancelled", "detail": "parent_cancelled"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"action": "cancel"}, "I am sorry: the refund of order A-10420 was not approved."),
        (
            {"action": "resume", "payload": {"approved": False, "note": "Used for a year."}},
            "I am sorry: the refund of order A-10420 was not approved. The reason given: Used for a year.",
        ),
    ],
)
def test_a_refused_refund_pays_nothing(
    say: Callable[..., Run], mailbox: Mailbox, given: dict[str, Any], said: str
) -> None:
    run = say("Refund A-10420")
    answer(run, **given)
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output=said)
    assert paid(run) == []


def test_an_approval_that_never_came_pays_nothing(say: Callable[..., Run], mailbox: Mailbox) -> None:
    run = say("Refund A-10420")
    Ticket.objects.update(expires_at=Now() - timedelta(seconds=1))
    assert tick.expire_tickets() == 1
    mailbox.run_until_idle()
    assert str(testing.assert_run_finished(run).final_output).startswith("Nobody could look at order A-10420 in time")
    assert paid(run) == []


@pytest.mark.parametrize("amount", [0, -5, 189.01, "100"])
def test_an_approval_of_more_than_was_paid_is_refused(say: Callable[..., Run], amount: object) -> None:
    run = say("Refund A-10420")
    with pytest.raises(InvalidInput):
        answer(run, action="resume", payload={"approved": True, "amount": amount})
    testing.assert_waiting(run)


def test_who_steers_in_mid_answer_is_answered_next(say: Callable[..., Run], at_word: Any, mailbox: Mailbox) -> None:
    at_word("placed", steer("Rather refund 20 of it"))
    run = say("Tell me about A-10420", "And about A-10424, in short")
    assert log(run) == [
        "Tell me about A-10420",
        "And about A-10424, in short",
        "Rather refund 20 of it",
        f"{TOLD[0]} {TOLD[1]} — You say “Rather refund 20 of it”: I come to that now.",
        "Done: 20.00 EUR of order A-10420 go back to the customer.",
        "Order A-10424 is 1 cushion for 24.50 EUR.",
    ]
    testing.assert_run_finished(run)
    assert Run.objects.filter(thread=run.thread_id).count() == 1


def test_what_is_steered_after_the_last_word_is_the_next_turn(say: Callable[..., Run], at_word: Any) -> None:
    at_word("A-10424.", lambda ctx: None)
    run = say("Tell me about A-10424, in short")
    thread = Thread.objects.get(pk=run.thread_id)
    post.to_thread(
        scope="test", thread_id=thread.pk, messages=["Refund it"], if_active="steer", origin="test", by="test"
    )
    testing.run_until_idle()
    assert paid(run) == [{"order": "A-10424", "amount": "24.50"}]


SCRIPT = ("Tell me about A-10420", "Then refund A-10426, please")
STEERED = "Rather refund 20 of it"


def whole(mailbox: Mailbox, customer: str) -> tuple[list[str], list[dict[str, str]], dict[str, Any]]:
    """Have it tell, be steered, pay, ask, be answered and pay: what is left in the rows.

    How far it had got in its telling when it heard the steering is no promise, that it told and heard once is one.
    """
    run = mailbox.submit(*SCRIPT, agent="support", thread_key=customer)
    mailbox.run_until_idle()
    testing.assert_waiting(run, "tool_permission")
    answer(run, action="resume", payload={"approved": True})
    mailbox.run_until_idle()
    state = testing.assert_run_finished(run).state
    steps = JournalEntry.objects.filter(run_id=run.pk, verb="step", name="refund").count()
    assert steps == 2
    assert Run.objects.filter(parent_run_id=run.pk).count() == 1
    ending = f"— You say “{STEERED}”: I come to that now."
    said = ["telling" if TOLD[0] in text and text.endswith(ending) else text for text in log(run)]
    return said, paid(run), state


def test_whenever_its_worker_is_lost_the_same_comes_of_it(
    mailbox: Mailbox, at_word: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = at_word("placed", steer(STEERED))
    expected = whole(mailbox, "undisturbed")
    assert (expected[0].count(STEERED), expected[0].count("telling")) == (1, 1)
    assert [one["amount"] for one in expected[1]] == ["20.00", "210.00"]
    many, delta = len(spoken), Context.delta
    for number in range(1, many + 1, 12):
        spoken.clear()
        count = iter(range(1, 10_000))

        def lost(ctx: Context, text: str, number: int = number, count: Iterator[int] = count) -> None:
            delta(ctx, text)
            if next(count) == number:
                raise ConnectionError("the worker is gone")

        monkeypatch.setattr(Context, "delta", lost)
        assert whole(mailbox, f"lost {number}") == expected, f"lost at word {number}"
        assert len(spoken) > many, "it was not lost at all"
