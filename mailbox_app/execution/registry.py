"""`@agent`: how a team names the code that answers; and how each process finds it."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils.module_loading import autodiscover_modules

from mailbox_app import catalogue
from mailbox_app.models import AgentRegistration
from mailbox_app.telemetry import observe

if TYPE_CHECKING:
    from mailbox_app.execution.context import Context

# A month: what takes longer should wait for something, not run.
MOST_TIMEOUT_SECONDS = 31 * 86_400

AgentFunction = Callable[["Context"], Any]


def agent(
    name: str,
    *,
    version: str = "1",
    queue: str | None = None,
    priority: int | None = None,
    max_attempts: int | None = None,
    timeout_seconds: float | None = None,
) -> Callable[[AgentFunction], AgentFunction]:
    """Register a function as the agent of this name; the function itself is returned unchanged.

    It takes a Context and returns the run's final output: JSON, where a str also becomes an assistant message. Options
    left out fall back to the settings. Raises ValueError for options no dispatch could carry, or a name in use.
    """
    if not name.strip() or len(name) > 200 or not version.strip() or len(version) > 100:
        raise ValueError("an agent's name (200 characters) and version (100) must not be blank")
    if queue is not None and not (queue.strip() and len(queue) <= 100):
        raise ValueError(f"agent {name!r}: queue must not be blank, nor longer than 100 characters")
    if priority is not None and not 0 <= priority <= 255:
        raise ValueError(f"agent {name!r}: priority must be from 0 to 255, not {priority}")
    if max_attempts is not None and max_attempts < 1:
        raise ValueError(f"agent {name!r}: max_attempts must be at least 1, not {max_attempts}")
    if timeout_seconds is not None and not 0 < timeout_seconds <= MOST_TIMEOUT_SECONDS:
        raise ValueError(
            f"agent {name!r}: timeout_seconds must be above 0 and at most {MOST_TIMEOUT_SECONDS}, not {timeout_seconds}"
        )

    def register(function: AgentFunction) -> AgentFunction:
        catalogue.add(
            catalogue.AgentSpec(
                name=name,
                function=function,
                version=version,
                queue=queue,
                priority=priority,
                max_attempts=max_attempts,
                timeout_seconds=timeout_seconds,
            )
        )
        return function

    return register


def autodiscover() -> None:
    """Import `agents.py` of every installed app."""
    autodiscover_modules("agents")


def announce(*, worker: str, queues: Collection[str], slots: int) -> int:
    """Write down what this worker can run, in place of what it wrote before; returns how many agents."""
    names = catalogue.names()
    with transaction.atomic():
        AgentRegistration.objects.filter(worker=worker).exclude(agent__in=names).delete()
        for name in names:
            spec = catalogue.find(name)
            assert spec is not None
            AgentRegistration.objects.update_or_create(
                worker=worker,
                agent=name,
                defaults={
                    "version": spec.version,
                    "queues": sorted(queues),
                    "slots": max(1, slots),
                    "options": catalogue.options(spec),
                    "registered_at": Now(),
                    "seen_at": Now(),
                },
            )
    observe("worker.registered", worker=worker, queues=sorted(queues), slots=slots, agents=names)
    return len(names)
