"""The assertions of `mailbox_app.testing`: each can fail, and says what it found."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from mailbox_app import testing
from mailbox_app.errors import Permanent
from mailbox_app.execution import Context, Question
from mailbox_app.models import Run
from mailbox_app.operations import submit
from mailbox_app.testing import Mailbox
from tests import given

pytestmark = pytest.mark.django_db


@pytest.fixture
def finished(mailbox: Mailbox, registered_agent: Callable[..., str]) -> Run:
    def agent(ctx: Context) -> str:
        ctx.emit("Found")
        ctx.say("one moment")
        return "done"

    registered_agent(agent)
    run = mailbox.submit("go", agent="probe")
    mailbox.run_until_idle()
    return run


@pytest.fixture
def buried(mailbox: Mailbox, registered_agent: Callable[..., str]) -> Run:
    def agent(ctx: Context) -> None:
        raise Permanent("no such order")

    registered_agent(agent, name="buries")
    run = mailbox.submit("go", agent="buries")
    mailbox.run_until_idle()
    return run


def test_a_finished_run_is_known_by_row_receipt_and_id(finished: Run) -> None:
    receipt = submit.Receipt(
        thread_id=finished.thread_id, run_id=finished.pk, dispatch_id=uuid.uuid4(), message_ids=[], status="created"
    )
    for run in (finished, receipt, finished.pk, str(finished.pk)):
        assert testing.assert_run_finished(run, "done").status == "done"
    for thread in (finished.thread, finished, receipt, finished.thread_id, str(finished.thread_id)):
        assert [one.seq for one in testing.assert_said(thread, ["one moment", "done"])] == [2, 3]


def test_another_output_is_told(finished: Run) -> None:
    with pytest.raises(AssertionError, match=r"^the run's output is 'done', not 'gone'$"):
        testing.assert_run_finished(finished, output="gone")
    with pytest.raises(AssertionError, match=r"^the run's output is 'done', not None$"):
        testing.assert_run_finished(finished, output=None)


def test_an_unfinished_run_is_described(buried: Run) -> None:
    with pytest.raises(AssertionError) as caught:
        testing.assert_run_finished(buried)
    assert str(caught.value) == (
        f"the run has not finished: run {buried.pk}: status 'done', agent 'buries', "
        "termination {'type': 'error', 'detail': 'permanent'}, "
        "error {'code': 'permanent', 'message': 'Permanent: no such order'}, dispatch 'dead_letter', attempts 1, "
        "last_error 'permanent: Permanent: no such order'; events RunQueued, RunStarted, RunErrored"
    )


def test_a_dead_letter_has_its_code(buried: Run, finished: Run) -> None:
    assert testing.assert_dead_letter(buried).status == "dead_letter"
    assert testing.assert_dead_letter(buried, code="permanent").attempt_count == 1
    with pytest.raises(AssertionError, match=r"^the dead letter's code is 'permanent', not 'other': run "):
        testing.assert_dead_letter(buried, code="other")
    with pytest.raises(AssertionError, match=r"^the run is no dead letter: run .* dispatch 'acked'"):
        testing.assert_dead_letter(finished)


def test_a_waiting_run_has_its_reason(finished: Run) -> None:
    waiting = given.run(status="waiting")
    assert testing.assert_waiting(waiting, reason="user_input").waiting == {
        "reason": "user_input",
        "message": "go on?",
    }
    assert testing.assert_waiting(waiting).pk == waiting.pk
    with pytest.raises(AssertionError, match=r"^the run waits for 'user_input', not 'rate_limit'$"):
        testing.assert_waiting(waiting, reason="rate_limit")
    with pytest.raises(AssertionError, match=r"^the run does not wait: run .* status 'done'"):
        testing.assert_waiting(finished)


def test_events_are_compared_in_order(finished: Run) -> None:
    kinds = ["ThreadCreated", "RunQueued", "RunStarted", "Found", *["MessageCommitted"] * 2, "RunFinished"]
    assert [event.cursor for event in testing.assert_events(finished, kinds)] == list(range(1, 8))
    assert [event.kind for event in testing.assert_events(finished, ["Found"], own_only=True)] == ["Found"]
    for wrong in ([], kinds[:-1], [*kinds[:-2], "RunFinished", "MessageCommitted"]):
        with pytest.raises(AssertionError, match=r"^the thread's events are \['ThreadCreated', "):
            testing.assert_events(finished, wrong)


def test_texts_are_compared_in_order(finished: Run) -> None:
    for wrong in ([], ["done"], ["done", "one moment"], ["go", "one moment", "done"]):
        with pytest.raises(AssertionError, match=r"^the assistant said \['one moment', 'done'\], not "):
            testing.assert_said(finished, wrong)


def test_a_question_is_answered_by_its_name(mailbox: Mailbox, registered_agent: Callable[..., str]) -> None:
    def agent(ctx: Context) -> Any:
        one, two = ctx.ask_all([Question(name="one"), Question(name="two")])
        return [one.payload, two.action, two.answered_by]

    run = mailbox.submit("go", agent=registered_agent(agent))
    mailbox.run_until_idle()
    assert mailbox.answer(run, "one", {"yes": True}).status == "stored"
    assert testing.answer(run, "two", action="cancel", by="ada").status == "resumed"
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output=[{"yes": True}, "cancel", "ada"])


def test_an_answer_to_what_is_not_asked_names_what_is(mailbox: Mailbox, registered_agent: Callable[..., str]) -> None:
    run = mailbox.submit("go", agent=registered_agent(lambda ctx: ctx.ask("refund").action))
    mailbox.run_until_idle()
    with pytest.raises(AssertionError, match=r"does not ask 'refunds', but 'refund': run .*'waiting'"):
        mailbox.answer(run, "refunds")
    mailbox.answer(run, "refund")
    with pytest.raises(AssertionError, match="but nothing"):
        mailbox.answer(run, "refund")
