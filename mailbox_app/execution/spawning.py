"""How an agent has other agents work for it: child runs, each on a thread of its own, and the wait for their ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from mailbox_app import outcomes
from mailbox_app.errors import InvalidInput, Suspended
from mailbox_app.execution.journal import Journal
from mailbox_app.operations import children, inputs, lineage, waits
from mailbox_app.operations.ownership import Claim

_LONGEST_SECONDS = 366 * 86_400
_MOST_AWAITED = 1_000


class Spawning:
    """The verbs of `Context` that make child runs and wait for them."""

    _claim: Claim
    _journal: Journal
    # The runs that were spawned in this turn, in order.
    _children: list[str]

    def spawn(
        self,
        content: Any,
        *,
        agent: str,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        detached: bool = False,
        key: str | None = None,
    ) -> dict[str, str]:
        """Have another agent, or this one, answer a message as a child run, on a new thread; it starts at once.

        Returns {"run_id", "thread_id", "message_id", "agent"}. The child is queued when the call returns, exactly once,
        whatever crashes. If this run is cancelled, so are its children, but for those that are `detached`; however
        else it ends, they go on. `priority`: of the child; 0 goes first. An agent nobody knows is refused.
        """
        inputs.text("agent", agent)
        message = inputs.messages([inputs.NewMessage(content=content, sender=self._claim.agent)])[0]
        given = {"options": inputs.mapping("options", options), "metadata": inputs.mapping("metadata", metadata)}
        if priority is not None:
            inputs.whole("priority", priority, least=0, most=255)
        arguments = [message.content, agent, given, priority, bool(detached)]
        entry = self._journal.entry("spawn", agent, key, arguments)
        child = cast(
            dict[str, str],
            self._journal.once(
                entry,
                children.spawn,
                message=message,
                agent=agent,
                priority=priority,
                is_detached=bool(detached),
                **given,
            ),
        )
        self._children.append(child["run_id"])
        return child

    def wait_for_children(
        self,
        spawned: Sequence[Mapping[str, str] | str] | None = None,
        *,
        seconds: float | None = None,
        message: str = "",
        key: str | None = None,
    ) -> list[dict[str, Any]]:
        """Wait, without a worker, until these child runs have ended; by default all that were spawned in this turn.

        `spawned`: what `spawn` returned, or run ids. Until the last has ended it raises Suspended, which ends this
        activation: let it pass. Returns how each ended, in their order: {"run_id", "thread_id", "agent", "status",
        "termination", "output", "error"}; one that failed or was cancelled is among them and raises nothing. Not over
        after `seconds` (by default the setting `wait_ttl_seconds`), the run ends, stopped. `message` says to those who
        watch what is waited for; it may differ from one call to the next, the rest may not.
        """
        inputs.text("message", message, most=2_000, may_be_blank=True)
        if seconds is not None:
            seconds = inputs.duration("seconds", seconds, most=_LONGEST_SECONDS)
        awaited = list(dict.fromkeys(self._children if spawned is None else [_run_id(one) for one in spawned]))
        if len(awaited) > _MOST_AWAITED:
            raise InvalidInput(
                "spawned", "too_many", f"spawned holds {len(awaited)} entries, at most {_MOST_AWAITED} are allowed"
            )
        # Spawned side by side, they may come in another order when the turn begins again: the first one is kept.
        named = sorted(awaited) if spawned is None else awaited
        entry = self._journal.entry(lineage.WAIT, lineage.WAIT, key, [named, seconds])
        known = self._journal.known(entry)
        if known is not None:
            return cast(list[dict[str, Any]], known.result)
        self._refuse_strangers(awaited)
        slot = {field: value for field, value in asdict(entry).items() if field != "verb"}
        wait = outcomes.Suspended(
            reason=waits.BACKGROUND_TASKS, message=message, seconds=seconds, entry=slot, child_run_ids=awaited
        )
        self._journal.stop_with(Suspended(f"run {self._claim.run_id} waits for {len(awaited)} runs", wait=wait))
        self._journal.check()
        raise AssertionError("unreachable")

    def _refuse_strangers(self, awaited: Sequence[str]) -> None:
        """A run waits for what it has spawned, or the run it replays has: nobody else's end would be told to it."""
        others = [run_id for run_id in awaited if run_id not in self._children]
        strange = self._journal.persist(lambda: lineage.strangers(self._claim.thread_id, others)) if others else []
        if strange:
            raise InvalidInput("spawned", "not_a_child", f"run {strange[0]} was not spawned from this thread")


def _run_id(one: Any) -> str:
    found = one.get("run_id") if isinstance(one, Mapping) else one
    return str(inputs.identifier("spawned", found))
