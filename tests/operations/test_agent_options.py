"""What an agent asks for in `@agent(…)`, in the rows it decides over: its own wishes, the settings', the caller's."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from mailbox_app import catalogue
from mailbox_app.errors import Transient
from mailbox_app.execution import registry
from mailbox_app.models import AgentRegistration, Dispatch
from mailbox_app.operations import recover, tick
from tests.execution.conftest import Perform, Register, again, keeper, perform, register
from tests.operations import scene

__all__ = ["again", "keeper", "perform", "register"]

pytestmark = pytest.mark.django_db


def nothing(ctx: Any) -> None: ...


def fails(ctx: Any) -> None:
    raise Transient("later", retry_after=0)


WISHES: dict[str, tuple[dict[str, Any], tuple[str, int, int]]] = {
    "none": ({}, ("mailbox.default", 128, 5)),
    "queue": ({"queue": "mailbox.slow"}, ("mailbox.slow", 128, 5)),
    "priority": ({"priority": 0}, ("mailbox.default", 0, 5)),
    "attempts": ({"max_attempts": 2}, ("mailbox.default", 128, 2)),
    "all": ({"queue": "q", "priority": 255, "max_attempts": 1}, ("q", 255, 1)),
}


@pytest.mark.parametrize("is_here", [True, False], ids=["imported", "registered"])
@pytest.mark.parametrize(("options", "row"), WISHES.values(), ids=WISHES.keys())
def test_a_dispatch_is_made_as_its_agent_asks(
    options: dict[str, Any], row: tuple[str, int, int], is_here: bool, register: Register
) -> None:
    name = register(nothing, **options)
    registry.announce(worker="worker@here", queues={"mailbox.default"}, slots=1)
    if not is_here:
        catalogue.remove(name)  # as in a web process that cannot import the agent
    dispatch = scene.dispatch(scene.post(agent=name))
    assert (dispatch.queue, dispatch.priority, dispatch.max_attempts) == row
    thread = scene.thread(dispatch)
    assert (thread.due_queue, thread.due_priority) == row[:2]


def test_a_caller_s_own_wishes_go_before_the_agent_s(register: Register) -> None:
    name = register(nothing, priority=7, max_attempts=3)
    dispatch = scene.dispatch(scene.post(agent=name, priority=9, max_attempts=1))
    assert (dispatch.priority, dispatch.max_attempts) == (9, 1)


def test_an_agent_of_higher_priority_is_taken_first(register: Register) -> None:
    register(nothing, name="slow", priority=200)
    register(nothing, name="urgent", priority=10)
    for name in ("slow", "urgent"):
        scene.post(agent=name)
    assert [scene.taken(agents=("slow", "urgent")).agent for _ in range(2)] == ["urgent", "slow"]


def test_an_agent_s_attempts_are_used_up_and_no_more(perform: Perform, again: Callable[..., Any]) -> None:
    claim = perform(fails, max_attempts=2)
    assert (scene.dispatch(claim).status, scene.dispatch(claim).attempt_count) == ("queued", 1)
    scene.make_available(claim)
    tick.promote()
    again()
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, dispatch.attempt_count, dispatch.max_attempts) == ("dead_letter", 2, 2)


def test_what_an_agent_accepts_is_registered_and_decides_over_the_claim(register: Register) -> None:
    begun = {}
    for version in ("1", "2", "3"):
        register(nothing, version=version)
        posted = scene.post(agent="probe")
        claim = scene.taken(agents=("probe",))
        assert scene.run(claim).code_version == version
        begun[version] = claim
        Dispatch.objects.filter(pk=posted.dispatch_id).update(lease_until=scene.database_now() - timedelta(seconds=1))

    assert recover.reclaim() == 3

    def takes(**words: Any) -> set[str]:
        register(nothing, **words)
        found = set()
        while claim := scene.take(agents=("probe",)):
            found.add(next(version for version, one in begun.items() if one.run_id == claim.run_id))
            scene.expire_lease(claim)
        recover.reclaim()
        Dispatch.objects.update(lost_count=0)
        return found

    assert takes(version="2") == {"1", "2"}
    assert takes(version="2", accepts=()) == {"2"}
    assert takes(version="2", accepts=["3"]) == {"2", "3"}
    assert takes(version="10") == {"1", "2", "3"}
    assert takes(version="0") == set()
    register(nothing, version="2", accepts=["1", "3"])
    registry.announce(worker="worker@here", queues={"q"}, slots=1)
    row = AgentRegistration.objects.get(agent="probe")
    assert (row.version, row.options) == ("2", {"accepts": ["1", "3"]})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"version": "1\n2"}, "version must be printable"),
        ({"accepts": ["1", "2\n3"]}, "version must be printable"),
        ({"accepts": [" "]}, "version must be printable"),
        ({"accepts": ["v" * 101]}, "version must be printable"),
        ({"accepts": "12"}, "accepts must be a list of versions"),
        ({"transient": [ValueError, "KeyError"]}, "'KeyError' is no exception type"),
        ({"permanent": [int]}, "is no exception type"),
        ({"transient": [ValueError], "permanent": [ValueError]}, "ValueError is both transient and permanent"),
    ],
    ids=str,
)
def test_an_option_that_could_not_be_kept_is_refused_where_it_is_written(words: dict[str, Any], message: str) -> None:
    try:
        with pytest.raises(ValueError, match=message):
            registry.agent("refused", **words)(nothing)
        assert catalogue.find("refused") is None
    finally:
        catalogue.remove("refused")
