"""Every named constraint, broken with raw SQL on a row that is otherwise valid, beside a legal change of the same row.

Each case starts from a valid row, made by a factory, and says which assignments the database must refuse under the
constraint's name and which, as near to them as can be, it must take. NULL is among the refused wherever a column can
hold it: a CHECK that answers "unknown" lets a row pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction

from mailbox_app.states import TERMINAL_DISPATCH
from tests import given

A = "'00000000-0000-7000-8000-00000000000a'"
B = "'00000000-0000-7000-8000-00000000000b'"
WHEN = "now()"
CLAIM = f"claim_token = {A}, claimed_by = 'w', lease_until = {WHEN}"
PLACE = f"blocked_reason = 'scope_limit', blocked_priority = 1, blocked_since = {WHEN}"
FLAG = f"due_at = {WHEN}, due_priority = 1, due_queue = 'q', due_agent = 'a', due_version = ''"


@dataclass(frozen=True)
class Case:
    """`row()` makes the row; each of `refused` and `taken` is the SET of an UPDATE of it."""

    row: Callable[[], models.Model]
    refused: list[str]
    taken: list[str] = field(default_factory=list)


def second(
    maker: Callable[..., Any], *, first: dict[str, Any], then: dict[str, Any] | None = None
) -> Callable[[], Any]:
    """Make two rows that share a parent where `first` names one; the second is the one the case changes."""

    def rows() -> Any:
        shared = {name: value() if callable(value) else value for name, value in first.items()}
        maker(**shared)
        return maker(**{**shared, **(then or {})})

    return rows


def two_messages(**then: Any) -> Callable[[], Any]:
    return second(given.message, first={"thread": given.thread}, then=then)


def two_threads() -> Any:
    given.thread(key="k")
    return given.thread(key="other")


def two_runs_of_a_thread() -> Any:
    thread = given.thread()
    given.run(thread=thread, status="running")
    return given.run(thread=thread)


def two_dispatches_of_a_thread() -> Any:
    thread = given.thread()
    given.dispatch(run=given.run(thread=thread), status="claimed")
    return given.dispatch(run=given.run(thread=thread))


def two_dispatches_of_a_run() -> Any:
    run = given.run()
    given.dispatch(run=run)
    return given.dispatch(run=run, status="acked")


def keyed_runs() -> Any:
    given.run(dedupe_key="d", client_id="c")
    return given.run(dedupe_key="e", client_id="d")


def keyed_messages() -> Any:
    given.message(client_id="c")
    return given.message(client_id="d")


def numbered_messages() -> Any:
    thread = given.thread()
    given.message(thread=thread, status="committed", seq=7)
    return given.message(thread=thread, status="committed", seq=8)


def two_events() -> Any:
    thread = given.thread()
    given.event(thread=thread, cursor=1, key="k")
    return given.event(thread=thread, cursor=2, key="l")


def two_journal_entries() -> Any:
    run = given.run()
    given.journal_entry(run=run, n=1)
    return given.journal_entry(run=run, n=2)


def two_tickets() -> Any:
    run = given.run()
    given.ticket(run=run, ticket_id="t")
    return given.ticket(run=run, ticket_id="u")


def two_outbox_rows() -> Any:
    first = given.outbox(order=1)
    return given.outbox(source_thread=first.source_thread, target_thread_id=first.target_thread_id, order=2)


def two_registrations() -> Any:
    given.registration(worker="w", agent="a")
    return given.registration(worker="w", agent="b")


def two_limits() -> Any:
    given.limit(name="a")
    return given.limit(name="b")


def two_permits() -> Any:
    limit = given.limit()
    given.permit(limit=limit, dispatch_id=A.strip("'"))
    return given.permit(limit=limit)


def two_pauses() -> Any:
    given.pause(name="a")
    return given.pause(name="b")


def two_agent_versions() -> Any:
    given.agent_version(version="a")
    return given.agent_version(version="b")


def two_idempotency_keys() -> Any:
    given.idempotency_key(key="k")
    return given.idempotency_key(key="l")


def blank(maker: Callable[[], models.Model], *columns: str) -> Case:
    return Case(
        maker,
        [f"{column} = {value}" for column in columns for value in ("''", "' '", r"E' \t\n'")],
        [f"{column} = ' x '" for column in columns],
    )


CASES: dict[str, Case | list[Case]] = {
    # thread
    "thread_scope_not_blank": blank(given.thread, "scope"),
    "thread_key_null_or_not_blank": Case(given.thread, ["key = ''", "key = ' '"], ["key = NULL", "key = 'k'"]),
    "thread_key_unique_in_scope": Case(
        two_threads,
        ["key = 'k'"],
        ["key = NULL", "key = 'k', scope = 'other'", f"key = 'k', deleted_at = {WHEN}"],
    ),
    "thread_blocked_place_iff_scope_limit": [
        Case(
            given.thread,
            [
                "blocked_reason = 'scope_limit'",
                "blocked_reason = 'scope_limit', blocked_priority = 1",
                f"blocked_reason = 'scope_limit', blocked_since = {WHEN}",
                "blocked_priority = 1",
                f"blocked_since = {WHEN}",
                f"blocked_reason = 'paused', blocked_priority = 1, blocked_since = {WHEN}",
                f"{PLACE}, active_run_id = {A}, open_run_id = {A}",
            ],
            [PLACE, f"{PLACE}, open_run_id = {A}", f"{PLACE}, wakes_at = {WHEN}"],
        ),
    ],
    "thread_due_flag_whole_or_absent": Case(
        given.thread,
        [
            f"due_at = {WHEN}",
            "due_priority = 1",
            "due_queue = 'q'",
            "due_agent = 'a'",
            f"{FLAG}, due_at = NULL".replace(f"due_at = {WHEN}, ", "", 1),
            f"due_at = {WHEN}, due_queue = 'q', due_agent = 'a', due_version = ''",
            f"due_at = {WHEN}, due_priority = 1, due_queue = 'q', due_agent = 'a'",
            "due_version = ''",
            f"due_at = {WHEN}, due_priority = 1, due_agent = 'a'",
            f"due_at = {WHEN}, due_priority = 1, due_queue = 'q'",
            f"{FLAG}, active_run_id = {A}, open_run_id = {A}",
            f"{FLAG}, blocked_reason = 'paused'",
        ],
        [
            FLAG,
            f"{FLAG}, wakes_at = {WHEN}",
            f"{FLAG}, open_run_id = {A}",
            f"wakes_at = {WHEN}",
            "blocked_reason = 'paused'",
        ],
    ),
    "thread_counters_in_range": Case(
        given.thread,
        [
            "last_seq = -1",
            "last_cursor = -1, pruned_cursor = -1",
            "epoch = -1",
            "claim_count = -1",
            "pruned_cursor = -1",
            "last_cursor = 4, pruned_cursor = 5",
        ],
        ["last_seq = 0, epoch = 0, claim_count = 0", "last_cursor = 5, pruned_cursor = 5"],
    ),
    "thread_active_run_is_open_run": Case(
        given.thread,
        [f"active_run_id = {A}", f"active_run_id = {A}, open_run_id = {B}"],
        [f"active_run_id = {A}, open_run_id = {A}", f"open_run_id = {A}"],
    ),
    # run
    "run_names_not_blank": blank(given.run, "scope", "agent"),
    "run_status_known": Case(
        lambda: given.run(status="running"), ["status = ''", "status = 'ended'"], ["status = 'created'"]
    ),
    "run_turn_from_one": Case(given.run, ["turn = 0", "turn = -1"], ["turn = 1"]),
    "run_waiting_iff_waiting_state": [
        Case(
            lambda: given.run(status="running"),
            [f"status = 'waiting', wait_until = {WHEN}"],
            [f"status = 'waiting', wait_until = {WHEN}, waiting = '{{}}'"],
        ),
        Case(given.run, ["waiting = '{}'"], ["waiting = NULL"]),
        Case(
            lambda: given.run(status="waiting"),
            ["waiting = NULL", "status = 'running', wait_until = NULL"],
            ["status = 'running', waiting = NULL, wait_until = NULL"],
        ),
    ],
    "run_every_wait_has_an_end": [
        Case(lambda: given.run(status="waiting"), ["wait_until = NULL"], [f"wait_until = {WHEN}"]),
        Case(given.run, [f"wait_until = {WHEN}"], ["wait_until = NULL"]),
    ],
    "run_done_iff_finished": [
        Case(given.run, ["status = 'done'", f"finished_at = {WHEN}"], [f"status = 'done', finished_at = {WHEN}"]),
        Case(lambda: given.run(status="done"), ["finished_at = NULL"], [f"finished_at = {WHEN}"]),
    ],
    "run_outcome_only_when_done": Case(
        given.run,
        ["final_output = '1'", "error = '{}'"],
        [f"status = 'done', finished_at = {WHEN}, final_output = '1', error = '{{}}'"],
    ),
    "run_open_only_after_start": [
        Case(given.run, ["status = 'running'"], [f"status = 'running', started_at = {WHEN}"]),
        Case(
            given.run,
            [f"status = 'waiting', waiting = '{{}}', wait_until = {WHEN}"],
            [f"status = 'done', finished_at = {WHEN}"],
        ),
    ],
    "run_one_open_per_thread": Case(
        two_runs_of_a_thread,
        [
            f"status = 'running', started_at = {WHEN}",
            f"status = 'waiting', waiting = '{{}}', wait_until = {WHEN}, started_at = {WHEN}",
        ],
        [f"status = 'done', finished_at = {WHEN}", "status = 'created'"],
    ),
    "run_dedupe_key_unique_while_not_done": Case(
        keyed_runs,
        ["dedupe_key = 'd'", f"dedupe_key = 'd', status = 'running', started_at = {WHEN}"],
        [
            "dedupe_key = NULL",
            "dedupe_key = 'd', scope = 'other'",
            f"dedupe_key = 'd', status = 'done', finished_at = {WHEN}",
        ],
    ),
    "run_client_id_unique_in_scope": Case(
        keyed_runs,
        ["client_id = 'c'", f"client_id = 'c', status = 'done', finished_at = {WHEN}"],
        ["client_id = NULL", "client_id = 'c', scope = 'other'"],
    ),
    # dispatch
    "dispatch_names_not_blank": blank(given.dispatch, "agent", "queue"),
    "dispatch_status_known": Case(given.dispatch, ["status = ''", "status = 'done'"], ["status = 'queued'"]),
    "dispatch_priority_in_range": Case(
        given.dispatch, ["priority = -1", "priority = 256"], ["priority = 0", "priority = 255"]
    ),
    "dispatch_attempts_within_max": Case(
        given.dispatch,
        ["attempt_count = -1", "lost_count = -1", "max_attempts = 0", "attempt_count = 6"],
        ["attempt_count = 5", "attempt_count = 1, max_attempts = 1", "lost_count = 6"],
    ),
    "dispatch_claimed_iff_leased": [
        Case(
            given.dispatch,
            [
                "status = 'claimed'",
                f"claim_token = {A}",
                "claimed_by = 'w'",
                f"lease_until = {WHEN}",
                f"status = 'claimed', claim_token = {A}, claimed_by = 'w'",
                f"status = 'claimed', claimed_by = 'w', lease_until = {WHEN}",
                f"status = 'claimed', claim_token = {A}, lease_until = {WHEN}",
                f"status = 'claimed', claim_token = {A}, claimed_by = ' ', lease_until = {WHEN}",
            ],
            [f"status = 'claimed', {CLAIM}"],
        ),
        Case(
            lambda: given.dispatch(status="claimed"),
            [
                "claim_token = NULL",
                "claimed_by = ''",
                "lease_until = NULL",
                "status = 'queued'",
                f"status = 'acked', completed_at = {WHEN}",
                f"status = 'acked', completed_at = {WHEN}, claim_token = NULL, lease_until = NULL",
            ],
            ["status = 'queued', claim_token = NULL, claimed_by = '', lease_until = NULL"],
        ),
    ],
    "dispatch_permits_only_claimed": [
        Case(
            given.dispatch,
            ["permit_ids = '[]'"],
            ["permit_ids = NULL", f"status = 'claimed', {CLAIM}, permit_ids = '[]'"],
        ),
        Case(lambda: given.dispatch(status="acked"), ["permit_ids = '[]'"], ["permit_ids = NULL"]),
    ],
    "dispatch_queued_carries_no_result": Case(
        given.dispatch,
        ["run_status = 'done'", "termination = '{}'", "response = 'null'", "error = '{}'"],
        [f"status = 'acked', completed_at = {WHEN}, run_status = 'done', termination = '{{}}', response = '1'"],
    ),
    "dispatch_terminal_iff_completed": [
        Case(
            given.dispatch,
            [f"completed_at = {WHEN}", *(f"status = '{end.value}'" for end in TERMINAL_DISPATCH)],
            [f"status = 'superseded', completed_at = {WHEN}"],
        ),
        Case(lambda: given.dispatch(status="acked"), ["completed_at = NULL"], [f"completed_at = {WHEN}"]),
        Case(lambda: given.dispatch(status="claimed"), [f"completed_at = {WHEN}"], ["completed_at = NULL"]),
    ],
    "dispatch_only_dead_letters_resolved": [
        Case(
            lambda: given.dispatch(status="acked"),
            [f"resolution = 'replayed', resolved_at = {WHEN}"],
            ["resolution = ''"],
        ),
        Case(
            lambda: given.dispatch(status="dead_letter"),
            ["resolution = 'discarded'"],
            [f"resolution = 'discarded', resolved_at = {WHEN}"],
        ),
    ],
    "dispatch_one_claimed_per_thread": Case(
        two_dispatches_of_a_thread,
        [f"status = 'claimed', {CLAIM}"],
        ["status = 'queued'", f"status = 'cancelled', completed_at = {WHEN}"],
    ),
    "dispatch_one_live_per_run": Case(
        two_dispatches_of_a_run,
        ["status = 'queued', completed_at = NULL", f"status = 'claimed', completed_at = NULL, {CLAIM}"],
        ["status = 'cancelled'"],
    ),
    # message
    "message_scope_not_blank": blank(given.message, "scope"),
    "message_role_known": Case(given.message, ["role = ''", "role = 'human'"], ["role = 'tool'"]),
    "message_state_known": Case(given.message, ["state = ''", "state = 'read'"], ["state = 'pending'"]),
    "message_committed_iff_numbered": [
        Case(given.message, ["state = 'committed'", "seq = 1"], ["state = 'committed', seq = 1"]),
        Case(lambda: given.message(status="committed"), ["seq = NULL", "state = 'pending'"], ["seq = 99"]),
    ],
    "message_seq_from_one": Case(
        lambda: given.message(status="committed"), ["seq = 0", "seq = -1"], ["seq = 1", "state = 'pending', seq = NULL"]
    ),
    "message_retracted_iff_reason": [
        Case(
            given.message,
            ["state = 'retracted'", "retract_reason = 'withdrawn'"],
            ["state = 'retracted', retract_reason = 'withdrawn'"],
        ),
        Case(lambda: given.message(status="retracted"), ["retract_reason = ''"], ["retract_reason = 'other'"]),
    ],
    "message_seq_unique_in_thread": Case(numbered_messages, ["seq = 7"], ["seq = 9", "seq = NULL, state = 'pending'"]),
    "message_client_id_unique_in_scope": Case(
        keyed_messages, ["client_id = 'c'"], ["client_id = NULL", "client_id = 'c', scope = 'other'"]
    ),
    # event
    "event_kind_not_blank": blank(given.event, "kind"),
    "event_cursor_from_one": Case(given.event, ["cursor = 0"], ["cursor = 1"]),
    "event_cursor_unique_in_thread": Case(two_events, ["cursor = 1"], ["cursor = 3"]),
    "event_key_unique_in_thread": Case(two_events, ["key = 'k'"], ["key = NULL", "key = 'm'"]),
    # journal, ticket, outbox
    "journal_names_not_blank": blank(given.journal_entry, "verb", "name"),
    "journal_entry_once_per_use": Case(
        two_journal_entries,
        ["n = 1"],
        ["n = 1, turn = 2", "n = 1, verb = 'say'", "n = 1, name = 'other'", "n = 1, key = 'k'", "n = 3"],
    ),
    "ticket_id_not_blank": blank(given.ticket, "ticket_id"),
    "ticket_status_known": Case(given.ticket, ["status = ''", "status = 'closed'"], ["status = 'open'"]),
    "ticket_answered_iff_answered_at": [
        Case(
            given.ticket,
            ["status = 'answered'", f"answered_at = {WHEN}"],
            [f"status = 'answered', answered_at = {WHEN}", "status = 'expired'"],
        ),
        Case(lambda: given.ticket(status="answered"), ["answered_at = NULL"], [f"answered_at = {WHEN}"]),
    ],
    "ticket_once_per_run": Case(two_tickets, ["ticket_id = 't'"], ["ticket_id = 'v'"]),
    "outbox_kind_known": Case(given.outbox, ["kind = ''", "kind = 'mail'"], ["kind = 'wake'"]),
    "outbox_status_known": Case(
        lambda: given.outbox(status="delivered"), ["status = ''", "status = 'sent'"], ["status = 'dead_letter'"]
    ),
    "outbox_attempts_not_negative": Case(given.outbox, ["attempt_count = -1"], ["attempt_count = 0"]),
    "outbox_ended_iff_completed": [
        Case(
            given.outbox,
            ["status = 'delivered'", "status = 'dead_letter'", f"completed_at = {WHEN}"],
            [f"status = 'delivered', completed_at = {WHEN}"],
        ),
        Case(lambda: given.outbox(status="delivered"), ["completed_at = NULL"], [f"completed_at = {WHEN}"]),
    ],
    "outbox_order_unique_per_pair": Case(
        two_outbox_rows, ['"order" = 1'], ['"order" = 3', f'"order" = 1, target_thread_id = {A}']
    ),
    # workers
    "agent_registration_names_not_blank": blank(given.registration, "worker", "agent", "version"),
    "agent_registration_slots_from_one": Case(given.registration, ["slots = 0"], ["slots = 1"]),
    "agent_version_names_not_blank": blank(given.agent_version, "agent", "version"),
    "agent_version_once": Case(two_agent_versions, ["version = 'a'"], ["version = 'a', agent = 'other'"]),
    "agent_registration_once_per_worker": Case(two_registrations, ["agent = 'a'"], ["agent = 'a', worker = 'v'"]),
    # pauses
    "pause_name_not_blank": blank(given.pause, "name"),
    "pause_kind_known": Case(given.pause, ["kind = 'run'"], ["kind = 'queue'"]),
    "pause_scope_iff_of_thread": Case(
        given.pause, ["scope = 'acme'", "kind = 'thread'"], ["kind = 'thread', scope = 'acme'"]
    ),
    "pause_once": Case(two_pauses, ["name = 'a'"], ["name = 'a', kind = 'queue'"]),
    # limits
    "limit_name_not_blank": blank(given.limit, "name"),
    "limit_kind_known": Case(given.limit, ["kind = 'queue'"], ["kind = 'scope'"]),
    "limit_numbers_in_range": Case(
        given.limit,
        ["most = 0", "most = 1001", *(f"starts = {starts}, seconds = 1" for starts in (0, 100_001))]
        + [f"starts = 1, seconds = {seconds}" for seconds in (0, 0.9, 86_401)],
        ["most = NULL", "most = 1000", "starts = 1, seconds = 1", "starts = 100000, seconds = 86400"],
    ),
    "limit_rate_whole_or_absent": Case(given.limit, ["starts = 1", "seconds = 1"], ["starts = 1, seconds = 1"]),
    "limit_rate_only_of_agent": Case(
        lambda: given.limit(starts=1, seconds=1), ["kind = 'scope'"], ["kind = 'scope', starts = NULL, seconds = NULL"]
    ),
    "limit_bucket_only_with_rate": Case(
        given.limit, [f"full_at = {WHEN}"], [f"full_at = {WHEN}, starts = 1, seconds = 1"]
    ),
    "limit_once": Case(two_limits, ["name = 'a'"], ["name = 'a', kind = 'scope'"]),
    "permit_once_per_dispatch": Case(
        two_permits, [f"dispatch_id = {A}"], ["dispatch_id = NULL", f"dispatch_id = {B}"]
    ),
    # API
    "idempotency_key_names_not_blank": blank(given.idempotency_key, "scope", "key"),
    "idempotency_key_unique_in_scope": Case(two_idempotency_keys, ["key = 'k'"], ["key = 'k', scope = 'other'"]),
    "api_token_names_not_blank": blank(given.api_token, "name", "scope"),
}  # fmt: skip
EVERY = [(name, case) for name, cases in CASES.items() for case in (cases if isinstance(cases, list) else [cases])]
REFUSED = [pytest.param(name, case.row, sets, id=f"{name}: {sets}") for name, case in EVERY for sets in case.refused]
TAKEN = [pytest.param(case.row, sets, id=f"{name}: {sets}") for name, case in EVERY for sets in case.taken]


def update(row: models.Model, sets: str) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        key = row._meta.pk.column if row._meta.pk else "id"
        cursor.execute(f"UPDATE {row._meta.db_table} SET {sets} WHERE {key} = %s", [row.pk])
        return cursor.rowcount


def test_every_constraint_of_every_model_is_tested() -> None:
    named = {one.name for model in apps.get_app_config("mailbox").get_models() for one in model._meta.constraints}
    assert named == set(CASES)
    assert [name for name, case in EVERY if not case.refused or not case.taken] == []


@pytest.mark.django_db
def test_the_database_has_the_constraints_of_the_models() -> None:
    """Migrated, by name; a partial or unique one is an index or a constraint there."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid::regclass::text LIKE 'mailbox_%%' AND convalidated "
            "UNION SELECT indexrelid::regclass::text FROM pg_index "
            "WHERE indrelid::regclass::text LIKE 'mailbox_%%' AND indisunique AND indisvalid",
            [],
        )
        stored = {name for (name,) in cursor.fetchall()}
    assert set(CASES) <= stored


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "row", "sets"), REFUSED)
def test_a_row_that_breaks_a_constraint_is_refused_under_its_name(
    name: str, row: Callable[[], models.Model], sets: str
) -> None:
    subject = row()
    before = type(subject)._default_manager.filter(pk=subject.pk).values().get()
    with pytest.raises(IntegrityError) as refusal:
        update(subject, sets)
    assert refusal.value.__cause__.diag.constraint_name == name  # type: ignore[union-attr]
    assert type(subject)._default_manager.filter(pk=subject.pk).values().get() == before


