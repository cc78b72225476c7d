"""Short-lived agents, and a runner for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailbox_app import catalogue
from mailbox_app.execution import registry, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.operations import claim
from mailbox_app.operations.ownership import Claim
from tests.operations import scene

Register = Callable[..., str]
Perform = Callable[..., Claim]


@pytest.fixture
def register() -> Iterator[Register]:
    """Register a function as the agent `probe`; it is forgotten after the test."""
    names = []

    def add(function: Callable[[Any], Any], *, name: str = "probe", **options: Any) -> str:
        catalogue.remove(name)
        registry.agent(name, **options)(function)
        names.append(name)
        return name

    yield add
    for name in names:
        catalogue.remove(name)


@pytest.fixture
def keeper() -> LeaseKeeper:
    return LeaseKeeper(lambda tokens: claim.renew(tokens=tokens))


@pytest.fixture
def perform(register: Register, keeper: LeaseKeeper) -> Perform:
    """Post to an agent made of this function, claim its run and execute it to the end; returns the claim."""

    def once(function: Callable[[Any], Any], text: str = "hello there", **options: Any) -> Claim:
        name = register(function, **options)
        scene.post(text, agent=name)
        claimed = scene.taken(agents=(name,))
        runner.run(claimed, keeper=keeper, own_process=False)
        return claimed

    return once


@pytest.fixture
def again(keeper: LeaseKeeper) -> Callable[..., Claim]:
    """Claim what is due for `probe` and execute it, as the next worker."""

    def once(name: str = "probe") -> Claim:
        claimed = scene.taken(agents=(name,), worker="next@there:2")
        runner.run(claimed, keeper=keeper, own_process=False)
        return claimed

    return once
