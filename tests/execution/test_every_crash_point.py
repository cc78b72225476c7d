"""An agent is killed at every write and after every commit of its run: what comes out is what comes out undisturbed.

A program is a list of verbs for each of two turns. It is run once in peace, and then again for each place where its
worker can die: the n-th statement that writes (its transaction is rolled back), or right after the n-th commit.
"""

import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailbox_app import catalogue
from mailbox_app.execution import Context, registry, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Outbox, Run, Thread, Ticket
from mailbox_app.operations import children, decide, deliver, recover, resume, settle, submit
from mailbox_app.operations import claim as claiming
from tests.operations import scene

pytestmark = pytest.mark.django_db(transaction=True)

Op = tuple[str, str, str | None]
Program = tuple[list[Op], list[Op]]

_numbers = itertools.count()


class Killed(KeyboardInterrupt):
    """Ends the worker where it stands, as kill -9 does."""


@dataclass
class Death:
    """When the worker dies: before its n-th write, or after its n-th commit, counted over all its activations."""

    before_write: int = 0
    after_commit: int = 0
    has_come: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def _comes(self, what: str, at: int) -> bool:
        self.seen[what] += 1
        if self.has_come or self.seen[what] != at:
            return False
        self.has_come = True
        return True

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Let it come while the block runs."""
        commit = connection.commit

        def execute(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            is_write = sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE", "WITH step_"))
            if is_write and self._comes("write", self.before_write):
                raise Killed
            return call(sql, params, many, context)

        def committing() -> None:
            commit()
            if self._comes("commit", self.after_commit):
                # The process is gone: nothing that was to happen after the commit does.
                connection.run_on_commit, connection.run_commit_hooks_on_set_autocommit_on = [], False
                raise Killed

        connection.commit = committing  # type: ignore[method-assign]
        try:
            with connection.execute_wrapper(execute):
                yield
        finally:
            del connection.commit


class Scenario:
    """One run of a program, from the first post to the last delivery."""

    def __init__(self, program: Program, death: Death) -> None:
        self.program, self.death = program, death
        self.name = f"probe-{next(_numbers)}"
        self.child = "probe-child"
        self.target = Thread.objects.create(scope=scene.SCOPE)
        self.calls: Counter[tuple[int, int]] = Counter()

    def agent(self, ctx: Context) -> str:
        values: list[Any] = [[message.text for message in ctx.messages], ctx.state.get("turns", 0)]
        handed_over: list[str] = []
        ops = self.program[min(ctx.turn, 2) - 1]
        for place, op in enumerate(ops):
            found = self.perform(ctx, ops, place, op)
            if op[0] == "checkpoint":
                handed_over += found
            else:
                values.append(found)
        ctx.state["turns"] = ctx.turn
        return json.dumps([*values, sorted(handed_over)])

    def perform(self, ctx: Context, ops: list[Op], place: int, op: Op) -> Any:
        verb, name, key = op
        text = f"{verb} {place}"
        match verb:
            case "step":
                return ctx.step(name, self.work, ctx.run_id, ctx.turn, place, key=key)
            case "say":
                return list(ctx.say(text, key=key))
            case "emit":
                ctx.emit(f"Seen{name}", {"place": place}, key=key and f"{key}-{ctx.turn}")
                return None
            case "send":
                return list(ctx.send(text, thread_id=self.target.pk, agent="echo", key=key))
            case "usage":
                return ctx.usage(input_tokens=place, output_tokens=2, key=key)
            case "suspend":
                return ctx.suspend("external_event", name=name, key=key)
            case "ask":
                return ctx.ask(name, arguments={"place": place}, key=key).payload
            case "spawn":
                return list(ctx.spawn(text, agent=self.child, key=key))
            case "family":
                return [one["output"] for one in ctx.wait_for_children(key=key)]
            case "checkpoint":
                return [message.text for message in ctx.checkpoint()]
        raise AssertionError(verb)

    def work(self, run_id: str, turn: int, place: int) -> dict[str, int]:
        """What a step calls: never once its record is there."""
        before = sum(verb == "step" for verb, _, _ in self.program[turn - 1][:place])
        assert JournalEntry.objects.filter(run_id=run_id, turn=turn, verb="step").count() == before
        self.calls[turn, place] += 1
        return {"turn": turn, "place": place}

    def play(self) -> dict[str, Any]:
        """Run it to its end, whatever dies on the way; returns what is left in the tables."""
        keeper = LeaseKeeper(lambda tokens: claiming.renew(tokens=tokens))
        registry.agent(self.name)(self.agent)
        registry.agent(self.child)(lambda ctx: None)
        try:
            posted = scene.post("hello", agent=self.name)
            self.thread_id = posted.thread_id
            for turn in range(40):
                claim = scene.take(agents=(self.name,))
                if claim is None:
                    break
                if turn == 0:
                    for text, boundary in (("a", "next_step"), ("b", "next_step"), ("c", "on_natural_end")):
                        submit.messages(
                            scope=scene.SCOPE, thread_id=posted.thread_id, messages=[text], boundary=boundary
                        )
                try:
                    with self.death.waits():
                        runner.run(claim, keeper=keeper, own_process=False)
                except Killed:
                    connection.close()
                    if Dispatch.objects.claimed().filter(pk=claim.dispatch_id).exists():
                        scene.expire_lease(claim)
                        assert recover.reclaim() == 1
                self.answer(scene.run(posted))
            while deliver.batch() or children.batch():
                pass
            return self.left(scene.run(posted))
        finally:
            catalogue.remove(self.name)
            catalogue.remove(self.child)

    def answer(self, run: Run) -> None:
        """What the run waits for comes; answers and children's ends also when it has died before it could wait."""
        while (child := scene.take(agents=(self.child,))) is not None:
            settle.complete(child, output=[message.text for message in child.messages])
        children.batch()
        for ticket in Ticket.objects.of_run(run.pk).open():
            payload = [ticket.turn, ticket.name, ticket.entry["n"]]
            named = {"scope": scene.SCOPE, "run_id": run.pk, "ticket_id": ticket.ticket_id}
            decide.ticket(**named, action="resume", payload=payload, decision_id="d")
        if run.waiting is not None and run.waiting["reason"] == "external_event":
            entry = run.waiting["entry"]
            payload = [run.turn, entry["name"], entry["n"]]
            resume.run(scope=scene.SCOPE, run_id=run.pk, name=run.waiting["name"], payload=payload)

    def left(self, run: Run) -> dict[str, Any]:
        log = scene.log(run)
        assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
        scene.kinds(run)
        return {
            "run": (run.status, run.turn, run.final_output, run.state, run.error),
            "used": (run.steps, run.input_tokens, run.output_tokens),
            "log": [(role, content) for _, role, content in log],
            "events": sorted(
                (kind, json.dumps(payload))
                for kind, payload in Event.objects.filter(
                    thread_id=self.thread_id, kind__startswith="Seen"
                ).values_list("kind", "payload")
            ),
            "journal": sorted(JournalEntry.objects.filter(run=run).values_list("turn", "verb", "name", "key", "n")),
            "tickets": sorted(
                Ticket.objects.of_run(run.pk).values_list("turn", "name", "status", "arguments__place", "decision_id")
            ),
            "outbox": list(
                Outbox.objects.filter(source_thread_id=self.thread_id)
                .order_by("order")
                .values_list("payload__content", "status")
            ),
            "sent": list(
                Message.objects.filter(thread=self.target).order_by("position").values_list("content", flat=True)
            ),
            "children": sorted(Run.objects.filter(parent_run=run).values_list("status", "final_output")),
            "runs there": Run.objects.filter(thread=self.target).count(),
            "unread": Message.objects.filter(thread_id=self.thread_id).pending().count(),
        }


