"""A replayed dead letter: same messages and state, and the journal goes with it unless it is to be fresh."""

from collections import Counter
from typing import Any

import pytest

from mailbox_app.errors import Permanent
from mailbox_app.execution.context import Context
from mailbox_app.models import Dispatch, Run
from mailbox_app.operations import recover, replay
from tests.execution.conftest import Perform, Register
from tests.operations import scene

pytestmark = pytest.mark.django_db


class Broken:
    """An agent whose second half fails until it is mended."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seen: list[list[str]] = []
        self.is_mended = False
        self.argument = "a"

    def __call__(self, ctx: Context) -> str:
        self.seen.append([message.text for message in ctx.messages])
        found = ctx.step("look-up", self._count, self.argument)
        ctx.say("thinking")
        if not self.is_mended:
            raise Permanent("no")
        return f"{found} after {len(ctx.history())} messages"

    def _count(self, argument: str) -> int:
        self.calls[argument] += 1
        return self.calls[argument]


def test_a_replay_on_mended_code_goes_on_where_the_dead_run_stopped(perform: Perform, again: Any) -> None:
    agent = Broken()
    dead = perform(agent, "hello")
    assert scene.dispatch(dead).status == "dead_letter"
    agent.is_mended = True
    replayed = replay.one(dispatch_id=dead.dispatch_id, by="ann")
    claim = again()
    assert claim.run_id == replayed.run_id
    assert (agent.seen, agent.calls) == ([["hello"], ["hello"]], Counter(a=1))
    run = Run.objects.get(pk=replayed.run_id)
    assert (run.status, run.final_output) == ("done", "1 after 0 messages")
    assert [content for _, _, content in scene.log(dead)] == ["hello", "thinking", "1 after 0 messages"]


def test_a_fresh_replay_does_everything_again(perform: Perform, again: Any) -> None:
    agent = Broken()
    dead = perform(agent)
    agent.is_mended = True
    replay.one(dispatch_id=dead.dispatch_id, by="ann", fresh=True)
    again()
    assert agent.calls == Counter(a=2)
    assert [content for _, _, content in scene.log(dead)].count("thinking") == 2


def test_a_replay_under_a_journal_that_no_longer_fits_is_a_dead_letter_that_can_be_replayed_fresh(
    perform: Perform, again: Any
) -> None:
    agent = Broken()
    dead = perform(agent)
    agent.is_mended, agent.argument = True, "b"
    replay.one(dispatch_id=dead.dispatch_id, by="ann")
    mismatch = again()
    assert scene.dispatch(mismatch).error["code"] == "replay_mismatch"  # type: ignore[index]
    replay.one(dispatch_id=mismatch.dispatch_id, by="ann", fresh=True)
    again()
    assert agent.calls == Counter(a=1, b=1)
    assert Dispatch.objects.dead_letters().count() == 0


def test_a_replay_that_crashes_keeps_what_it_did_itself(register: Register, keeper: Any, again: Any) -> None:
    agent = Broken()
    name = register(agent)
    scene.post(agent=name)
    dead = again()
    replay.one(dispatch_id=dead.dispatch_id, by="ann")
    taken = scene.taken(agents=(name,))
    scene.expire_lease(taken)
    recover.reclaim()
    agent.is_mended = True
    assert again().attempt == 2
    assert (agent.seen[0], agent.seen[-1], agent.calls) == (["hello there"], ["hello there"], Counter(a=1))
