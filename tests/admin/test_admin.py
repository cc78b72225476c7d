"""The admin shows every row and lets nobody change one past the verbs; its lists cost the same whatever they hold."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from mailbox_app.admin import base
from mailbox_app.models import (
    AgentRegistration,
    AgentVersion,
    ApiToken,
    DeadLetter,
    Dispatch,
    Event,
    IdempotencyKey,
    JournalEntry,
    Limit,
    Maintenance,
    Message,
    Outbox,
    Pause,
    Permit,
    Run,
    Thread,
    Ticket,
    token_digest,
)
from tests import given
from tests.admin.pages import listed, operator, shown, text

pytestmark = pytest.mark.django_db

EVIL = "<script>alert('payload')</script>"
ESCAPED = "&lt;script&gt;alert("
MAKERS: dict[type[models.Model], Callable[..., models.Model]] = {
    Thread: lambda: given.thread(title=EVIL, metadata={"x": EVIL}),
    Run: lambda: given.run(status="done", error={"code": "transient", "message": EVIL}, final_output=EVIL),
    Dispatch: lambda: given.dispatch(last_error=EVIL, claimed_by=EVIL, status="claimed"),
    DeadLetter: lambda: dead_letter(last_error=EVIL),
    Message: lambda: given.message(content=EVIL),
    Event: lambda: given.event(payload={"output": EVIL}),
    JournalEntry: lambda: given.journal_entry(result={"found": EVIL}),
    Ticket: lambda: given.ticket(question=EVIL, arguments={"x": EVIL}),
    Outbox: lambda: given.outbox(last_error=EVIL, payload={"x": EVIL}),
    AgentRegistration: lambda: given.registration(queues=[EVIL], options={"x": EVIL}),
    AgentVersion: lambda: given.agent_version(note=EVIL, configuration={"x": EVIL}),
    Limit: lambda: given.limit(note=EVIL, set_by=EVIL),
    Pause: lambda: given.pause(note=EVIL, paused_by=EVIL),
    Maintenance: lambda: given.maintenance(worker=EVIL),
    IdempotencyKey: lambda: given.idempotency_key(response={"x": EVIL}),
    ApiToken: lambda: given.api_token(name=EVIL),
}
SHOWN = pytest.mark.parametrize("model", MAKERS, ids=lambda model: model.__name__)
# Session, user, permissions, count, estimate, rows, their threads; a page adds its tables. None grows with the rows.
MOST_LIST_QUERIES = 7
MOST_PAGE_QUERIES = 18


def dead_letter(**fields: Any) -> DeadLetter:
    run = given.run(status="done")
    return DeadLetter.objects.get(pk=given.dispatch(run=run, status="dead_letter", **fields).pk)


def test_every_model_is_registered_but_permits_which_are_their_limit_s() -> None:
    ours = set(apps.get_app_config("mailbox").get_models()) - {Permit}
    assert Permit not in admin.site._registry
    assert ours == set(MAKERS)
    assert ours <= set(admin.site._registry)


@SHOWN
def test_list_and_page_show_a_row_and_escape_what_it_holds(model: type[models.Model], admin_client: Client) -> None:
    row = MAKERS[model]()
    for url in (listed(model), shown(row)):
        page = text(admin_client, url)
        assert EVIL not in page
    assert ESCAPED in text(admin_client, shown(row)), "the payload is shown"


@SHOWN
def test_a_list_costs_the_same_however_many_rows_it_shows(model: type[models.Model], admin_client: Client) -> None:
    counts = []
    for rows in (2, 30):
        for _ in range(rows):
            MAKERS[model]()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page = text(admin_client, listed(model))
        counts.append(len(queries))
        assert page.count("<tr>") + page.count("<tr ") > rows
    assert counts[0] == counts[1] <= MOST_LIST_QUERIES


def history(rows: int) -> tuple[Thread, Run, Dispatch]:
    """A thread with a run that has so many dispatches, messages, events, journal entries and tickets."""
    thread = given.thread(key="order-7")
    run = given.run(thread=thread, status="waiting")
    for n in range(1, rows + 1):
        dispatch = given.dispatch(run=run, status="acked")
        given.message(thread=thread, run=run, content=f"message {n} {EVIL}")
        given.event(thread=thread, run_id=run.pk, dispatch_id=dispatch.pk, kind=f"Kind{n}", payload={"said": EVIL})
        given.journal_entry(run=run, n=n, result={"step": n})
        given.ticket(run=run, answer={"n": n})
    return thread, run, dispatch


@pytest.mark.parametrize("place", range(3), ids=["Thread", "Run", "Dispatch"])
def test_a_page_costs_the_same_however_much_belongs_to_it(place: int, admin_client: Client) -> None:
    counts = []
    for rows in (1, 20):
        Thread.objects.all().delete()
        row = history(rows)[place]
        with CaptureQueriesContext(connection) as queries:
            text(admin_client, shown(row))
        counts.append(len(queries))
    assert counts[0] == counts[1] <= MOST_PAGE_QUERIES


@pytest.mark.parametrize("place", [1, 2], ids=["Run", "Dispatch"])
def test_run_and_dispatch_tell_the_whole_story(place: int, admin_client: Client) -> None:
    rows = history(3)
    thread, run, dispatch = rows
    page = text(admin_client, shown(rows[place]))
    assert EVIL not in page
    for section in ("dispatches", "journal", "tickets", "timeline", "messages"):
        assert f'id="{section}"' in page
    assert shown(thread) in page
    assert shown(run) in page
    assert shown(dispatch) in page
    for n in (1, 2, 3):
        assert f"message {n} {ESCAPED}" in page
        assert f"Kind{n}" in page
        assert f"{{&quot;step&quot;: {n}}}" in page
    assert page.index("Kind1") < page.index("Kind2") < page.index("Kind3"), "in the order they became true"


def test_a_long_history_is_cut_to_its_end_and_links_to_the_rest(admin_client: Client) -> None:
    thread = given.thread()
    run = given.run(thread=thread)
    for n in range(1, 53):
        given.event(thread=thread, run_id=run.pk, kind=f"Kind{n}.")
    page = text(admin_client, shown(run))
    assert "Kind2." not in page
    assert "Kind3." in page
    assert "Kind52." in page
    rest = f"{listed(Event)}?q={run.pk}"
    assert rest in page
    assert len(re.findall(r">Kind\d", text(admin_client, listed(Event), q=str(run.pk)))) == 50


def test_error_and_attempts_stand_on_a_dispatch(admin_client: Client) -> None:
    dispatch = given.dispatch(attempt_count=2, lost_count=1, last_error="transient: model overloaded")
    page = re.sub(r"\s+", " ", text(admin_client, shown(dispatch)))
    assert "transient: model overloaded" in page
    assert "2 of 5, lost 1" in page


def test_a_long_payload_is_cut_and_says_so(admin_client: Client) -> None:
    message = given.message(content="x" * 100_000)
    page = text(admin_client, shown(message))
    assert "x" * 4_000 in page
    assert "x" * 4_001 not in page
    assert "4,000 of 100,000 characters" in page
    assert "x" * 201 not in text(admin_client, listed(Message))


def test_a_list_leaves_documents_in_the_database(admin_client: Client) -> None:
    for _ in range(3):
        given.message(content="x" * 100_000)
    with CaptureQueriesContext(connection) as queries:
        text(admin_client, listed(Message))
    rows = next(one["sql"] for one in queries if 'AS "excerpt"' in one["sql"])
    assert '"mailbox_message"."metadata"' not in rows
    assert rows.count('"mailbox_message"."content"') == 1, "only its excerpt is read"


def test_dead_letters_are_one_click_from_the_index(admin_client: Client) -> None:
    dead, resolved = dead_letter(last_error="permanent: no such customer"), dead_letter(last_error="dealt with")
    Dispatch.objects.filter(pk=resolved.pk).update(resolution="discarded", resolved_at=timezone.now())
    given.dispatch(last_error="still trying")
    assert f'href="{listed(DeadLetter)}"' in text(admin_client, reverse("admin:index"))
    page = text(admin_client, listed(DeadLetter))
    for expected in ("permanent: no such customer", "0 of 5", "echo", shown(dead.thread), shown(dead.run), shown(dead)):
        assert expected in page
    assert "dealt with" not in page
    assert "still trying" not in page


def test_dead_letters_come_newest_first(admin_client: Client) -> None:
    now = timezone.now()
    for days in (2, 1, 3):
        dead_letter(last_error=f"died {days} days ago", completed_at=now - timedelta(days=days))
    found = re.findall(r"died (\d)", text(admin_client, listed(DeadLetter)))
    assert found == ["1", "2", "3"]


@SHOWN
def test_nothing_can_be_changed_added_or_deleted(model: type[models.Model], admin_client: Client) -> None:
    row = MAKERS[model]()
    before = list(model._default_manager.values())
    urls = [reverse(f"admin:mailbox_{model._meta.model_name}_delete", args=[row.pk])]
    if model is not Limit:
        urls.append(shown(row))
    if model not in (ApiToken, AgentVersion, Limit, Pause):
        urls.append(reverse(f"admin:mailbox_{model._meta.model_name}_add"))
    for url in urls:
        assert admin_client.post(url, {"post": "yes", "scope": "stolen", "_save": "Save"}).status_code == 403, url
    data = {"action": "delete_selected", "_selected_action": [str(row.pk)], "index": "0", "post": "yes"}
    admin_client.post(listed(model), data)
    assert list(model._default_manager.values()) == before
    page = text(admin_client, shown(row))
    assert ('name="_save"' in page) == (model is Limit), "its form is the verb's"
    assert "deletelink" not in page
    assert text(admin_client, listed(model)).count("delete_selected") == 0


@SHOWN
def test_who_may_not_view_sees_nothing(model: type[models.Model]) -> None:
    row = MAKERS[model]()
    client = operator()
    assert client.get(listed(model)).status_code == 403
    assert client.get(shown(row)).status_code == 403


@SHOWN
def test_who_may_view_one_model_sees_that_one_only(model: type[models.Model]) -> None:
    row = MAKERS[model]()
    client = operator(f"view_{model._meta.model_name}")
    text(client, listed(model))
    text(client, shown(row))
    index = text(client, reverse("admin:index"))
    assert [other for other in MAKERS if f'href="{listed(other)}"' in index] == [model]


def test_a_page_leaves_out_what_its_reader_may_not_view() -> None:
    _, run, _ = history(2)
    page = text(operator("view_run", "view_event"), shown(run))
    assert 'id="timeline"' in page
    for section in ("dispatches", "journal", "tickets", "messages"):
        assert f'id="{section}"' not in page
    assert "message 1" not in page


def test_a_search_finds_exactly_an_id_or_a_thread_key(admin_client: Client) -> None:
    thread, run, dispatch = history(1)
    other = given.dispatch()
    for wanted in (dispatch.pk, dispatch.pk.hex, run.pk, thread.pk, "order-7", " order-7 "):
        page = text(admin_client, listed(Dispatch), q=str(wanted))
        assert shown(dispatch) in page
        assert shown(other) not in page
    for nothing in ("order", "order-8", str(dispatch.pk)[:-1], "%", "\x00"):
        page = text(admin_client, listed(Run), q=nothing)
        assert (shown(run) in page) == (nothing == "\x00"), "an empty search shows everything"


@pytest.mark.parametrize("model", [Thread, Run, Dispatch, DeadLetter, Message, Event, JournalEntry, Ticket, Outbox])
def test_what_a_search_looks_into_is_indexed(model: type[models.Model]) -> None:
    """Each column leads an index of its own: no search reads the whole table."""
    page = admin.site._registry[model]
    assert isinstance(page, base.ReadOnlyAdmin)
    columns = {name.removesuffix("_id") for name in page.searched_ids if name != "pk"}
    opts = model._meta
    leading = {field.name for field in opts.concrete_fields if field.db_index}
    # An index of the rows in which a column is not null has all that equal something.
    leading |= {
        index.fields[0]
        for index in opts.indexes
        if index.fields and index.condition in (None, models.Q(**{f"{index.fields[0]}__isnull": False}))
    }
    leading |= {
        one.fields[0]
        for one in opts.constraints
        if isinstance(one, models.UniqueConstraint) and one.condition is None and one.fields
    }
    leading |= {name.removesuffix("_id") for name in leading}
    assert columns <= leading


@pytest.mark.parametrize(
    ("model", "state", "statuses"),
    [
        (Dispatch, "queued", ["queued"]),
        (Dispatch, "claimed", ["claimed"]),
        (Dispatch, "terminal", ["acked", "cancelled", "superseded", "dead_letter"]),
        (Run, "open", ["running", "waiting"]),
        (Run, "done", ["done"]),
        (Ticket, "open", ["open"]),
    ],
)
def test_a_filter_shows_the_rows_its_word_names(
    model: type[models.Model], state: str, statuses: list[str], admin_client: Client
) -> None:
    noun = str(model._meta.model_name)
    all_statuses = model._meta.get_field("status").choices or []
    rows = {str(status): given.row(noun, status=str(status)) for status, _ in all_statuses}
    page = text(admin_client, listed(model), state=state)
    assert [status for status, row in rows.items() if shown(row) in page] == statuses


def test_an_unknown_filter_word_filters_nothing(admin_client: Client) -> None:
    row = given.dispatch()
    assert shown(row) in text(admin_client, listed(Dispatch), state="delete")


def test_a_list_without_a_filter_is_not_counted(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's estimate stands for the count where the table is long; the number of pages is bounded."""
    monkeypatch.setattr(base, "MOST_COUNTED", 20)
    Thread.objects.bulk_create(Thread(scope="acme") for _ in range(30))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE mailbox_thread")
    with CaptureQueriesContext(connection) as queries:
        page = text(admin_client, listed(Thread))
    assert not [one["sql"] for one in queries if "COUNT(" in one["sql"].upper()]
    assert re.search(r"\b30 threads", page)


