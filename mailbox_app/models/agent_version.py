"""A published configuration of an agent: what it is told, apart from its code. Never changed once published."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from mailbox_app.errors import Immutable
from mailbox_app.models.base import not_blank


class AgentVersionQuerySet(models.QuerySet["AgentVersion"]):
    def of_agent(self, agent: str) -> "AgentVersionQuerySet":
        """The versions of one agent, the latest first."""
        return self.filter(agent=agent).order_by("-id")

    def update(self, **fields: Any) -> int:
        """Refuse: runs have been bound to what is there."""
        raise Immutable("a published agent version is never changed; publish another one")


class AgentVersion(models.Model):
    """One configuration (a JSON object) of one agent; runs are bound to it when they are submitted."""

    id = models.BigAutoField(primary_key=True)
    agent = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    configuration = models.JSONField(default=dict, blank=True)
    note = models.CharField(max_length=500, blank=True, default="")
    published_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    published_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = AgentVersionQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("agent_version_names_not_blank", "agent", "version"),
            models.UniqueConstraint(fields=["agent", "version"], name="agent_version_once"),
        ]

    def __str__(self) -> str:
        return f"{self.agent} {self.version}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Publish it; a second time is refused."""
        if not self._state.adding:
            raise Immutable(f"{self} is published and never changed; publish another version")
        super().save(*args, **kwargs)
