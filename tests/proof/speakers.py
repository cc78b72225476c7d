"""What people may say to threads, and do about what they have said: any of it at any time."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mailbox_app.errors import MailboxError
from mailbox_app.operations import cancel, decide, interrupt, pending, post, resume, submit
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.proof import compare
from tests.proof.dialogue import Asked, How, Reader, Said
from tests.proof.replies import Talk

PICK = st.integers(0, 11)
LATER_SECONDS = 3600.0
KINDS = ("plain", "plain", "plain", "later", "steer", "steer", "interrupt", "reject")
BOUNDARIES = ("next_step", "on_natural_end", "resume_input", "new_run")
SAYING = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS + BOUNDARIES),
        "posted": st.sampled_from((True, True, False)),
        "count": st.integers(1, 2),
        "agent": st.sampled_from(("", "", "echo", "analyst")),
        "by": st.sampled_from(("ann", "ben")),
        "sender": st.sampled_from(("", "", "bot")),
        "alone": st.sampled_from((False, False, True)),
        "barrier": st.sampled_from((False, False, True)),
        "target": st.sampled_from((None, None, "open", "any")),
        "falls_back": st.booleans(),
        "expected": st.sampled_from((None, None, None, "open", "any")),
    }
)
GUARD = st.sampled_from((None, None, "right", "stale"))


class Speakers(RuleBasedStateMachine):
    """The threads, who holds a claim, and what may be said."""

    def __init__(self) -> None:
        super().__init__()
        self.talks: list[Talk] = []
        self.held: dict[Reader, Claim] = {}
        self.handed: set[uuid.UUID] = set()
        self.number = 0
        self._example = transaction.atomic()
        self._example._from_testcase = True  # type: ignore[attr-defined]
        self._example.__enter__()

    @property
    def readers(self) -> list[tuple[Talk, Reader]]:
        return [(talk, run) for talk in self.talks for run in talk.readers]

    @property
    def said(self) -> list[tuple[Talk, Said]]:
        return [(talk, one) for talk in self.talks for one in talk.said]

    @property
    def asked(self) -> list[tuple[Talk, Reader, Asked]]:
        return [(talk, run, one) for talk, run in self.readers for one in run.asked]

    @precondition(lambda self: len(self.talks) < 2)
    @rule()
    def open_a_thread(self) -> None:
        made = submit.thread(scope=scene.SCOPE)
        self.talks.append(Talk(made.pk))

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, given=SAYING)
    def say(self, pick: int, given: dict[str, Any]) -> None:
        talk = self._talk(pick)
        how = self._how(talk, given)
        self.number += 1
        texts = [f"{self.number}.{place}" for place in range(given["count"])]
        before = len(talk.said)
        call = lambda: self._send(talk, texts, how, given["kind"])  # noqa: E731
        # The oracle writes nothing where it refuses.
        answer = talk.say(texts, how)
        if isinstance(answer, str):
            self._refused(answer, call)
            return
        receipt = call()
        assert answer.id in (None, receipt.run_id), "another run answers"
        answer.id = receipt.run_id
        self._name(talk.said[before:], receipt.message_ids)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK)
    def say_to_a_run(self, pick: int) -> None:
        talk, run = self._reader(pick)
        self.number += 1
        texts, before = [f"{self.number}"], len(talk.said)
        call = lambda: post.to_run(scope=scene.SCOPE, run_id=run.id, messages=texts)  # type: ignore[arg-type] # noqa: E731
        if refused := talk.tell_run(run, texts):
            self._refused(refused, call)
        else:
            self._name(talk.said[before:], call().message_ids)

    # The pending zone.

    @precondition(lambda self: self.said)
    @rule(pick=PICK, guard=GUARD, is_same=st.booleans())
    def edit(self, pick: int, guard: str | None, is_same: bool) -> None:
        talk, one = self._message(pick)
        text = one.text if is_same else f"{one.text}!"
        call = lambda: pending.edit(**self._named(talk, one, guard), content=text)  # noqa: E731
        if refused := _refusal(one, guard):
            self._refused(refused, call)
            return
        edited = call()
        talk.edit(one, text)
        assert (edited.message.revision, edited.pending_revision) == (one.revision, talk.revision)

    @precondition(lambda self: self.said)
    @rule(pick=PICK, guard=GUARD)
    def withdraw(self, pick: int, guard: str | None) -> None:
        talk, one = self._message(pick)
        call = lambda: pending.retract(**self._named(talk, one, guard))  # noqa: E731
        if refused := _refusal(one, guard):
            self._refused(refused, call)
            return
        named = call()
        cancelled, waiting = talk.withdraw(one)
        assert named.cancelled_run_id == (cancelled and cancelled.id)
        assert (named.withdrawn_dispatch_id is not None) == (waiting is not None)
        assert named.pending_revision == talk.revision

    @precondition(lambda self: self.said)
    @rule(pick=PICK, picks=st.lists(PICK, min_size=1, max_size=3, unique=True), guard=GUARD, some=st.booleans())
    def put_in_order(self, pick: int, picks: list[int], guard: str | None, some: bool) -> None:
        talk = self._talk(pick)
        there = [one for one in talk.said if one.state == "pending" or some]
        wanted = list(dict.fromkeys(there[place % len(there)] for place in picks)) if there else []
        if not wanted:
            return
        ids = [one.id for one in wanted]
        call = lambda: pending.reorder(  # noqa: E731
            scope=scene.SCOPE,
            thread_id=talk.id,
            message_ids=ids,  # type: ignore[arg-type]
            pending_revision=_seen(talk.revision, guard),
        )
        gone = sorted((one for one in wanted if one.state != "pending"), key=lambda one: one.id or uuid.UUID(int=0))
        if gone:
            self._refused(_refusal(gone[0], None), call)
        elif guard == "stale":
            self._refused("revision_conflict", call)
        else:
            ordered = call()
            moved = talk.reorder(wanted)
            assert ordered.message_ids == [one.id for one in moved]
            assert ordered.pending_revision == talk.revision

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, picks=st.none() | st.lists(PICK, min_size=1, max_size=2), guard=GUARD)
    def release(self, pick: int, picks: list[int] | None, guard: str | None) -> None:
        talk = self._talk(pick)
        wanted = None
        if picks is not None and talk.said:
            wanted = [talk.said[-1 - place % len(talk.said)] for place in picks]
        call = lambda: pending.release(  # noqa: E731
            scope=scene.SCOPE,
            thread_id=talk.id,
            message_ids=None if wanted is None else [one.id for one in wanted],  # type: ignore[misc]
            pending_revision=_seen(talk.revision, guard),
        )
        if guard == "stale":
            self._refused("revision_conflict", call)
            return
        released = call()
        assert released.message_ids == [one.id for one in talk.release(wanted)]

    # Stopping, going on, answering.

    @precondition(lambda self: self.talks)
    @rule(pick=PICK)
    def interrupt(self, pick: int) -> None:
        talk = self._talk(pick)
        held = talk.pending(held=True)
        call = lambda: interrupt.thread(scope=scene.SCOPE, thread_id=talk.id)  # noqa: E731
        met = call()
        talk.stop(holds=True)
        newly = [one.id for one in talk.pending(held=True) if one not in held]
        assert (met.epoch, met.held_message_ids) == (talk.epoch, newly)

    @precondition(lambda self: self.readers)
    @rule(pick=PICK, by=st.sampled_from((None, "ann", "ben")))
    def cancel_a_run(self, pick: int, by: str | None) -> None:
        talk, run = self._reader(pick)
        assert run.id is not None
        outcome = cancel.run(scope=scene.SCOPE, run_id=run.id, by=by).outcome
        assert outcome == talk.cancel(run, by)

    @precondition(lambda self: len(self.readers) > 3)
    @rule(pick=PICK)
    def cancel_a_thread(self, pick: int) -> None:
        talk = self._talk(pick)
        cleared = cancel.thread(scope=scene.SCOPE, thread_id=talk.id)
        assert set(cleared.cancelled_run_ids) == {run.id for run in talk.clear()}

    @precondition(lambda self: any(run.status == "waiting" for _, run in self.readers))
    @rule(pick=PICK, name=st.sampled_from(("", "a")))
    def resume_a_run(self, pick: int, name: str) -> None:
        talk, run = self._reader(pick, status="waiting")
        assert run.id is not None
        run_id = run.id
        call = lambda: resume.run(scope=scene.SCOPE, run_id=run_id, name=name, payload=1)  # noqa: E731
        if run.status == "done":
            self._refused("conflict", call)
        else:
            assert call().status == talk.resume(run, name)

    @precondition(lambda self: self.asked)
    @rule(
        pick=PICK,
        action=st.sampled_from(("resume", "resume", "cancel")),
        payload=st.sampled_from(({"ok": True}, {"ok": True}, {"ok": False}, "no object")),
        decision=st.sampled_from((None, "d1", "d1", "d2")),
    )
    def answer(self, pick: int, action: str, payload: Any, decision: str | None) -> None:
        talk, run, ticket = self._ticket(pick)
        call = lambda: decide.ticket(  # noqa: E731
            scope=scene.SCOPE,
            run_id=run.id,  # type: ignore[arg-type]
            ticket_id=ticket.ticket_id,
            action=action,
            payload=payload,
            decision_id=decision,
        )
        given = (decision or "", action, repr(payload))
        if ticket.status == "open":
            if action == "resume" and ticket.has_schema and not isinstance(payload, dict):
                self._refused("invalid_input", call)
            elif ticket.is_late:
                self._refused("ticket_expired", call)
            else:
                decided = call()
                ticket.status, ticket.decision = "answered", (decided.decision_id, *given[1:])
                assert decided.status == ("resumed" if talk.go_on(run) else "stored")
        elif ticket.status == "answered":
            if ticket.decision == given:
                with compare.nothing_changes():
                    assert call().decision_id == decision
            else:
                self._refused("already_decided", call)
        else:
            self._refused("ticket_expired" if ticket.status == "expired" else "ticket_not_found", call)

    # What there is to choose from: mostly what is not over.

    def _talk(self, pick: int) -> Talk:
        return self.talks[pick % len(self.talks)]

    def _reader(self, pick: int, status: str | None = None) -> tuple[Talk, Reader]:
        going = [one for one in self.readers if one[1].status == status or (status is None and one[1].status != "done")]
        chosen = going if going and pick < 10 else self.readers
        return chosen[-1 - pick % len(chosen)]

    def _message(self, pick: int) -> tuple[Talk, Said]:
        unread = [one for one in self.said if one[1].state == "pending"]
        chosen = unread if unread and pick < 9 else self.said
        return chosen[-1 - pick % len(chosen)]

    def _ticket(self, pick: int) -> tuple[Talk, Reader, Asked]:
        unanswered = [one for one in self.asked if one[2].status == "open"]
        chosen = unanswered if unanswered and pick < 7 else self.asked
        return chosen[-1 - pick % len(chosen)]

    def _how(self, talk: Talk, given: dict[str, Any]) -> How:
        kind = given["kind"]
        boundaries = {"steer": "next_step", "interrupt": "interrupt", "plain": "new_run"}
        boundary = kind if kind in BOUNDARIES else boundaries.get(kind, "new_run")
        word = kind if kind in ("interrupt", "reject") else "steer" if boundary not in ("new_run",) else "enqueue"
        target = given["target"] or ("open" if boundary == "resume_input" else None)
        runs = {"open": talk.open, "any": talk.readers[-1] if talk.readers else None, None: None}
        found = runs[target] if word == "steer" else None
        if boundary == "resume_input" and found is None:
            boundary = kind = given["kind"] = "next_step"
        return How(
            posted=given["posted"] and kind != "later",
            word=word,
            boundary=boundary,
            alone=given["alone"],
            barrier=given["barrier"],
            target=found,
            falls_back=found is not None and given["falls_back"],
            own_run=kind == "new_run",
            expected=None if kind in ("reject",) else runs[given["expected"]],
            agent=given["agent"] or ("echo" if talk.latest is None else ""),
            sender=given["sender"],
            by=given["by"],
            later=kind == "later",
        )

    def _send(self, talk: Talk, texts: list[str], how: How, kind: str) -> Any:
        delivery: dict[str, Any] = {"granularity": "one" if how.alone else None, "barrier": how.barrier or None}
        if how.target is not None:
            delivery |= {"target_run_id": how.target.id, "fallback": "new_run" if how.falls_back else None}
        if kind in BOUNDARIES:
            delivery["boundary"] = kind
        arguments: dict[str, Any] = {
            "scope": scene.SCOPE,
            "thread_id": talk.id,
            "messages": [{"content": text, "sender": how.sender} for text in texts],
            "agent": how.agent,
            "if_active": kind if kind in ("steer", "interrupt", "reject") else None,
            "expected_run_id": None if how.expected is None else how.expected.id,
            "delivery": delivery if any(delivery.values()) else None,
        }
        if how.posted:
            return post.to_thread(**arguments, by=how.by)
        later = scene.database_now() + timedelta(seconds=LATER_SECONDS) if how.later else None
        return submit.run(**arguments, available_at=later)

    def _name(self, added: list[Said], ids: list[uuid.UUID]) -> None:
        assert len(added) == len(ids)
        for one, pk in zip(added, ids, strict=True):
            one.id = pk

    def _named(self, talk: Talk, one: Said, guard: str | None) -> dict[str, Any]:
        return {
            "scope": scene.SCOPE,
            "thread_id": talk.id,
            "message_id": one.id,
            "revision": _seen(one.revision, guard),
        }

    def _refused(self, code: str, call: Callable[[], Any]) -> None:
        with compare.nothing_changes(), pytest.raises(MailboxError) as caught:
            call()
        assert caught.value.code == code


def _refusal(one: Said, guard: str | None) -> str:
    if one.state != "pending":
        return "already_consumed" if one.state == "committed" else "gone"
    return "revision_conflict" if guard == "stale" else ""


def _seen(revision: int, guard: str | None) -> int | None:
    return {None: None, "right": max(1, revision), "stale": revision + 1}[guard]
