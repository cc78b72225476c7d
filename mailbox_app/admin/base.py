"""What every page shares: nothing can be changed, lists stay cheap whatever the table holds, documents are cut."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_permission_codename
from django.core.paginator import Paginator
from django.db import connections, models
from django.db.models import Prefetch, Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import cached_property

from mailbox_app.admin import live, render
from mailbox_app.admin.sections import Section
from mailbox_app.models import Thread

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator

ROWS_PER_PAGE = 50
# A page further on would be read by skipping all before it; whoever needs those rows searches.
MOST_PAGES = 100
MOST_COUNTED = ROWS_PER_PAGE * MOST_PAGES
# A thread key is unique in its scope; more scopes than this that use the same one are not searched.
_MOST_NAMESAKES = 100

_ESTIMATE = "SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass"


class EstimatedPaginator(_Paginator):
    """Counts at most MOST_COUNTED rows: beyond that a list without a filter shows PostgreSQL's own estimate."""

    @cached_property
    def count(self) -> int:
        """Exact up to MOST_COUNTED."""
        rows: Any = self.object_list
        if not rows.query.where:
            estimate = _estimate(rows)
            if estimate > MOST_COUNTED:
                return estimate
        return int(rows.order_by().values("pk")[:MOST_COUNTED].count())

    @cached_property
    def num_pages(self) -> int:
        """Never more than MOST_PAGES."""
        return min(super().num_pages, MOST_PAGES)


def _estimate(rows: Any) -> int:
    """How many rows the table holds by the last ANALYZE or VACUUM; -1 when there was none."""
    connection = connections[rows.db]
    with connection.cursor() as cursor:
        cursor.execute(_ESTIMATE, [connection.ops.quote_name(rows.model._meta.db_table)])
        return int(cursor.fetchone()[0])


class WordFilter(admin.SimpleListFilter):
    """Filters by words of the model's queryset, so that statuses stay where the model has them."""

    title = "state"
    parameter_name = "state"
    words: Sequence[str] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The words, as the page shows them."""
        return [(word, word.replace("_", " ")) for word in self.words]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """The rows the chosen word names; all of them without one."""
        word = self.value()
        return getattr(queryset, word)() if word is not None and word in self.words else queryset


def words(*names: str) -> type[WordFilter]:
    """A list filter that offers these words of the queryset."""
    return type("WordFilter", (WordFilter,), {"words": names})


class AgeFilter(admin.SimpleListFilter):
    """Filters by how long ago something happened; where the ids are ordered by time, their index does the work."""

    parameter_name = "age"
    column = ""
    is_order_of_ids = False

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The spans there are."""
        return [(name, f"past {name}") for name in _SPANS]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """The rows of that span; all of them without one."""
        span = _SPANS.get(self.value() or "")
        if span is None:
            return queryset
        since = timezone.now() - span
        if self.is_order_of_ids:
            queryset = queryset.filter(pk__gte=_first_id(since - _MOST_SKEW))
        return queryset.filter(**{f"{self.column}__gte": since})


_SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "7 days": timedelta(days=7), "30 days": timedelta(30)}
# Ids have the clock of the process that made the row, columns that of the database.
_MOST_SKEW = timedelta(hours=1)


def age(column: str, *, is_order_of_ids: bool = True) -> type[AgeFilter]:
    """A list filter by this time. `is_order_of_ids`: the rows got their (version 7) ids about then."""
    given = {"column": column, "is_order_of_ids": is_order_of_ids, "title": column.removesuffix("_at")}
    return type("AgeFilter", (AgeFilter,), given)


def _first_id(at: datetime) -> uuid.UUID:
    """The lowest version 7 id of that millisecond."""
    return uuid.UUID(int=int(at.timestamp() * 1000) << 80)


class _LightChangeList(ChangeList):
    """A list that leaves documents in the database; columns ask for excerpts of them."""

    model_admin: "ReadOnlyAdmin"

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        rows = super().get_queryset(request, *args, **kwargs)
        heavy = [field.name for field in _documents(self.model)]
        return rows.defer(*heavy).annotate(**self.model_admin.list_annotations)

    def apply_select_related(self, qs: Any) -> Any:
        """Read what the rows of the page point at in one more statement; a join would do it for those before, too."""
        related = self.model_admin.list_select_related
        for name in related if isinstance(related, list | tuple) else ():
            target: Any = self.model._meta.get_field(name).related_model
            light = target._default_manager.defer(*(field.name for field in _documents(target)))
            qs = qs.prefetch_related(Prefetch(name, queryset=light))
        return qs