@pytest.mark.django_db
@pytest.mark.parametrize(("row", "sets"), TAKEN)
def test_the_nearest_legal_row_is_taken(row: Callable[[], models.Model], sets: str) -> None:
    assert update(row(), sets) == 1


@pytest.mark.django_db
def test_an_insert_is_judged_like_an_update() -> None:
    """Copies a valid row under a new id with one column broken: constraints are not only watched on UPDATE."""
    run = given.run(status="running")
    names = [column.column for column in run._meta.concrete_fields]
    quoted = ", ".join(f'"{name}"' for name in names)
    values = ", ".join({"id": A}.get(name, f'"{name}"') for name in names)
    with pytest.raises(IntegrityError) as refusal, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO mailbox_run ({quoted}) SELECT {values} FROM mailbox_run WHERE id = %s", [run.pk])
    assert refusal.value.__cause__.diag.constraint_name == "run_one_open_per_thread"  # type: ignore[union-attr]
    values = ", ".join({"id": A, "turn": "0"}.get(name, f'"{name}"') for name in names)
    with pytest.raises(IntegrityError) as refusal, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO mailbox_run ({quoted}) SELECT {values} FROM mailbox_run WHERE id = %s", [run.pk])
    assert refusal.value.__cause__.diag.constraint_name == "run_turn_from_one"  # type: ignore[union-attr]


