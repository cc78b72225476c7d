"""What workers can run, and when each maintenance pass last ran."""

import json
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.contrib.admin.widgets import AdminTextareaWidget
from django.http import HttpRequest

from mailbox_app.admin import render
from mailbox_app.admin.base import AddOnlyAdmin, ReadOnlyAdmin
from mailbox_app.errors import InvalidInput
from mailbox_app.models import AgentRegistration, AgentVersion, Maintenance
from mailbox_app.operations import inputs, publish

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[AgentVersion]
else:
    ModelForm = forms.ModelForm


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


class AgentVersionForm(ModelForm):
    """A configuration to be published: a JSON object PostgreSQL can store."""

    # As it was typed: a JSONField shows what is refused in another form, which may not be encodable.
    configuration = forms.CharField(widget=AdminTextareaWidget, initial="{}", help_text="A JSON object.")

    def clean_configuration(self) -> dict[str, Any]:
        """The object, or what is wrong with it."""
        try:
            return inputs.mapping("configuration", json.loads(self.cleaned_data["configuration"]))
        except InvalidInput as error:
            raise forms.ValidationError(error.message, code=error.errors[0]["code"]) from error
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(f"configuration is not JSON: {error}", code="not_json") from error


@admin.register(AgentVersion)
class AgentVersionAdmin(AddOnlyAdmin):
    """One published configuration of an agent: whoever may add one publishes it, nobody changes it afterwards."""

    form = AgentVersionForm
    list_display = ("agent", "version", "note", "published_by", "published_at")
    list_select_related = ("published_by",)
    search_fields = ()
    given = ("agent", "version", "configuration", "note")
    advice = "A published version is never changed."

    def save_model(self, request: HttpRequest, obj: AgentVersion, form: Any, change: bool) -> None:
        """Publish it in the name of whoever asked."""
        published = publish.version(
            agent=obj.agent,
            version=obj.version,
            configuration=obj.configuration,
            note=obj.note,
            published_by=request.user,
        )
        obj.pk = published.pk
        obj.refresh_from_db()


@admin.register(Maintenance)
class MaintenanceAdmin(ReadOnlyAdmin):
    """One periodic pass."""

    list_display = ("name", "last_started_at", "last_finished_at", "worker")
    ordering = ("name",)
    search_fields = ()