def every_death() -> Iterator[Death]:
    """All of them, in order; whoever has seen one that did not come may stop asking for its kind."""
    for kind in ("before_write", "after_commit"):
        for n in itertools.count(1):
            death = Death(**{kind: n})
            yield death
            if not death.has_come:
                break


def assert_survives_every_death(program: Program) -> int:
    """How many deaths it survived."""
    peaceful = Scenario(program, Death())
    expected = peaceful.play()
    assert expected["run"][0] == "done"
    assert expected["unread"] == 0
    assert set(peaceful.calls.values()) <= {1}
    survived = 0
    for death in every_death():
        scenario = Scenario(program, death)
        assert scenario.play() == expected, death
        survived += death.has_come
        assert set(scenario.calls) == set(peaceful.calls)
        again = {place: count for place, count in scenario.calls.items() if count > 1}
        assert len(again) <= 1, "only the step whose record was not committed"
        assert death.before_write or not again, "after a commit no step is called again"
    return survived


EVERYTHING: Program = (
    [
        ("step", "one", None),
        ("checkpoint", "", None),
        ("say", "", None),
        ("send", "", None),
        ("step", "one", None),
        ("suspend", "payment", None),
        ("ask", "refund", None),
        ("usage", "", None),
        ("emit", "Once", "e"),
        ("emit", "Twice", None),
        ("checkpoint", "", None),
        ("send", "", "s"),
    ],
    [
        ("say", "", "k"),
        ("spawn", "", None),
        ("suspend", "payment", None),
        ("spawn", "", "s"),
        ("family", "", None),
        ("suspend", "payment", None),
        ("step", "one", "x"),
    ],
)
QUIET: Program = ([], [("step", "only", None)])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("program", "least"), [(EVERYTHING, 40), (QUIET, 4)], ids=["everything", "quiet"])
def test_a_run_survives_every_death(program: Program, least: int) -> None:
    assert assert_survives_every_death(program) >= least


