"""What is known of an agent when a run is submitted to it: what it asks for, and its published configurations."""

from typing import Any

from mailbox_app import catalogue
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, UnknownAgent
from mailbox_app.models import AgentRegistration, AgentVersion, Run, Thread, ask

# Every submission asks this.
_LATEST_VERSION = "SELECT version FROM mailbox_agentversion WHERE agent = %(agent)s ORDER BY id DESC LIMIT 1"


def options(name: str) -> dict[str, Any]:
    """What the agent asks for, from its code here or from a worker's registration. Raises UnknownAgent."""
    spec = catalogue.find(name)
    if spec is not None:
        return catalogue.options(spec)
    registered = AgentRegistration.objects.filter(agent=name).remembered(conf.agent_memory_seconds)
    latest = registered.order_by("-seen_at", "-id").first()
    if latest is None:
        raise UnknownAgent(name)
    return dict(latest.options)


def latest_version(agent: str) -> str:
    """The configuration published last; blank if there is none."""
    found = ask(_LATEST_VERSION, {"agent": agent})
    return str(found[0][0]) if found else ""


def known_version(agent: str, wanted: str) -> str:
    """The configuration asked for, if any was."""
    if wanted and not AgentVersion.objects.of_agent(agent).filter(version=wanted).exists():
        raise InvalidInput(
            "config_version", "unknown_config_version", f"agent {agent!r} has no published version {wanted!r}"
        )
    return wanted


def of_thread(thread: Thread) -> str:
    """The agent of a submission that names none: the thread's last run's, else the setting `default_agent`."""
    if thread.latest_run_id is not None:
        latest = Run.objects.filter(pk=thread.latest_run_id).values_list("agent", flat=True).first()
        if latest:
            return latest
    return str(conf.default_agent)
