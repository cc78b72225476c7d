"""Every kind of damage, done with raw SQL to rows that the verbs wrote, is found under its code and with its ids.

Where the database would refuse it, the constraint is dropped first, in a transaction that is rolled back.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.db.models import CheckConstraint, Model, UniqueConstraint

from mailbox_app.doctor import examine, flags, running, schema
from mailbox_app.doctor.findings import MOST_TOLD, Finding, Report
from mailbox_app.models import JournalEntry, Message, Permit, Run, Thread, Ticket
from mailbox_app.operations import cancel, limits, replay, settle, submit, threads
from mailbox_app.operations.ownership import Claim
from tests import given
from tests.operations import asking, family, scene
from tests.states.test_constraints import CASES, update

pytestmark = pytest.mark.django_db

LOST = "'00000000-0000-7000-8000-00000000000a'"


def execute(sql: str, **params: Any) -> None:
    """Damage; what the deferred constraints have still to say comes first, or a table could not be altered."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(sql, params)
        assert cursor.rowcount != 0, "the damage hit nothing"


def drop(name: str, table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
        cursor.execute(f"DROP INDEX IF EXISTS {name}")


def found(**given: Any) -> list[Finding]:
    return examine.threads(Report(), **given).findings


def waiting(**given: Any) -> Claim:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait(**given))
    return claim


def done() -> Claim:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="fine", state={"n": 1})
    return claim


def dead() -> Claim:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no")
    return claim


def replayed() -> Claim:
    claim = dead()
    replay.one(dispatch_id=claim.dispatch_id, by="me")
    return claim


def deleted() -> Claim:
    claim = done()
    threads.delete(scope=scene.SCOPE, thread_id=claim.thread_id)
    return claim


def with_a_ticket() -> Claim:
    claim = done()
    Ticket.objects.create(run_id=claim.run_id, ticket_id="t", status="cancelled")
    return claim


def with_a_journal() -> Claim:
    claim = done()
    JournalEntry.objects.create(run_id=claim.run_id, turn=1, verb="step", name="s", n=1, arguments_hash="0" * 64)
    return claim


def steered() -> Claim:
    claim = scene.posted_and_taken()
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["late"], boundary="next_step")
    return claim


def sending() -> Claim:
    claim = scene.posted_and_taken()
    given.outbox(source_thread=scene.thread(claim), order=scene.thread(claim).next_order - 1)
    return claim


def parent_of_the_done() -> Claim:
    parent, child = family.with_child()
    cancel.run(scope=scene.SCOPE, run_id=child.pk)
    return parent


def child_of_the_cancelled() -> Any:
    parent, child = family.with_child()
    cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
    return submit.Receipt(
        thread_id=child.thread_id, run_id=child.pk, dispatch_id=None, message_ids=[], status=child.status
    )


def scheduled() -> Any:
    return scene.post(available_at=scene.database_now() + timedelta(hours=1))


def limited() -> Any:
    limits.put(kind="agent", name="echo", most=1)
    return scene.posted_and_taken()


def blocked() -> Any:
    """A thread that the limit of its scope keeps: nothing of it may run."""
    limits.put(kind="scope", name=scene.SCOPE, most=1)
    Permit.objects.update(dispatch_id=uuid.uuid4())
    posted = scene.post()
    assert scene.take() is None
    return posted


@dataclass(frozen=True)
class Damage:
    """`make()` makes a healthy thread; `sql` damages it; the finding has `code` and names these ids of it."""

    code: str
    make: Callable[[], Any]
    sql: str
    names: tuple[str, ...] = ("thread_id", "run_id")
    drops: dict[str, str] = field(default_factory=dict)


