"""What a team's own tests use: execute what is due in this process, then say what must have come of it.

    from django.test import TestCase
    from mailbox_app import testing
    from mailbox_app.operations import submit

    class SupportTests(TestCase):
        def test_an_order_is_found(self):
            run = submit.run(scope="acme", agent="support", messages=["Where is my order?"])
            testing.run_until_idle()
            testing.assert_run_finished(run, output="It is on its way.")

Neither Celery nor a broker, Redis or a worker is needed. It works in a transaction that is rolled back (TestCase,
pytest-django's `db`) and without one (TransactionTestCase, `transactional_db`).

With pytest, name it in the root conftest.py: `pytest_plugins = ["mailbox_app.testing"]` gives the fixtures `mailbox`
and `registered_agent`. It is no entry point on purpose: nothing is imported into a test run that did not ask for it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mailbox_app import catalogue, channel
from mailbox_app.execution import registry
from mailbox_app.models import Run
from mailbox_app.operations import decide, inputs, submit
from mailbox_app.testing.executing import StillBusy, run_until_idle
from mailbox_app.testing.outcomes import (
    OfRun,
    OfThread,
    answer,
    assert_dead_letter,
    assert_events,
    assert_run_finished,
    assert_said,
    assert_waiting,
    run_id,
)

__all__ = [
    "Mailbox",
    "OfRun",
    "OfThread",
    "StillBusy",
    "answer",
    "assert_dead_letter",
    "assert_events",
    "assert_run_finished",
    "assert_said",
    "assert_waiting",
    "isolated",
    "registered",
    "run_until_idle",
]


@contextlib.contextmanager
def isolated() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Send no signal and no live text while the block runs, or the function it decorates.

    Yields what would have been published, as (topic, message): live text under the topic "run:<id>".
    """
    with channel.silenced() as heard:
        yield heard


@contextlib.contextmanager
def registered(function: registry.AgentFunction, *, name: str = "probe", **options: Any) -> Iterator[str]:
    """Register the function as an agent while the block runs, in place of one that has the name; yields the name.

    `options` are those of `@agent`.
    """
    before = catalogue.find(name)
    catalogue.remove(name)
    try:
        registry.agent(name, **options)(function)
        yield name
    finally:
        catalogue.remove(name)
        if before is not None:
            catalogue.add(before)


@dataclass(frozen=True)
class Mailbox:
    """What the fixture `mailbox` gives: a caller in one scope, and the worker."""

    scope: str
    heard: list[tuple[str, dict[str, Any]]]

    def submit(self, *messages: inputs.NewMessage | Mapping[str, Any] | str, agent: str = "", **given: Any) -> Run:
        """Queue a run that answers the messages; `given` and errors are those of `operations.submit.run`."""
        receipt = submit.run(**{"scope": self.scope, "agent": agent, "messages": list(messages), **given})
        return Run.objects.get(pk=receipt.run_id)

    def run_until_idle(self, **options: Any) -> int:
        """`testing.run_until_idle`."""
        return run_until_idle(**options)

    def answer(self, run: OfRun, name: str, payload: Any = None, **given: Any) -> decide.Decided:
        """`testing.answer`."""
        return answer(run, name, payload, **given)

    def streamed(self, run: OfRun) -> list[str]:
        """The live text of the run so far, one entry for each `ctx.delta`, of all its attempts."""
        topic = f"run:{run_id(run)}"
        return [str(message["text"]) for about, message in self.heard if about == topic and message.get("text")]


try:
    import pytest
except ModuleNotFoundError:  # Django's own test runner needs none
    pass
else:

    @pytest.fixture
    def mailbox(db: None) -> Iterator[Mailbox]:
        """Submit and run_until_idle in one object, in a scope of its own; no signal leaves the test.

        It asks for the database; a test that needs real transactions asks for `transactional_db` beside it.
        """
        with isolated() as heard:
            yield Mailbox(scope="test", heard=heard)

    @pytest.fixture
    def registered_agent() -> Iterator[Callable[..., str]]:
        """`registered_agent(function, name="probe", **options)`: an agent until the test ends; returns its name."""
        with contextlib.ExitStack() as stack:
            yield lambda function, **options: stack.enter_context(registered(function, **options))
