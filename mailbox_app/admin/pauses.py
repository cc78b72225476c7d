"""Pauses: who may add one pauses an agent, a queue or a thread, who may delete one resumes it."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from mailbox_app.admin.acting import ActingAdmin
from mailbox_app.admin.acts import RESUME
from mailbox_app.admin.base import AddOnlyAdmin
from mailbox_app.errors import MailboxError
from mailbox_app.models import Pause
from mailbox_app.operations import inputs, pauses

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Pause]
else:
    ModelForm = forms.ModelForm


class PauseForm(ModelForm):
    """What to pause, and why; pausing is part of the form's check, for the verb alone knows whether it can be."""

    by = ""

    def clean(self) -> dict[str, Any]:
        """Pause it; a refusal is an error of the form, and so is a pause that stands already."""
        given = super().clean() or {}
        if self.errors:
            return given
        try:
            done = pauses.pause(kind=given["kind"], name=given["name"], note=given["note"], by=self.by)
        except MailboxError as error:
            raise forms.ValidationError(error.message, code=error.code) from error
        if not done.changed:
            raise forms.ValidationError(f"{done.pause} is paused already.", code="already_paused")
        self.instance.pk = done.pause.pk
        return given

    def _post_clean(self) -> None:
        """Nothing more: the row is there, and was checked by the verb."""


@admin.register(Pause)
class PauseAdmin(ActingAdmin, AddOnlyAdmin):
    """What is paused now."""

    form = PauseForm
    acts = (RESUME,)
    list_display = ("kind", "name", "scope", "note", "paused_by", "paused_at")
    list_filter = ("kind",)
    given = ("kind", "name", "note")
    advice = (
        "Nothing of it starts until it is resumed; what runs goes on. The name is the agent's or queue's, or the "
        "thread's id."
    )

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form in the name of whoever asks."""
        form = super().get_form(request, obj, change=change, **kwargs)
        by = f"user {request.user.get_username()}"[: inputs.MAX_NAME]
        return type(form.__name__, (form,), {"by": by})

    def save_model(self, request: HttpRequest, obj: Pause, form: Any, change: bool) -> None:
        """The form has paused it: read what is there."""
        obj.refresh_from_db()