THREAD = "UPDATE mailbox_thread SET {} WHERE id = %(thread_id)s"
RUN = "UPDATE mailbox_run SET {} WHERE id = %(run_id)s"
DISPATCH = "UPDATE mailbox_dispatch SET {} WHERE run_id = %(run_id)s"
MESSAGE = "UPDATE mailbox_message SET {} WHERE thread_id = %(thread_id)s"
UNCLAIM = "status = 'acked', claim_token = NULL, claimed_by = '', lease_until = NULL, completed_at = now()"
END = "status = 'done', finished_at = now(), waiting = NULL, wait_until = NULL, error = '{}'"
T, D = ("thread_id",), ("thread_id", "run_id", "dispatch_id")

DAMAGES = [
    Damage("claim_not_active", scene.posted_and_taken, THREAD.format("active_run_id = NULL"), D),
    Damage("active_run_not_claimed", scene.posted_and_taken, DISPATCH.format(UNCLAIM)),
    Damage("open_run_not_named", waiting, THREAD.format("open_run_id = NULL")),
    Damage("open_run_wrong", waiting, RUN.format(END)),
    Damage("open_run_wrong", waiting, THREAD.format(f"open_run_id = {LOST}"), T),
    Damage("latest_run_wrong", done, THREAD.format(f"latest_run_id = {LOST}"), T),
    Damage("latest_run_wrong", done, THREAD.format("latest_run_id = NULL"), T),
    Damage("state_run_wrong", done, THREAD.format(f"state_run_id = {LOST}"), T),
    Damage("run_without_dispatch", scene.post, "DELETE FROM mailbox_dispatch WHERE run_id = %(run_id)s"),
    Damage("run_without_dispatch", scene.posted_and_taken, DISPATCH.format(UNCLAIM)),
    Damage(
        "claimed_run_not_running",
        scene.posted_and_taken,
        RUN.format("status = 'waiting', waiting = '{}', wait_until = now() + '1 h'::interval"),
        D,
    ),
    Damage("done_run_has_dispatch", scene.posted_and_taken, RUN.format(END), D),
    Damage(
        "done_dispatch_run_goes_on",
        done,
        RUN.format("status = 'running', finished_at = NULL, final_output = NULL"),
        D,
    ),
    Damage("timed_wait_without_dispatch", waiting, RUN.format("resume_at = now() + '1 h'::interval")),
    Damage(
        "answered_wait_without_dispatch",
        lambda: asking.waiting("one", "two")[0],
        "UPDATE mailbox_ticket SET status = 'answered', answered_at = now() WHERE run_id = %(run_id)s",
    ),
    Damage(
        "answered_wait_without_dispatch",
        lambda: asking.waiting()[0],
        "DELETE FROM mailbox_ticket WHERE run_id = %(run_id)s",
    ),
    Damage(
        "row_off_thread", done, "UPDATE mailbox_dispatch SET thread_id = %(other_id)s WHERE run_id = %(run_id)s", ()
    ),
    Damage("row_off_thread", scene.post, MESSAGE.format("thread_id = %(other_id)s"), ("run_id",)),
    Damage("scope_crossed", done, RUN.format("scope = 'other'"), T),
    Damage("scope_crossed", scene.post, MESSAGE.format("scope = 'other'"), T),
    Damage("dispatch_agent_wrong", scene.post, DISPATCH.format("agent = 'other'"), D),
    Damage("deleted_thread_busy", scene.post, THREAD.format("deleted_at = now()")),
    Damage(
        "replayed_but_unresolved",
        replayed,
        "UPDATE mailbox_dispatch SET resolution = '', resolved_at = NULL WHERE id = %(dispatch_id)s",
        ("thread_id", "dispatch_id"),
    ),
    Damage(
        "ticket_open_after_end", with_a_ticket, "UPDATE mailbox_ticket SET status = 'open' WHERE run_id = %(run_id)s"
    ),
    Damage(
        "seq_gap",
        done,
        "DELETE FROM mailbox_message WHERE thread_id = %(thread_id)s AND seq = 1",
        T,
    ),
    Damage("seq_gap", done, MESSAGE.format("seq = 3") + " AND seq = 2", T),
    Damage("seq_gap", done, THREAD.format("last_seq = 7"), T),
    Damage(
        "seq_gap",
        done,
        MESSAGE.format("seq = 1") + " AND seq = 2",
        T,
        {"message_seq_unique_in_thread": "mailbox_message"},
    ),
    Damage("cursor_gap", done, "DELETE FROM mailbox_event WHERE thread_id = %(thread_id)s AND cursor = 2", T),
    Damage("cursor_gap", done, "DELETE FROM mailbox_event WHERE thread_id = %(thread_id)s AND cursor = 1", T),
    Damage("cursor_gap", done, THREAD.format("pruned_cursor = 1"), T),
    Damage("cursor_gap", done, THREAD.format("last_cursor = last_cursor + 1"), T),
    Damage("counter_behind", done, THREAD.format("next_order = 1"), T),
    Damage("counter_behind", done, THREAD.format("claim_count = 0"), T),
    Damage("counter_behind", done, DISPATCH.format("epoch = 2"), T),
    Damage("input_lost", done, "DELETE FROM mailbox_message WHERE thread_id = %(thread_id)s AND seq = 1"),
    Damage("dead_letter_lost_error", dead, DISPATCH.format("error = NULL"), D),
    Damage("dead_letter_lost_error", dead, RUN.format("error = NULL"), D),
    Damage("read_before_start", done, RUN.format("status = 'created', finished_at = NULL, final_output = NULL")),
    Damage("message_without_reader", scene.post, RUN.format(END)),
    Damage("message_without_reader", steered, RUN.format(END), T),
    Damage("journal_ahead", with_a_journal, "UPDATE mailbox_journalentry SET turn = 2 WHERE run_id = %(run_id)s"),
    Damage("journal_ahead", with_a_journal, RUN.format("started_at = NULL")),
    Damage("end_not_told", done, "UPDATE mailbox_event SET kind = 'x' WHERE run_id = %(run_id)s AND kind ~ '^RunFin'"),
    Damage("end_not_told", done, RUN.format("status = 'running', finished_at = NULL, final_output = NULL")),
    Damage("end_not_told", done, "UPDATE mailbox_event SET kind = 'RunErrored' WHERE run_id = %(run_id)s"),
    Damage("lease_overdue", scene.posted_and_taken, DISPATCH.format("lease_until = now() - '1 h'::interval"), D),
    Damage("wake_overdue", scheduled, THREAD.format("wakes_at = now() - '1 h'::interval"), T),
    Damage(
        "question_overdue",
        lambda: asking.waiting(expires_in=60.0)[0],
        "UPDATE mailbox_ticket SET expires_at = now() - '1 h'::interval WHERE run_id = %(run_id)s",
    ),
    Damage("wait_overdue", waiting, RUN.format("wait_until = now() - '1 h'::interval")),
    Damage("permit_not_its_own", limited, "UPDATE mailbox_permit SET dispatch_id = NULL", ("thread_id", "dispatch_id")),
    Damage("permit_not_its_own", limited, "DELETE FROM mailbox_permit", ("thread_id", "dispatch_id")),
    Damage(
        "ended_children_without_dispatch",
        parent_of_the_done,
        "DELETE FROM mailbox_outbox WHERE target_thread_id = %(thread_id)s",
    ),
    Damage(
        "child_outlives_parent",
        child_of_the_cancelled,
        "DELETE FROM mailbox_outbox WHERE target_thread_id = %(thread_id)s",
    ),
    Damage(
        "delivery_overdue",
        sending,
        "UPDATE mailbox_outbox SET available_at = now() - '1 h'::interval WHERE source_thread_id = %(thread_id)s",
        T,
    ),
    Damage(
        "wake_up_lost",
        scene.post,
        THREAD.format("due_at = NULL, due_priority = NULL, due_queue = NULL, due_agent = NULL, due_version = NULL"),
        T,
    ),
    Damage("wake_up_lost", scheduled, THREAD.format("wakes_at = NULL"), T),
    Damage("flag_wrong", scene.post, THREAD.format("due_queue = 'elsewhere'"), T),
    Damage("flag_wrong", scene.post, THREAD.format("due_agent = 'other'"), T),
    Damage("flag_wrong", scene.post, THREAD.format("due_version = '0000000002'"), T),
    Damage("flag_wrong", scene.post, DISPATCH.format("priority = 3"), T),
    Damage("flag_wrong", scene.post, DISPATCH.format("available_at = now() + '1 h'::interval"), T),
    Damage("flag_wrong", scheduled, THREAD.format("wakes_at = now() + '2 h'::interval"), T),
    Damage("flag_wrong", done, THREAD.format("blocked_reason = 'open_run'"), T),
    Damage(
        "flag_wrong",
        done,
        THREAD.format("blocked_reason = 'scope_limit', blocked_priority = 1, blocked_since = now()"),
        T,
    ),
    Damage("flag_wrong", blocked, DISPATCH.format("available_at = now() + '1 h'::interval"), T),
    Damage("flag_wrong", done, THREAD.format("wakes_at = now() + '2 h'::interval"), T),
    Damage("flag_wrong", deleted, THREAD.format("wakes_at = now() + '2 h'::interval"), T),
    Damage("flag_wrong", scene.posted_and_taken, THREAD.format("wakes_at = now() + '2 h'::interval"), T),
    Damage(
        "flag_wrong",
        scene.post,
        THREAD.format("blocked_reason = 'paused'"),
        T,
        {"thread_due_flag_whole_or_absent": "mailbox_thread"},
    ),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: f"{one.code}: {one.sql}")
