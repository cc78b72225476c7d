"""`@agent`: how a team names the code that answers; and how each process finds it."""

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import transaction
from django.db.models.functions import Now
from django.utils.module_loading import autodiscover_modules

from mailbox_app import catalogue
from mailbox_app.models import AgentRegistration
from mailbox_app.telemetry import observe

if TYPE_CHECKING:
    from mailbox_app.execution.async_context import AsyncContext
    from mailbox_app.execution.context import Context

# A month: what takes longer should wait for something, not run.
MOST_TIMEOUT_SECONDS = 31 * 86_400

AgentFunction = Callable[["Context"], Any] | Callable[["AsyncContext"], Awaitable[Any]]
AgentT = TypeVar("AgentT", bound=AgentFunction)


def agent(
    name: str,
    *,
    version: str = "1",
    accepts: Collection[str] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    max_attempts: int | None = None,
    timeout_seconds: float | None = None,
    transient: Collection[type[BaseException]] = (),
    permanent: Collection[type[BaseException]] = (),
) -> Callable[[AgentT], AgentT]:
    """Register a function as the agent of this name; the function itself is returned unchanged.

    It takes a Context (an `async def`: an AsyncContext) and returns the run's final output: JSON, where a str also
    becomes an assistant message. Options left out fall back to the settings.

    A run stays with the version that started it, or a newer one: `version` is compared part by part, numbers as
    numbers. `accepts` names the versions whose started runs this code goes on with instead; `()`: its own alone.
    `transient` and `permanent` classify exception types for this agent. Raises ValueError for options no dispatch could
    carry, or a name in use.
    """
    if not name.strip() or len(name) > 200:
        raise ValueError("an agent's name must not be blank, nor longer than 200 characters")
    if isinstance(accepts, str):
        raise ValueError(f"agent {name!r}: accepts must be a list of versions, not the text {accepts!r}")
    for one in (version, *(accepts or ())):
        # What cannot be printed would also not survive the list in which a claim names the versions it accepts.
        if not one.strip() or len(one) > 100 or not one.isprintable():
            raise ValueError(
                f"agent {name!r}: a version must be printable, not blank, nor longer than 100 characters: {one!r}"
            )
    for kind in (*transient, *permanent):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ValueError(f"agent {name!r}: {kind!r} is no exception type")
    if both := set(transient) & set(permanent):
        raise ValueError(f"agent {name!r}: {min(one.__name__ for one in both)} is both transient and permanent")
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

    def register(function: AgentT) -> AgentT:
        catalogue.add(
            catalogue.AgentSpec(
                name=name,
                function=function,
                version=version,
                accepts=None if accepts is None else tuple(accepts),
                queue=queue,
                priority=priority,
                max_attempts=max_attempts,
                timeout_seconds=timeout_seconds,
                transient=tuple(transient),
                permanent=tuple(permanent),
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
                    "gone_at": None,
                },
            )
    observe("worker.registered", worker=worker, queues=sorted(queues), slots=slots, agents=names)
    return len(names)
