"""One submission, checked, before anything is locked or written."""

import inspect
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mailbox_app.errors import InvalidInput
from mailbox_app.operations import delivery as deliveries
from mailbox_app.operations import inputs
from mailbox_app.operations.delivery import Delivery


@dataclass(frozen=True, kw_only=True)
class Parent:
    """What a child run knows of the run that spawned it."""

    run_id: uuid.UUID
    # How many runs are above the child.
    depth: int
    # Whether the child goes on when its parent is cancelled.
    is_detached: bool
    # Of the parent's snapshot.
    adapter: str = ""


@dataclass(kw_only=True)
class Submission:
    """One submission, checked; the agent's own wishes are added once the thread is known."""

    scope: str
    messages: list[inputs.NewMessage]
    agent: str
    thread_id: uuid.UUID | None
    thread_key: str | None
    if_active: str
    expected_run_id: uuid.UUID | None
    delivery: Delivery
    priority: int | None
    available_at: datetime | None
    max_attempts: int | None
    config_version: str
    dedupe_key: str | None
    client_id: str | None
    options: dict[str, Any]
    metadata: dict[str, Any]
    origin: str
    # Said to a thread rather than asked of an agent: it may join what was said before, and be joined.
    is_posted: bool = False
    # Who said it, for whoever cancels the run.
    by: str = ""
    # Where another run spawned this one.
    parent: Parent | None = None

    @property
    def unique_names(self) -> list[str]:
        """What no other run or message of the scope may be called."""
        names = [f"dedupe_key:{self.dedupe_key}"] if self.dedupe_key is not None else []
        names += [f"run client_id:{self.client_id}"] if self.client_id is not None else []
        return names + [f"client_id:{one.client_id}" for one in self.messages if one.client_id is not None]


def check(
    *,
    scope: str,
    messages: Sequence[inputs.NewMessage | Mapping[str, Any] | str],
    agent: str = "",
    thread_id: uuid.UUID | str | None = None,
    thread_key: str | None = None,
    if_active: str | None = None,
    expected_run_id: uuid.UUID | str | None = None,
    delivery: Mapping[str, Any] | None = None,
    priority: int | None = None,
    available_at: datetime | None = None,
    dedupe_key: str | None = None,
    client_id: str | None = None,
    max_attempts: int | None = None,
    config_version: str = "",
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    origin: str,
) -> Submission:
    """Check everything that can be judged without the database; the arguments are those of `submit.run`."""
    word, how = deliveries.check(if_active, delivery)
    checked = Submission(
        scope=inputs.scope(scope),
        messages=inputs.messages(messages),
        agent=inputs.text("agent", agent, may_be_blank=True).strip(),
        thread_id=inputs.identifier("thread_id", thread_id),
        thread_key=inputs.optional_text("thread_key", thread_key),
        if_active=word,
        expected_run_id=inputs.identifier("expected_run_id", expected_run_id),
        delivery=how,
        priority=None if priority is None else inputs.whole("priority", priority, least=0, most=255),
        max_attempts=None if max_attempts is None else inputs.whole("max_attempts", max_attempts, least=1, most=1000),
        available_at=inputs.instant("available_at", available_at),
        config_version=inputs.text("config_version", config_version, most=100, may_be_blank=True),
        dedupe_key=inputs.optional_text("dedupe_key", dedupe_key),
        client_id=inputs.optional_text("client_id", client_id),
        options=inputs.mapping("options", options),
        metadata=inputs.mapping("metadata", metadata),
        origin=origin,
    )
    if checked.thread_id is not None and checked.thread_key is not None:
        raise InvalidInput("thread_key", "contradiction", "thread_id and thread_key must not be given together")
    if word in ("interrupt", "steer") and checked.available_at is not None:
        raise InvalidInput("available_at", "contradiction", f"what {word}s a thread cannot be for later")
    for name in ("dedupe_key", "client_id"):
        if word == "steer" and getattr(checked, name) is not None:
            raise InvalidInput(name, "contradiction", f"what steers a run is no run that could hold a {name}")
    if word == "reject" and checked.expected_run_id is not None:
        raise InvalidInput("expected_run_id", "contradiction", "if_active 'reject' expects that no run is open")
    return checked


# What a caller may name of one submission in a batch.
ARGUMENTS = set(inspect.signature(check).parameters) - {"scope", "origin"}