def test_damage_is_found_under_its_code_with_its_ids(damage: Damage) -> None:
    healthy, victim = scene.post(), None
    Thread.objects.filter(pk=healthy.thread_id).delete()
    victim = damage.make()
    other = given.thread(scope=scene.SCOPE)
    assert found() == []
    ids = {name: getattr(victim, name) for name in ("thread_id", "run_id", "dispatch_id")}
    for name, table in damage.drops.items():
        drop(name, table)
    execute(damage.sql, other_id=other.pk, **ids)
    with scene.nothing_changes():
        ours = [one for one in found() if one.code == damage.code]
    assert len(ours) == 1
    assert {name: ours[0].ids[name] for name in damage.names} == {name: str(ids[name]) for name in damage.names}
    assert all(text in ours[0].sentence for text in ours[0].ids.values())
    assert ours[0].remedy


TABLES = {
    constraint.name: model
    for model in apps.get_app_config("mailbox").get_models()
    for constraint in model._meta.constraints
}


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_constraint_and_the_row_that_breaks_it_are_found(name: str) -> None:
    model: type[Model] = TABLES[name]
    cases = CASES[name]
    case = cases[0] if isinstance(cases, list) else cases
    row = case.row()
    drop(name, model._meta.db_table)
    for sets in case.refused[:1]:
        update(row, sets)
        said = schema.look()
        assert [(one.code, name in one.sentence) for one in said if one.code == "constraint_missing"] == [
            ("constraint_missing", True)
        ]
        broken = [one.ids["row_id"] for one in said if one.code == "constraint_broken"]
        (declared,) = [one for one in model._meta.constraints if one.name == name]
        if isinstance(declared, CheckConstraint):
            assert broken == [str(row.pk)], sets
        else:
            assert isinstance(declared, UniqueConstraint)
            assert str(row.pk) in broken, sets
            assert len(broken) == 2


