"""Limits: who may add one sets it, who may change one sets it anew, who may delete one removes it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.http import HttpRequest

from mailbox_app.admin import render, sections
from mailbox_app.admin.acting import ActingAdmin
from mailbox_app.admin.acts import REMOVE
from mailbox_app.admin.base import AddOnlyAdmin
from mailbox_app.errors import MailboxError
from mailbox_app.models import Limit, LimitKind
from mailbox_app.operations import inputs, limits

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Limit]
else:
    ModelForm = forms.ModelForm

_TARGET = ("kind", "name")
_BOUNDS = ("most", "starts", "seconds", "note")
_FORM = (*_TARGET, "most", ("starts", "seconds"), "note")


class LimitForm(ModelForm):
    """What to limit, how far, and why; setting it is part of the form's check, as the verb alone knows what is one."""

    by = ""

    def clean(self) -> dict[str, Any]:
        """Set it; a refusal is an error of the form, and so is a new limit of what has one."""
        given = super().clean() or {}
        if self.errors:
            return given
        is_new = self.instance._state.adding
        target = {name: given[name] if is_new else getattr(self.instance, name) for name in _TARGET}
        known = Limit.objects.of(**target).in_force().first() if is_new else None
        if known is not None:
            raise forms.ValidationError(f"{known} is limited already: change that.", code="already_limited")
        try:
            done = limits.put(**target, **{name: given[name] for name in _BOUNDS}, by=self.by)
        except MailboxError as error:
            raise forms.ValidationError(error.message, code=error.code) from error
        self.instance.pk = done.limit.pk
        return given

    def _post_clean(self) -> None:
        """Nothing more: the row is there, and was checked by the verb."""


@admin.register(Limit)
class LimitAdmin(ActingAdmin, AddOnlyAdmin):
    """What is limited now, and how far it is used."""

    form = LimitForm
    acts = (REMOVE,)
    list_display = ("kind", "name", "bounds", "permits_held", "note", "set_by", "set_at", "settling")
    list_display_links = _TARGET
    list_filter = ("kind",)
    advice = (
        "Most: how many of its runs execute at once. Starts within seconds, of agents alone: how often one starts. "
        "What runs goes on, and counts. The name is the agent's or the scope's."
    )

    def get_queryset(self, request: HttpRequest) -> Any:
        """Each with how many hold a permit."""
        rows: Any = super().get_queryset(request)
        return rows.with_held()

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """The agent's and the scope's of exactly this name."""
        term = search_term.strip().replace("\x00", "")
        return (queryset.filter(kind__in=LimitKind.values, name=term) if term else queryset), False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's own permission: the verb takes the place of what it was."""
        return self.may(request, "change")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What a new one is given; of one that exists also how far it is used, by whom and when it was set."""
        standing = () if obj is None else ("stands", ("permits_held", "settling"), ("set_by", "set_when"))
        return [(None, {"fields": (*_FORM, *standing), "description": self.advice})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """All but the bounds and the note: another agent or scope has another limit."""
        if obj is None:
            return ()
        return [name for name in flatten_fieldsets(self.get_fieldsets(request, obj)) if name not in _BOUNDS]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form in the name of whoever asks."""
        form = super().get_form(request, obj, change=change, **kwargs)
        by = f"user {request.user.get_username()}"[: inputs.MAX_NAME]
        return type(form.__name__, (form,), {"by": by})

    def save_model(self, request: HttpRequest, obj: Limit, form: Any, change: bool) -> None:
        """The form has set it: read what is there."""
        obj.refresh_from_db()

    def sections(self, request: HttpRequest, obj: Limit) -> Sequence[sections.Section]:
        """Who holds a permit."""
        return (sections.holders(obj.pk),)

    @admin.display(description="bounds")
    def bounds(self, limit: Limit) -> str:
        """What it allows."""
        return limit.bounds

    @admin.display(description="permits held")
    def permits_held(self, limit: Any) -> str:
        """How many of how many."""
        if limit.most is None:
            return str(limit.held) if limit.held else render.NOTHING
        return f"{limit.held} of {limit.most}"

    @admin.display(description="settling")
    def settling(self, limit: Limit) -> str:
        """Whether what it found running still counts otherwise than by a permit."""
        return "until what ran before has ended" if limit.is_settling else render.NOTHING

    @admin.display(description="where it stands")
    def stands(self, limit: Limit) -> str:
        """Whether anything more may start."""
        if limit.is_over:
            return "Removed: nothing is limited; it goes with the last permit."
        if Limit.objects.reached().filter(pk=limit.pk).exists():
            return "Reached: nothing more starts until a run ends, or there is a start again."
        return "More may start."

    @admin.display(description="set")
    def set_when(self, limit: Limit) -> str:
        """When it was set."""
        return render.when(limit.set_at)