VERBS = ("step", "say", "emit", "send", "usage", "checkpoint", "suspend", "ask", "spawn", "family")
OPS = st.tuples(st.sampled_from(VERBS), st.sampled_from("AB"), st.sampled_from((None, None, "k")))


def _without_repeated_event_keys(ops: list[Op]) -> list[Op]:
    """An event with a key is one in its thread: what a second one says is not recorded."""
    seen: set[Op] = set()
    return [op for op in ops if not (op[0] == "emit" and op[2] and (op in seen or seen.add(op)))]  # type: ignore[func-returns-value]


TURN = st.lists(OPS, max_size=5).map(_without_repeated_event_keys)


@pytest.mark.timeout(600)
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.tuples(TURN, TURN))
def test_any_agent_survives_every_death(program: Program) -> None:
    assert assert_survives_every_death(program) >= 2


CHANGED: dict[str, Callable[[Context, int], Any]] = {
    "step": lambda ctx, cents: ctx.step("charge", lambda cents: cents, cents),
    "say": lambda ctx, cents: ctx.say(f"{cents} cents"),
    "emit": lambda ctx, cents: [ctx.emit("Priced", {"cents": cents}), ctx.checkpoint()],
    "send": lambda ctx, cents: ctx.send(f"{cents} cents", thread_key="there", agent="echo"),
    "usage": lambda ctx, cents: ctx.usage(input_tokens=cents),
    "spawn": lambda ctx, cents: ctx.spawn(f"{cents} cents", agent="echo"),
}


@pytest.mark.parametrize("verb", CHANGED)
def test_changed_arguments_bury_the_run_and_repeat_nothing(verb: str) -> None:
    name = f"probe-{uuid.uuid4()}"

    def agent(ctx: Context) -> None:
        CHANGED[verb](ctx, 500 if ctx.attempt == 1 else 900)
        raise Killed

    registry.agent(name)(agent)
    keeper = LeaseKeeper(lambda tokens: claiming.renew(tokens=tokens))
    try:
        posted = scene.post(agent=name)
        claim = scene.taken(agents=(name,))
        with pytest.raises(Killed):
            runner.run(claim, keeper=keeper, own_process=False)
        journal = list(JournalEntry.objects.values())
        assert len(journal) == 1
        scene.expire_lease(claim)
        recover.reclaim()
        runner.run(scene.taken(agents=(name,)), keeper=keeper, own_process=False)
    finally:
        catalogue.remove(name)
    assert (scene.run(posted).error or {})["code"] == "replay_mismatch"
    assert scene.dispatch(posted).status == "dead_letter"
    assert list(JournalEntry.objects.values()) == journal