def _documents(model: Any) -> list[Any]:
    return [field for field in model._meta.concrete_fields if isinstance(field, models.JSONField)]


class ReadOnlyAdmin(ModelAdmin):
    """One model, to be looked at.

    `searched_ids` are the UUID columns, each indexed, that a search looks into; `searched_thread` is the column that
    holds the id of the thread a searched key names. `list_annotations` are the excerpts a list shows.
    """

    actions: Any = None
    change_form_template = "mailbox/admin/record.html"
    list_per_page = ROWS_PER_PAGE
    list_max_show_all = ROWS_PER_PAGE
    paginator = EstimatedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by: ClassVar[Any] = ()
    ordering: ClassVar[Any] = ("-pk",)
    view_on_site = False
    search_fields: ClassVar[Any] = ("pk",)  # has the page show the search box; see get_search_results
    searched_ids: ClassVar[Sequence[str]] = ("pk",)
    searched_thread: ClassVar[str | None] = None
    list_annotations: ClassVar[dict[str, Any]] = {}
    hidden: ClassVar[Sequence[str]] = ()

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds a row past the verbs."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes a row past the verbs."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes a row past the verbs."""
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list without documents."""
        return _LightChangeList

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Rows with exactly this id, or of the thread with exactly this id or key. Anything else finds nothing."""
        term = search_term.strip().replace("\x00", "")
        if not term:
            return queryset, False
        found = Q(pk__in=[])
        try:
            wanted = uuid.UUID(term)
        except ValueError:
            if self.searched_thread is not None:
                keyed = Thread.objects.not_deleted().filter(key=term).values_list("pk", flat=True)
                found |= Q(**{f"{self.searched_thread}__in": list(keyed[:_MOST_NAMESAKES])})
        else:
            for column in self.searched_ids:
                found |= Q(**{column: wanted})
        return queryset.filter(found), False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Every column but the hidden, documents and texts cut."""
        return [_shown(field) for field in self.model._meta.concrete_fields if field.name not in self.hidden]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The declared ones with documents and texts cut; else all columns."""
        if not self.fieldsets:
            return [(None, {"fields": self.get_fields(request, obj)})]
        return [
            (title, {**options, "fields": [self._line(given) for given in options["fields"]]})
            for title, options in self.fieldsets
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Everything."""
        return flatten_fieldsets(self.get_fieldsets(request, obj))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show the row's tables below what matters about it, and have the page follow a run that goes on."""
        obj = kwargs.get("obj")
        context["sections"] = [] if obj is None else [part for part in self.sections(request, obj) if part.may(request)]
        context["live_url"] = "" if obj is None else live.url_for(request, self.followed(obj))
        return super().render_change_form(request, context, *args, **kwargs)

    def followed(self, obj: Any) -> uuid.UUID | None:
        """The run that the row's page follows while it is looked at; None for one on which nothing goes on."""
        return None

    def sections(self, request: HttpRequest, obj: Any) -> Sequence[Section]:
        """Tables of what belongs to the row; those of a model the user may not view are left out."""
        return ()

    def _line(self, given: Any) -> Any:
        if not isinstance(given, str):
            return tuple(self._line(name) for name in given)
        return given if hasattr(self, given) else _shown(self.model._meta.get_field(given))


class AddOnlyAdmin(ReadOnlyAdmin):
    """One model whose rows people add, by Django's own permission, and change no more.

    `given` are the fields of the form, `advice` what stands above them.
    """

    given: ClassVar[Sequence[str]] = ()
    advice: ClassVar[str] = ""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's own permission."""
        return self.may(request, "add")

    def may(self, request: HttpRequest, action: str) -> bool:
        """Whether this user has Django's permission of that name for the model."""
        codename = get_permission_codename(action, self.opts)
        return bool(request.user.has_perm(f"{self.opts.app_label}.{codename}"))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What a new row is given; all but the hidden of one that exists."""
        if obj is None:
            return [(None, {"fields": self.given, "description": self.advice})]
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Nothing of a new row; everything of one that exists."""
        return () if obj is None else super().get_readonly_fields(request, obj)


def _shown(field: Any) -> str | Callable[[Any], Any]:
    """The field's name, or what renders it: a text where it may be long, a time to the millisecond."""
    if isinstance(field, models.DateTimeField):
        look: Callable[[Any], Any] = render.when
    elif isinstance(field, models.JSONField | models.TextField):
        look = render.document
    else:
        return str(field.name)

    def show(row: Any) -> Any:
        return look(getattr(row, field.attname))

    show.__name__ = str(field.name)
    show.short_description = field.verbose_name  # type: ignore[attr-defined]
    return show
