"""Lists and pages with acts: chosen rows of a list, or a button on a row's page; each is told and logged."""

import json
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html

from mailbox_app.admin import render
from mailbox_app.admin.acts import Act, Result
from mailbox_app.admin.base import ReadOnlyAdmin
from mailbox_app.errors import InvalidInput, MailboxError
from mailbox_app.models import Run
from mailbox_app.operations import inputs

# Each is a transaction or two, all within one request.
MOST_AT_ONCE = 100
# An operator reads so many sentences; the log has them all.
_MOST_TOLD = 10
# Characters of a sentence that quotes what was typed.
_MOST_SHOWN = 300


class ActingAdmin(ReadOnlyAdmin):
    """Rows that operators do something about. `acts` are what there is to do; each asks for its own permission.

    What an act is refused is told, and logged, like what it did.
    """

    acts: ClassVar[Sequence[Act]] = ()

    def get_urls(self) -> list[Any]:
        """One more page a row: do an act, or ask before it."""
        opts = self.opts
        act = path(
            "<path:object_id>/act/<slug:name>/",
            self.admin_site.admin_view(self.act_view),
            name=f"{opts.app_label}_{opts.model_name}_act",
        )
        return [act, *super().get_urls()]

    def __init__(self, model: Any, admin_site: Any) -> None:
        super().__init__(model, admin_site)
        self.actions = [_action(act) for act in self.acts]

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> Any:
        """The acts this user may do. From Django 6.1 on actions have a place; buttons on a row's page are our own."""
        place = {} if action_location is None else {"action_location": action_location}
        permitted = {act.name for act in self._permitted(request)}
        found = super().get_actions(request, **place)
        return {name: action for name, action in found.items() if name in permitted}

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list; whoever posts an act without its permission is refused rather than ignored."""
        chosen = {*request.POST.getlist("action")}
        if any(act.name in chosen and not request.user.has_perm(act.permission) for act in self.acts):
            raise PermissionDenied
        if chosen:
            for given in request.POST.getlist(ACTION_CHECKBOX_NAME):
                _identifier(given)
        return super().changelist_view(request, extra_context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show a button for each act that applies to the row."""
        obj = kwargs.get("obj")
        if obj is not None:
            context["acts"] = [(act, self._act_url(obj, act)) for act in self._permitted(request) if act.applies(obj)]
        return super().render_change_form(request, context, *args, **kwargs)

    def act_view(self, request: HttpRequest, object_id: str, name: str) -> HttpResponse:
        """Do an act to one row (POST), or ask first (GET, and POST of one that hurts until it is confirmed)."""
        act = next((one for one in self.acts if one.name == name), None)
        if act is None or not (request.user.has_perm(act.permission) and self.has_view_permission(request)):
            raise PermissionDenied
        rows = self._rows([_identifier(unquote(object_id))])
        if not rows:
            self.message_user(request, f"There is no such {self.opts.verbose_name}: {object_id}", messages.WARNING)
            return HttpResponseRedirect(self._list_url())
        if request.method != "POST" or (act.warning and "confirmed" not in request.POST):
            return self._ask(request, act, rows, self._act_url(rows[0], act))
        reason = _reason(request, act)
        if reason is None:
            return self._ask(request, act, rows, self._act_url(rows[0], act))
        self._act(request, act, rows, reason)
        still_here = self.get_queryset(request).filter(pk=rows[0].pk).exists()
        return HttpResponseRedirect(self._page_url(rows[0]) if still_here else self._list_url())

    def act_on_list(self, request: HttpRequest, act: Act, queryset: Any) -> HttpResponse | None:
        """Do an act to the chosen rows, each by itself, or ask first."""
        # Also those that have left the list since it was shown: the verb says why it refuses them.
        if request.POST.get("select_across") == "1":
            ids = list(queryset.values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        else:
            ids = [_identifier(given) for given in request.POST.getlist(ACTION_CHECKBOX_NAME)]
        if len(ids) > MOST_AT_ONCE:
            self.message_user(
                request, f"At most {MOST_AT_ONCE} at once; choose fewer. Nothing was done.", messages.ERROR
            )
            return None
        rows = self._rows(ids)
        if act.warning and "confirmed" not in request.POST:
            return self._ask(request, act, rows, self._list_url())
        reason = _reason(request, act)
        if reason is None:
            return self._ask(request, act, rows, self._list_url())
        self._act(request, act, rows, reason)
        return None

    def _act(self, request: HttpRequest, act: Act, rows: Sequence[Any], reason: str) -> None:
        """Do it row by row; what one is refused leaves the others alone."""
        by = f"user {request.user.get_username()}"[: inputs.MAX_NAME]
        told, did = [], 0
        for row in rows:
            try:
                result = act.do(row, by, reason)
            except MailboxError as error:
                result = Result(text=f"Refused ({error.code}): {error.message}", did=False)
            self.log_change(request, row, f"{act.label}: {result.text}")
            did += result.did
            told.append((row, result))
        self.message_user(
            request, f"{act.label}: {did} of {len(rows)} done.", messages.SUCCESS if did else messages.WARNING
        )
        # Refusals first: they are what needs a second look.
        for row, result in sorted(told, key=lambda one: one[1].did)[:_MOST_TOLD]:
            text: Any = result.text
            if result.run_id is not None:
                text = format_html("{} {}", text, render.link(Run, result.run_id, "Look at it"))
            self.message_user(
                request,
                format_html("{} {}: {}", self.opts.verbose_name, render.short_id(row.pk), text),
                messages.INFO if result.did else messages.WARNING,
            )
        if len(told) > _MOST_TOLD:
            self.message_user(request, f"And {len(told) - _MOST_TOLD} more, each in its row's history.")

    def _ask(self, request: HttpRequest, act: Act, rows: Sequence[Any], url: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"{act.label}: are you sure?",
            "opts": self.opts,
            "act": act,
            "url": url,
            "rows": [(row.pk, render.link(type(row), row.pk, row)) for row in rows],
            "checkbox": ACTION_CHECKBOX_NAME,
            "reason": request.POST.get("reason", ""),
            "payload": request.POST.get("payload", ""),
            "most_characters": inputs.MAX_NAME,
        }
        return TemplateResponse(request, "mailbox/admin/confirm.html", context)

    def _rows(self, ids: Sequence[uuid.UUID]) -> list[Any]:
        """The rows as what they are: a dead letter is a dispatch, and logged as one, since it leaves its list."""
        model: Any = self.opts.concrete_model
        found = {row.pk: row for row in model._default_manager.filter(pk__in=ids)}
        return [found[pk] for pk in ids if pk in found]

    def _permitted(self, request: HttpRequest) -> list[Act]:
        return [act for act in self.acts if request.user.has_perm(act.permission)]

    def _act_url(self, row: Any, act: Act) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_act", args=[row.pk, act.name])

    def _page_url(self, row: Any) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[row.pk])

    def _list_url(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")


def _action(act: Act) -> Any:
    def do(admin: ActingAdmin, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return admin.act_on_list(request, act, queryset)

    do.__name__ = act.name
    do.short_description = f"{act.label} selected"  # type: ignore[attr-defined]
    return do


def _identifier(given: str) -> uuid.UUID:
    """The id somebody posted; BadRequest if it is none."""
    try:
        return uuid.UUID(given)
    except ValueError:
        raise BadRequest("not an id") from None


def _reason(request: HttpRequest, act: Act) -> str | None:
    """Why, as it was given, or the payload; None, and told, if it cannot be stored."""
    if act.takes_payload:
        return _payload(request)
    given = request.POST.get("reason", "").strip() if act.takes_reason else ""
    try:
        return inputs.text("reason", given, may_be_blank=True)
    except InvalidInput as error:
        messages.error(request, error.message)
        return None


def _payload(request: HttpRequest) -> str | None:
    """The JSON as it was given; None, and told, if it is none."""
    given = request.POST.get("payload", "").strip()
    try:
        json.loads(given or "null")
    except (ValueError, RecursionError) as error:
        messages.error(request, f"The payload is not JSON: {error}"[:_MOST_SHOWN])
        return None
    return given