def test_a_constraint_nobody_validated_is_found_while_its_rows_are_right() -> None:
    scene.post()
    table, name = "mailbox_run", "run_turn_from_one"
    drop(name, table)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK (turn >= 1) NOT VALID")
    assert [(one.code, one.sentence) for one in schema.look()] == [
        ("constraint_missing", f"constraint {name} of {table} is not valid")
    ]


def test_a_missing_foreign_key_is_found() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = 'mailbox_run'::regclass "
            "AND confrelid = 'mailbox_thread'::regclass"
        )
        (name,) = cursor.fetchone()
    drop(name, "mailbox_run")
    assert [one.sentence for one in schema.look()] == ["constraint foreign key on thread_id of mailbox_run is missing"]


@pytest.mark.parametrize("state", ["missing", "invalid"])
def test_a_missing_or_invalid_index_is_found(state: str) -> None:
    with connection.cursor() as cursor:
        if state == "missing":
            cursor.execute("DROP INDEX thread_due")
        else:
            cursor.execute("UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'thread_due'::regclass")
    assert [(one.code, one.sentence) for one in schema.look()] == [
        ("index_invalid", f"index thread_due of mailbox_thread is {state}")
    ]


def test_a_missing_migration_is_found_and_nothing_else_is_looked_at() -> None:
    execute("DELETE FROM django_migrations WHERE app = 'mailbox' AND name LIKE '0009%%'")
    report = examine.everything()
    assert [one.code for one in report.findings] == ["migration_missing"]
    assert report.looked_at == {}


