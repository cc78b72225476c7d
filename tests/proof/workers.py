"""What workers may do, with good claims and with lost ones."""

import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from mailbox_app.errors import (
    LeaseLost,
)
from mailbox_app.models import Thread
from mailbox_app.operations import claim, settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.proof.oracle import RATE_LIMIT
from tests.proof.stage import AGENTS, CLAIMED_BY, LATER_SECONDS, PICK, Held, Stage


class Workers(Stage):
    """Claim, renew, and end in every way."""

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule(agents=st.sampled_from((AGENTS, AGENTS[:1], AGENTS[1:])), most=st.sampled_from((1, 2)))
    def a_worker_of_some_agents_claims(self, agents: tuple[str, ...], most: int) -> None:
        self._claim(agents, most)

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule()
    def a_worker_claims_one(self) -> None:
        self._claim(AGENTS, 1)

    @precondition(lambda self: any(talk.head() for talk in self.talks))
    @rule()
    def a_worker_claims_all(self) -> None:
        self._claim(AGENTS, 4)

    def _claim(self, agents: tuple[str, ...], most: int) -> None:
        due = Thread.objects.filter(due_at__isnull=False, due_queue=scene.QUEUE, due_agent__in=agents)
        looked_at = list(due.order_by("due_priority", "due_at", "id").values_list("pk", flat=True))[:most]
        by_id = {talk.id: talk for talk in self.talks}
        tokens = [uuid.uuid4() for _ in range(most)]
        taken = claim.due(agents=agents, tokens=tokens, **CLAIMED_BY)
        expected, unused = [], iter(tokens)
        for talk in (by_id[pk] for pk in looked_at):
            head = talk.head()
            assert head is not None, "a due thread has a head"
            if head.agent in agents:
                expected.append(talk.claim(next(unused)))
            talk.is_stale = False
        assert [one.run_id for one in taken.claims] == [run.id for run in expected]
        for one, run in zip(taken.claims, expected, strict=True):
            assert run.live is not None
            assert (one.token, one.fence, one.turn) == (run.live.token, run.talk.fence, run.turn)
            assert one.attempt == 1 + run.live.attempts + run.live.lost
            self.held.append(Held(one, run, run.live))
        assert taken.has_more == due.exists(), "has_more is true"

    @precondition(lambda self: self.held)
    @rule(picks=st.lists(PICK, min_size=1, max_size=3, unique=True))
    def renew_claims(self, picks: list[int]) -> None:
        chosen = [self._held(pick) for pick in picks]
        renewed = claim.renew(tokens=[one.claim.token for one in chosen])
        owned = [one for one in chosen if one.entry.token == one.claim.token]
        assert set(renewed.lost) == {one.claim.token for one in chosen} - {one.claim.token for one in owned}
        assert set(renewed.cancelled) == {one.claim.token for one in owned if one.entry.asked_to_stop}
        for one in owned:
            one.entry.is_expired = False

    @precondition(lambda self: self.held)
    @rule(pick=PICK, output=st.sampled_from((None, "text", {"a": 1})))
    def finish(self, pick: int, output: Any) -> None:
        held = self._held(pick)
        call = lambda: settle.complete(held.claim, output=output)  # noqa: E731
        is_owned = held.entry.token == held.claim.token
        if is_owned and held.run.turn == held.turn + 1:
            # Its answer might have been lost.
            again = self._unchanged(held.run.talk, call)
            assert again.turn == held.run.turn
        elif held.is_owner:
            self._finished(held, call(), output)
        else:
            self._stale(held, call, "acked", left_run="done")

    @precondition(lambda self: self.held)
    @rule(picks=st.lists(PICK, min_size=2, max_size=3, unique=True), output=st.sampled_from((None, "text")))
    def finish_together(self, picks: list[int], output: Any) -> None:
        chosen = {held.run.talk.id: held for held in map(self._held, picks)}
        done = settle.complete_some([settle.Finishing(claim=one.claim, output=output) for one in chosen.values()])
        assert set(done) == {one.claim.token for one in chosen.values() if one.is_owner}
        for held in chosen.values():
            if held.is_owner:
                self._finished(held, done[held.claim.token], output)
            else:
                held.run.talk.is_stale = False

    def _finished(self, held: Held, following: Claim | None, output: Any) -> None:
        has_next = held.run.talk.finish(held.run, says=isinstance(output, str))
        held.run.talk.is_stale = False
        assert (following is not None) == has_next
        if following is not None:
            self.held.append(Held(following, held.run, held.entry))

    @precondition(lambda self: self.held)
    @rule(pick=PICK, later=st.booleans())
    def fail(self, pick: int, later: bool) -> None:
        held = self._held(pick)
        wait = LATER_SECONDS if later else 0
        call = lambda: settle.nack(held.claim, code="boom", message="it failed", retry_after=wait)  # noqa: E731
        if held.is_owner:
            held.run.talk.fail(held.run, later=later)
            self._settled(held, call)
        else:
            self._stale(held, call, "queued", "dead_letter", "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def fail_for_good(self, pick: int) -> None:
        held = self._held(pick)
        call = lambda: settle.dead_letter(held.claim, code="bad", message="never")  # noqa: E731
        if held.is_owner:
            held.run.talk.bury(held.run)
            self._settled(held, call)
        else:
            self._stale(held, call, "dead_letter")

    @precondition(lambda self: self.held)
    @rule(pick=PICK, reason=st.sampled_from(("external_event", "manual_pause", RATE_LIMIT)), name=st.sampled_from("a"))
    def wait(self, pick: int, reason: str, name: str) -> None:
        held = self._held(pick)
        name = name if reason == "external_event" else ""
        self.number += 1
        slot = {"name": name or reason, "key": "", "n": self.number, "arguments_hash": "0" * 64}
        seconds = LATER_SECONDS if reason == RATE_LIMIT else None
        wait = scene.wait(reason, name=name, entry=slot, seconds=seconds)
        call = lambda: settle.suspend(held.claim, wait)  # noqa: E731
        if held.has_ended("acked", left_run="waiting"):
            self._unchanged(held.run.talk, call)
        elif held.is_owner:
            held.run.talk.suspend(held.run, reason, name)
            self._settled(held, call)
        else:
            self._stale(held, call, "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def notice_the_cancellation(self, pick: int) -> None:
        held = self._held(pick)
        call = lambda: settle.stopped(held.claim)  # noqa: E731
        if held.is_owner:
            held.run.talk.settle(held.run, "cancelled", "cancelled")
            self._settled(held, call)
        else:
            self._stale(held, call, "cancelled")

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def hand_back(self, pick: int) -> None:
        held = self._held(pick)
        is_owned = held.entry.token == held.claim.token
        assert settle.hand_back(tokens=[held.claim.token]) == is_owned
        if is_owned:
            held.run.talk.give_back(held.run)
            held.run.talk.is_stale = False

    def _held(self, pick: int) -> Held:
        """Mostly one that is good; else one that was lost, best of all to somebody who has the run now."""
        owners = [one for one in self.held if one.is_owner]
        robbed = [one for one in self.held if one.entry.status == "claimed" and not one.is_owner]
        chosen = owners if owners and pick < 8 else robbed or self.held[-6:]
        return chosen[-1 - pick % len(chosen)]

    def _settled(self, held: Held, call: Callable[[], Any]) -> None:
        call()
        held.run.talk.is_stale = False

    def _stale(self, held: Held, call: Callable[[], Any], *ends: str, left_run: str | None = None) -> None:
        """Refused, or told again that it has won; nothing changes."""
        if held.has_ended(*ends, left_run=left_run):
            self._unchanged(held.run.talk, call)
        else:
            self._refused(LeaseLost, call)
