"""The agents this process can import: filled by `execution/registry.py`, read wherever an agent's options matter."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """One registered agent. `None` means: the setting of that name decides. Times are seconds."""

    name: str
    function: Callable[..., Any]
    version: str = "1"
    # Versions of its own whose runs it goes on with; None: its own version and all older ones.
    accepts: tuple[str, ...] | None = None
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    # Exception types of the agent's own: worth another attempt, or not.
    transient: tuple[type[BaseException], ...] = ()
    permanent: tuple[type[BaseException], ...] = ()

    @functools.cached_property
    def is_async(self) -> bool:
        """Whether calling it makes a coroutine, to be run on the process's event loop."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


_agents: dict[str, AgentSpec] = {}


def add(spec: AgentSpec) -> None:
    """Remember an agent; a name taken by another function is a programming error (ValueError)."""
    known = _agents.get(spec.name)
    if known is not None and (known.function.__module__, known.function.__qualname__) != (
        spec.function.__module__,
        spec.function.__qualname__,
    ):
        raise ValueError(
            f"agent {spec.name!r} is registered twice: {known.function.__module__}.{known.function.__qualname__} "
            f"and {spec.function.__module__}.{spec.function.__qualname__}"
        )
    _agents[spec.name] = spec


def find(name: str) -> AgentSpec | None:
    """The agent of this name, or None."""
    return _agents.get(name)


def remove(name: str) -> None:
    """Forget an agent (tests register short-lived ones)."""
    _agents.pop(name, None)


def names() -> list[str]:
    """Names of all agents of this process, sorted."""
    return sorted(_agents)


def is_async(name: str) -> bool:
    """Whether the agent runs on the event loop; False where it cannot be imported."""
    spec = _agents.get(name)
    return spec is not None and spec.is_async


def async_names() -> list[str]:
    """Names of the agents that run on the event loop, sorted."""
    return [name for name in names() if is_async(name)]


def sync_names() -> list[str]:
    """Names of the agents that need a slot of their own, sorted."""
    return [name for name in names() if not is_async(name)]


def options(spec: AgentSpec) -> dict[str, Any]:
    """What the agent asks for of the queue, as a registration stores it for processes that cannot import it."""
    wishes = {
        "queue": spec.queue,
        "priority": spec.priority,
        "max_attempts": spec.max_attempts,
        "timeout_seconds": spec.timeout_seconds,
        "accepts": None if spec.accepts is None else list(spec.accepts),
    }
    return {name: value for name, value in wishes.items() if value is not None}


def version_of(name: str) -> str:
    """The version of the agent's code in this process; blank where it cannot be imported."""
    spec = _agents.get(name)
    return "" if spec is None else spec.version


_NUMBER = re.compile(r"\d+")
# Longer runs of digits are no counters; they sort as text among themselves.
_DIGITS = 10
# What `Dispatch.version_key` and `Thread.due_version` hold; past it two versions are the same.
_LONGEST_KEY = 400


def version_key(version: str) -> str:
    """A text whose order is the version's: `1.10` after `1.9`, `2026-11-01` after `2026-10-31`.

    Compared byte by byte (collation "C"). Versions without numbers sort as text; where that means nothing (commit
    hashes), an agent names what it accepts.
    """
    return _NUMBER.sub(lambda found: found.group().lstrip("0").rjust(_DIGITS, "0"), version)[:_LONGEST_KEY]


def accepted_keys(spec: AgentSpec) -> list[str] | None:
    """Keys of the versions whose started runs the agent goes on with; None: its own and all older ones."""
    return None if spec.accepts is None else sorted({version_key(one) for one in (spec.version, *spec.accepts)})