def test_of_each_code_some_are_told_and_all_are_counted() -> None:
    for _ in range(MOST_TOLD + 2):
        scene.post()
    execute(f"UPDATE mailbox_thread SET latest_run_id = {LOST}")
    report = examine.threads(Report(), size=7)
    assert report.counts == {"latest_run_wrong": MOST_TOLD + 2}
    assert len(report.findings) == MOST_TOLD
    assert list(report.untold()) == [("latest_run_wrong", 2)]


def test_one_scope_or_one_thread_can_be_looked_at_alone() -> None:
    first, second = scene.post(), scene.post(scope="other")
    execute(f"UPDATE mailbox_thread SET latest_run_id = {LOST}")
    assert [one.ids["thread_id"] for one in found(scope="other")] == [str(second.thread_id)]
    assert [one.ids["thread_id"] for one in found(thread_id=first.thread_id)] == [str(first.thread_id)]


def test_fix_rewrites_a_wrong_flag_and_nothing_else() -> None:
    """Tables before the damage and after the repair are equal but for when the thread was last written."""
    claim = done()
    victim, beside = scene.post(), scene.post()
    execute(THREAD.format("last_seq = 9"), thread_id=claim.thread_id)  # damage that no verb repairs
    before = scene.tables()
    execute(THREAD.format("due_queue = 'elsewhere'"), thread_id=victim.thread_id)
    report = examine.threads(Report(), fix=True)
    assert {one.code: one.is_fixed for one in report.findings} == {"flag_wrong": True, "seq_gap": False}
    assert not report.is_healthy
    after = scene.tables()
    for rows in (before, after):
        for row in rows["Thread"]:
            if row["id"] == victim.thread_id:
                row.pop("updated_at")
    assert after == before
    assert flags.look([victim.thread_id, beside.thread_id]) == []


def test_fix_finds_a_lost_wake_up_a_worker_again() -> None:
    victim = scene.post()
    execute(
        THREAD.format("due_at = NULL, due_priority = NULL, due_queue = NULL, due_agent = NULL, due_version = NULL"),
        thread_id=victim.thread_id,
    )
    assert scene.take() is None
    report = examine.threads(Report(), fix=True)
    assert [(one.code, one.is_fixed) for one in report.findings] == [("wake_up_lost", True)]
    assert report.is_healthy
    assert scene.taken().run_id == victim.run_id


def test_a_deleted_threads_flag_is_told_and_left() -> None:
    claim = deleted()
    execute(THREAD.format("wakes_at = now() + '2 h'::interval"), thread_id=claim.thread_id)
    with scene.nothing_changes():
        report = examine.threads(Report(), fix=True)
    assert [(one.code, one.is_fixed) for one in report.findings] == [("flag_wrong", False)]


def test_every_code_has_a_test() -> None:
    tested = {damage.code for damage in DAMAGES} | {check.code for check in schema.CHECKS}
    elsewhere = {check.code for check in examine.CHECKS} - tested
    assert elsewhere == {check.code for check in (*running.CHECKS, *examine.server.CHECKS, *examine.permits.CHECKS)}
    assert Message.objects.count() == Run.objects.count() == 0