def test_a_filtered_list_counts_no_further_than_its_pages_reach(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 20)
    thread = given.thread()
    for _ in range(25):
        given.run(thread=thread)
    page = text(admin_client, listed(Run), q=str(thread.pk))
    assert re.search(r"\b20 runs", page)


def test_no_page_lies_further_than_is_worth_skipping() -> None:
    paginator = base.EstimatedPaginator(Thread.objects.order_by("pk"), 50)
    paginator.__dict__["count"] = 10_000_000
    assert paginator.num_pages == base.MOST_PAGES


def test_no_column_without_an_index_can_be_sorted_by(admin_client: Client) -> None:
    """Dead letters are sorted by an index of their own; every other list has one order, its primary key's."""
    for model in MAKERS:
        page = admin.site._registry[model]
        assert list(page.sortable_by or []) == (["completed_at"] if model is DeadLetter else [])  # type: ignore[call-overload]
        assert page.date_hierarchy is None
        assert page.show_full_result_count is False


def test_a_token_is_issued_with_its_secret_shown_once(admin_client: Client, admin_user: User) -> None:
    add = reverse("admin:mailbox_apitoken_add")
    data = {
        "name": "CI",
        "scope": "acme",
        "user": str(admin_user.pk),
        "expires_at_0": "2099-01-01",
        "expires_at_1": "00:00",
    }
    answer = admin_client.post(add, data, follow=True)
    assert answer.status_code == 200
    secret = re.search(r"<code>(mbx_[\w-]+)</code>", answer.content.decode())
    assert secret is not None
    token = ApiToken.objects.usable().get(digest=token_digest(secret[1]))
    assert (token.name, token.scope, token.user_id) == ("CI", "acme", admin_user.pk)  # type: ignore[attr-defined]
    for url in (listed(ApiToken), shown(token)):
        page = text(admin_client, url)
        assert secret[1] not in page
        assert token.digest not in page
        assert token.hint in page
    assert secret[1] not in str(list(admin.models.LogEntry.objects.values()))


