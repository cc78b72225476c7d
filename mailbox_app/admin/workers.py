"""What workers can run, and when each maintenance pass last ran."""

from typing import Any

from django.contrib import admin

from mailbox_app.admin import render
from mailbox_app.admin.base import ReadOnlyAdmin
from mailbox_app.models import AgentRegistration, AgentVersion, Maintenance


@admin.register(AgentRegistration)
class AgentRegistrationAdmin(ReadOnlyAdmin):
    """One agent that one worker can run."""

    list_display = ("agent", "version", "worker", "slots", "served_queues", "registered_at", "seen_at")
    list_annotations = {"excerpt": render.excerpt("queues")}
    search_fields = ()

    @admin.display(description="queues")
    def served_queues(self, registration: Any) -> str:
        """The worker's queues."""
        return render.cell(registration.excerpt)


@admin.register(AgentVersion)
class AgentVersionAdmin(ReadOnlyAdmin):
    """One published configuration of an agent."""

    list_display = ("agent", "version", "note", "published_by", "published_at")
    search_fields = ()


@admin.register(Maintenance)
class MaintenanceAdmin(ReadOnlyAdmin):
    """One periodic pass."""

    list_display = ("name", "last_started_at", "last_finished_at", "worker")
    ordering = ("name",)
    search_fields = ()