# Columns that may hold NULL and stand in a CHECK: the constraint must answer true or false for it, never "unknown".
_CHECKS = """
    SELECT conname, conrelid::regclass::text, pg_get_expr(conbin, conrelid) FROM pg_constraint
    WHERE contype = 'c' AND conrelid::regclass::text LIKE 'mailbox_%%'
"""


@pytest.mark.django_db
def test_no_check_answers_unknown() -> None:
    """Tries each CHECK with each of its NULL-able columns as NULL and as a value, in every combination."""
    with connection.cursor() as cursor:
        cursor.execute(_CHECKS, [])
        for name, table, expression in cursor.fetchall():
            cursor.execute(
                "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
                "JOIN pg_constraint ON conrelid = attrelid AND attnum = ANY(conkey) "
                "WHERE conname = %s AND contype = 'c'",
                [name],
            )
            columns = cursor.fetchall()
            assert columns, name
            values = {"uuid": A, "jsonb": "'{}'", "timestamp with time zone": "now()"}
            tables = []
            for column, kind, is_required in columns:
                some = values.get(kind, "'1'")
                rows = f"({some}::{kind})" + ("" if is_required else f", (NULL::{kind})")
                tables.append(f'(VALUES {rows}) AS "{column}_" ("{column}")')
            cursor.execute(f"SELECT count(*) FROM {' CROSS JOIN '.join(tables)} WHERE ({expression}) IS NULL", None)
            assert cursor.fetchone() == (0,), f"{name} of {table} passes by NULL: {expression}"