@pytest.mark.parametrize("field", ["name", "scope"])
@pytest.mark.parametrize("value", ["", "   ", "x" * 201, "nul\x00byte"])
def test_a_token_without_a_proper_name_or_scope_is_refused(field: str, value: str, admin_client: Client) -> None:
    data = {"name": "CI", "scope": "acme", field: value}
    page = text_of_post(admin_client, reverse("admin:mailbox_apitoken_add"), data)
    assert "errorlist" in page
    assert not ApiToken.objects.exists()


def text_of_post(client: Client, url: str, data: dict[str, Any]) -> str:
    answer = client.post(url, data)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_token_is_revoked_by_action_and_logged(admin_client: Client) -> None:
    chosen, other = given.api_token(), given.api_token()
    data = {"action": "revoke", "_selected_action": [str(chosen.pk)], "index": "0"}
    assert admin_client.post(listed(ApiToken), data).status_code == 302
    assert list(ApiToken.objects.usable()) == [other]
    assert [entry.object_id for entry in admin.models.LogEntry.objects.all()] == [str(chosen.pk)]


def test_who_may_only_view_tokens_can_neither_issue_nor_revoke() -> None:
    token = given.api_token()
    client = operator("view_apitoken")
    assert client.post(reverse("admin:mailbox_apitoken_add"), {"name": "CI", "scope": "acme"}).status_code == 403
    client.post(listed(ApiToken), {"action": "revoke", "_selected_action": [str(token.pk)], "index": "0"})
    assert list(ApiToken.objects.usable()) == [token]


def test_the_admin_passes_its_own_checks() -> None:
    call_command("check", "--tag", "admin", "--fail-level", "WARNING")
