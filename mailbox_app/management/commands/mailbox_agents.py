"""`manage.py mailbox_agents`: which agents there are, who runs them, and what is published for them."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from mailbox_app.conf import conf
from mailbox_app.models import AgentRegistration, AgentVersion

# Of each agent, the newest so many.
_VERSIONS = 5


class Command(BaseCommand):
    help = "List the agents workers have registered: their live workers, and the versions published for them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("agent", nargs="*", help="these alone")

    def handle(self, *args: Any, **options: Any) -> None:
        live = list(AgentRegistration.objects.live().order_by("agent", "worker"))
        known = set(AgentRegistration.objects.remembered(conf.agent_memory_seconds).values_list("agent", flat=True))
        known |= set(AgentVersion.objects.order_by().values_list("agent", flat=True).distinct())
        wanted = options["agent"] or sorted(known)
        for agent in wanted:
            self._describe(agent, [row for row in live if row.agent == agent])
        if not wanted:
            self.stdout.write("no worker has registered an agent, and nothing is published")

    def _describe(self, agent: str, live: list[AgentRegistration]) -> None:
        self.stdout.write(agent)
        for row in live:
            accepts = row.options.get("accepts")
            goes_on = "" if accepts is None else f", goes on with {', '.join(accepts) or 'no other'}"
            queues = ", ".join(row.queues)
            self.stdout.write(f"  code {row.version}{goes_on}: {row.worker} ({queues}; {row.slots} slots)")
        if not live:
            self.stdout.write("  no live worker")
        versions = AgentVersion.objects.of_agent(agent)[: _VERSIONS + 1]
        for version in list(versions)[:_VERSIONS]:
            note = f"  {version.note}" if version.note else ""
            self.stdout.write(f"  config {version.version}: {version.published_at.isoformat(timespec='seconds')}{note}")
        if len(versions) > _VERSIONS:
            self.stdout.write("  and older ones")
