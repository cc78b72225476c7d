"""Every legal and every illegal move, generated from `states.py` and tried on real rows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Model

import mailbox_app
from mailbox_app import states
from mailbox_app.models import Dispatch, Message, Outbox, Run, Ticket
from mailbox_app.models.base import Moving
from mailbox_app.states import MOVES, STATUSES, Move
from tests import given

PACKAGE = Path(mailbox_app.__file__).parent
MODELS: dict[str, type[Moving]] = {model.NOUN: model for model in (Run, Dispatch, Message, Ticket, Outbox)}
ILLEGAL = [(move, status) for move in MOVES for status in STATUSES[move.noun] if status != move.source]
STRANGERS = [(noun, move) for noun in STATUSES for move in MOVES if move.noun != noun]


def name(value: object) -> str:
    return f"{value.noun}.{value.name}" if isinstance(value, Move) else str(value)


def stored(row: Model) -> dict[str, Any]:
    return type(row)._default_manager.filter(pk=row.pk).values().get()


@pytest.mark.django_db
@pytest.mark.parametrize("move", MOVES, ids=name)
def test_a_legal_move_changes_the_status_and_nothing_it_was_not_given(move: Move) -> None:
    row = given.row(move.noun, status=move.source)
    before, fields = stored(row), given.columns(move.noun, move.target)
    assert isinstance(row, Moving)
    assert row.rows.move(move, **fields) == 1
    after = stored(row)
    changed = {column for column in before if before[column] != after[column]}
    assert after[row.STATUS_FIELD] == move.target
    assert changed <= {row.STATUS_FIELD, "updated_at", *fields}


@pytest.mark.django_db
@pytest.mark.parametrize(("move", "status"), ILLEGAL, ids=name)
def test_a_move_from_any_other_status_moves_nothing(move: Move, status: str) -> None:
    row = given.row(move.noun, status=status)
    before = stored(row)
    assert isinstance(row, Moving)
    assert row.rows.move(move, **given.columns(move.noun, move.target)) == 0
    assert stored(row) == before


@pytest.mark.django_db
@pytest.mark.parametrize(("noun", "move"), STRANGERS, ids=name)
def test_a_move_of_another_noun_is_refused(noun: str, move: Move) -> None:
    row = given.row(noun, status=next(iter(STATUSES[noun])).value)
    before = stored(row)
    assert isinstance(row, Moving)
    with pytest.raises(ValueError, match=f"{move.noun}.{move.name} is no move of a {noun}"):
        row.rows.move(move)
    assert stored(row) == before


@pytest.mark.django_db
def test_a_move_counts_the_rows_it_moved_and_leaves_the_others_alone() -> None:
    rows = [given.dispatch(status=status) for status in ("queued", "acked", "queued", "cancelled")]
    chosen = Dispatch.objects.filter(pk__in=[row.pk for row in rows])
    assert chosen.move(states.WITHDRAW, **given.columns("dispatch", "cancelled")) == 2
    assert [stored(row)["status"] for row in rows] == ["cancelled", "acked", "cancelled", "cancelled"]


@pytest.mark.parametrize("noun", STATUSES)
def test_every_status_can_be_reached(noun: str) -> None:
    reached = {next(iter(STATUSES[noun])).value}
    for _ in STATUSES[noun]:
        reached |= {move.target for move in states.moves_of(noun) if move.source in reached}
    assert reached == set(STATUSES[noun].values)


def test_nothing_leads_out_of_a_terminal_status() -> None:
    """The groups that other code relies on are exactly the statuses without a way out."""
    ends = {
        noun: {status for status in statuses if not any(move.source == status for move in states.moves_of(noun))}
        for noun, statuses in STATUSES.items()
    }
    assert ends["dispatch"] == set(states.TERMINAL_DISPATCH)
    assert ends["dispatch"].isdisjoint(states.LIVE_DISPATCH)
    assert ends["run"] == {states.RunStatus.DONE}
    assert ends["message"] == {states.MessageState.COMMITTED, states.MessageState.RETRACTED}
    assert ends["ticket"] == set(states.TicketStatus) - {states.TicketStatus.OPEN}
    assert ends["outbox"] == set(states.OutboxStatus) - {states.OutboxStatus.PENDING}


def test_every_model_with_a_status_has_its_states_here() -> None:
    assert set(MODELS) == set(STATUSES) == {model.NOUN for model in Moving.__subclasses__()}
    for noun, model in MODELS.items():
        choices = model._meta.get_field(model.STATUS_FIELD).choices
        assert choices == STATUSES[noun].choices


def test_no_two_moves_of_a_noun_share_a_name() -> None:
    names = [(move.noun, move.name) for move in MOVES]
    assert len(set(names)) == len(names)


def test_the_module_prints_the_diagram() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mailbox_app.states"], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.stdout == states.diagram()
    assert done.returncode == 0


# `UPDATE mailbox_run … SET …, status = …`: from SET to the end of the assignments.
_SQL_WRITE = re.compile(
    r"update\s+mailbox_\w+.*?\bset\b(?:(?!\b(?:from|where|returning)\b).)*?\b(?:status|state)\b\s*=", re.I | re.S
)
_WRITERS = {"update", "bulk_update", "update_or_create", "get_or_create"}


def status_writes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every place in a module that writes a status other than by creating a row or by `move()`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="status", ctx=ast.Store()):
                yield node.lineno, "assigns .status"
            case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant(value="status"), *_]):
                yield node.lineno, "setattr status"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="user"), attr="save")):
                pass  # Django's own user: no noun of ours
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="save")):
                pass  # a model's own save, which its callers call
            case ast.Call(func=ast.Attribute(attr="save"), keywords=[ast.keyword(arg="force_insert")]):
                pass  # a new row
            case ast.Call(func=ast.Attribute(attr="save")):
                written = next((keyword.value for keyword in node.keywords if keyword.arg == "update_fields"), None)
                names = [getattr(one, "value", None) for one in getattr(written, "elts", [None])]
                if not all(isinstance(one, str) and one not in {"status", "state"} for one in names):
                    yield node.lineno, ".save() of all columns, or of a status"
            case ast.Call(func=ast.Attribute(attr=writer)) if writer in _WRITERS:
                inside = [*node.keywords, *(one for arg in node.args for one in ast.walk(arg))]
                inside += [one for keyword in node.keywords for one in ast.walk(keyword.value)]
                if any(isinstance(one, ast.keyword) and one.arg == "status" for one in inside) or any(
                    isinstance(one, ast.Constant) and one.value == "status" for one in inside
                ):
                    yield node.lineno, f".{writer}() of a status"
            case ast.Constant(value=str(text)) if _SQL_WRITE.search(text):
                yield node.lineno, "raw SQL"


def test_only_move_writes_a_status() -> None:
    offences = [
        f"{path.relative_to(PACKAGE.parent)}:{line} {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "models/base.py" and "migrations" not in path.parts
        for line, what in status_writes(ast.parse(path.read_text()))
    ]
    assert offences == []


@pytest.mark.parametrize(
    "offence",
    [
        "run.status = 'done'",
        "run.status: str = 'done'",
        "setattr(run, 'status', 'done')",
        "run.save()",
        "run.save(update_fields=['status'])",
        "run.save(update_fields=fields)",
        "Run.objects.update(status='done')",
        "Run.objects.update(**{'status': 'done'})",
        "Run.objects.update(**dict(status='done'))",
        "Run.objects.bulk_update(runs, ['status'])",
        "Run.objects.update_or_create(pk=1, defaults={'status': 'done'})",
        "cursor.execute('UPDATE mailbox_run SET turn = 1, status = %s')",
    ],
)
def test_the_search_for_other_writers_finds(offence: str) -> None:
    assert list(status_writes(ast.parse(offence)))


@pytest.mark.parametrize(
    "innocent",
    [
        "if run.status == 'done': pass",
        "run.rows.move(FINISH, finished_at=Now())",
        "run.save(update_fields=['title'])",
        "Run.objects.update(turn=2)",
        "user.save()",
        "cursor.execute(\"UPDATE mailbox_dispatch SET lease_until = now() WHERE status = 'claimed'\")",
    ],
)
def test_the_search_for_other_writers_leaves_alone(innocent: str) -> None:
    assert not list(status_writes(ast.parse(innocent)))
