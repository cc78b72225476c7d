"""What clients may ask for, at any time."""

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mailbox_app.errors import (
    ActiveRunConflict,
    Conflict,
    DuplicateKey,
)
from mailbox_app.operations import cancel, deliver, resume, submit
from tests.operations import scene
from tests.proof.oracle import Talk
from tests.proof.stage import AGENTS, LATER_SECONDS, PICK, Stage

SUBMISSION = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(AGENTS),
        "count": st.integers(1, 2),
        "priority": st.sampled_from((128, 128, 5)),
        "most": st.integers(1, 3),
        "later": st.sampled_from((False, False, True)),
        "key": st.sampled_from((None, None, None, "a", "b")),
    }
)


class Clients(Stage):
    """Submit, say, deliver, cancel, resume."""

    @precondition(lambda self: len(self.talks) < 3)
    @rule(given=SUBMISSION)
    def begin_a_thread(self, given: dict[str, Any]) -> None:
        if self._is_taken(given["key"]):
            return
        receipt = submit.run(scope=scene.SCOPE, **self._arguments(given))
        talk = Talk(receipt.thread_id, len(self.talks))
        self.talks.append(talk)
        talk.submit(**given)

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, given=SUBMISSION, if_active=st.sampled_from(("enqueue", "enqueue", "reject")))
    def submit_a_run(self, pick: int, given: dict[str, Any], if_active: str) -> None:
        talk = self._talk(pick)
        call = lambda: submit.run(  # noqa: E731
            scope=scene.SCOPE, thread_id=talk.id, if_active=if_active, **self._arguments(given)
        )
        if if_active == "reject" and talk.open is not None:
            self._refused(ActiveRunConflict, call)
        elif self._is_taken(given["key"]):
            self._refused(DuplicateKey, call)
        else:
            call()
            talk.submit(**given)

    @precondition(lambda self: self.talks)
    @rule(wanted=st.lists(st.tuples(PICK, SUBMISSION), min_size=2, max_size=3))
    def submit_many_runs(self, wanted: list[tuple[int, dict[str, Any]]]) -> None:
        submissions = [{"thread_id": self._talk(pick).id, **self._arguments(given)} for pick, given in wanted]
        call = lambda: submit.many(scope=scene.SCOPE, submissions=submissions)  # noqa: E731
        keys = [given["key"] for _, given in wanted if given["key"]]
        if len(set(keys)) < len(keys) or any(self._is_taken(key) for key in keys):
            self._refused(DuplicateKey, call)
            return
        receipts = call()
        assert [receipt.thread_id for receipt in receipts] == [one["thread_id"] for one in submissions]
        for pick, given in wanted:
            self._talk(pick).submit(**given)

    @precondition(lambda self: any(talk.open for talk in self.talks))
    @rule(pick=PICK, boundary=st.sampled_from(("next_step", "on_natural_end")))
    def say_something(self, pick: int, boundary: str) -> None:
        talks = [talk for talk in self.talks if talk.open]
        talk = talks[pick % len(talks)]
        assert talk.open is not None
        posted = submit.messages(scope=scene.SCOPE, thread_id=talk.id, messages=["more"], boundary=boundary)
        talk.say()
        assert posted.run_id == talk.open.id
        talk.is_stale = False

    @precondition(lambda self: self.talks)
    @rule(pick=PICK, number=st.integers(0, 2), content=st.sampled_from(("one", "two")))
    def deliver_a_message(self, pick: int, number: int, content: str) -> None:
        talk = self._talk(pick)
        call = lambda: deliver.message(  # noqa: E731
            scope=scene.SCOPE,
            thread_id=talk.id,
            message_id=f"{talk.place}-{number}",
            content=content,
            agent="echo",
        )
        known = self.durable.get((talk.place, number))
        if known is not None and known[1] != content:
            self._refused(Conflict, call)
            return
        delivered = call()
        assert delivered.is_new == (known is None)
        if known is None:
            self.durable[talk.place, number] = (delivered.run_id, content)
            talk.submit(agent="echo", count=1, priority=128, most=5, later=False, key=None)
        else:
            assert delivered.run_id == known[0]

    @precondition(lambda self: self.runs)
    @rule(pick=PICK)
    def cancel_a_run(self, pick: int) -> None:
        run = self._run(pick)
        assert run.id is not None
        expected = run.talk.cancel(run)
        assert cancel.run(scope=scene.SCOPE, run_id=run.id).outcome == expected
        run.talk.is_stale = False

    @precondition(lambda self: self.runs)
    @rule(
        pick=PICK,
        name=st.sampled_from(("", "", "a")),
        payload=st.integers(0, 1),
        resume_id=st.sampled_from((None, None, "x", "y")),
    )
    def resume_a_run(self, pick: int, name: str, payload: int, resume_id: str | None) -> None:
        waiting = [run for run in self.runs if run.status == "waiting"] or self.runs
        run = waiting[-1 - pick % len(waiting)]
        expected = run.talk.resume(run, name, payload, resume_id)
        call = lambda: resume.run(  # noqa: E731
            scope=scene.SCOPE, run_id=run.id, name=name, payload=payload, resume_id=resume_id
        )
        if expected == "conflict":
            self._refused(Conflict, call)
        else:
            assert call().status == expected
            run.talk.is_stale = False

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        later = timedelta(seconds=LATER_SECONDS + len(self.runs))
        return {
            "messages": ["said"] * given["count"],
            "agent": given["agent"],
            "priority": given["priority"],
            "max_attempts": given["most"],
            "dedupe_key": given["key"],
            "available_at": scene.database_now() + later if given["later"] else None,
        }
