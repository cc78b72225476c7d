"""What one transaction writes, collected and sent as one statement; and rows read without building a query.

Half a dozen rows belong to every verb. The ORM would spend a millisecond of Python on each, most of it on composing
the same SQL again; here the SQL of a shape is composed once, the rows travel as one JSON document a table, and
PostgreSQL's `json_populate_recordset` gives each value its column's type.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, TypeVar, cast
from uuid import UUID

from django.db import connection, models
from django.db.backends.postgresql.base import ServerBindingCursor
from django.db.models.expressions import DatabaseDefault
from django.db.models.functions import Now

ModelT = TypeVar("ModelT", bound=models.Model)

# A table, its statement, and the row counts it must have; the text of a shape is composed once.
_Shape = tuple[str, ...]

# In a column's place: the database's clock.
NOW = Now()
_CLOCK = "statement_timestamp()"

_BOUNDS = (1, 4, 16, 64, 512)
_MOST_ROWS = 1_000_000


class Writes:
    """Rows to insert and rows to change, in one statement when `flush` is called.

    All parts of the statement see the tables as they were before it, so a row is written once a flush; and their order
    is PostgreSQL's own, so what a unique index would refuse in one order is flushed in two steps.
    """

    def __init__(self) -> None:
        self._inserts: list[models.Model] = []
        self._updates: dict[tuple[type[models.Model], str, _Shape], list[dict[str, Any]]] = {}

    def insert(self, row: models.Model) -> None:
        """Insert the row, as it will be when it is flushed. A value may be NOW; the database fills its own columns."""
        row._state.adding = False
        self._inserts.append(row)

    def change(self, row: models.Model, values: Mapping[str, Any], *, source: str = "") -> None:
        """Write these attributes (attname: value) to the row, and to the object; `source`: the status it must have.

        The flush raises RuntimeError unless exactly the rows given were changed; a model may say that its may be gone.
        """
        columns = _column_of(type(row))
        document = {columns[name]: value for name, value in values.items()}
        for name, value in values.items():
            setattr(row, name, value)
        # Values are written also when they are null: the columns are the shape.
        document["id"] = row.pk
        self._updates.setdefault((type(row), source, tuple(sorted(columns[name] for name in values))), []).append(
            document
        )

    def flush(self) -> None:
        """Send what was collected, if anything was."""
        if not self._inserts and not self._updates:
            return
        parts, wanted = [], []
        documents: list[str] = []
        for (model, columns, clocks), rows in _shaped(self._inserts).items():
            parts.append(_insert(model, columns, clocks, _bound(len(rows))))
            documents.append(_encode(rows))
        for (model, source, columns), rows in self._updates.items():
            parts.append(_update(model, source, columns, _bound(len(rows))))
            documents.append(_encode(rows))
            wanted.append((None if getattr(model, "MAY_BE_GONE", False) else len(rows), model, source))
        self._inserts, self._updates = [], {}
        (counts,) = ask(_statement(tuple(parts)), documents)
        for (expected, changed_model, status), changed in zip(wanted, counts or (), strict=False):
            if expected is not None and changed != expected:
                raise RuntimeError(
                    f"{changed} of {expected} rows of {changed_model.__name__} changed under the fence"
                    + (f" from {status}" if status else "")
                )


def _shaped(rows: Sequence[models.Model]) -> dict[tuple[type[models.Model], _Shape, _Shape], list[dict[str, Any]]]:
    """Rows to insert, by table and columns: (model, columns given, columns of the database's clock)."""
    shaped: dict[tuple[type[models.Model], _Shape, _Shape], list[dict[str, Any]]] = {}
    for row in rows:
        document, columns, clocks = {}, [], []
        for attname, column, is_filled in _columns(type(row)):
            value = row.__dict__.get(attname)
            if value is NOW:
                clocks.append(column)
            elif not (is_filled and (value is None or isinstance(value, DatabaseDefault))):
                columns.append(column)
                if value is not None:
                    document[column] = value
        shaped.setdefault((type(row), tuple(columns), tuple(clocks)), []).append(document)
    return shaped


def read(model: type[ModelT], sql: str, params: Mapping[str, Any]) -> list[tuple[ModelT, *tuple[Any, ...]]]:
    """Rows of a statement that begins with `columns(model)`: (object, what follows …)."""
    load = loader(model)
    width = len(load.names)
    return [(load(found[:width]), *found[width:]) for found in ask(sql, params)]


def ask(sql: str, params: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
    """The rows of a statement that is sent often: PostgreSQL plans it once a connection, if it may.

    It may where the project's OPTIONS name a `prepare_threshold`; Django's default is none, for poolers that give each
    transaction another connection.
    """
    connection.ensure_connection()
    raw: Any = ServerBindingCursor(cast(Any, connection.connection))  # type: ignore[call-arg]  # psycopg's, mixed in
    with connection.make_debug_cursor(raw) if connection.queries_logged else connection.make_cursor(raw) as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


@cache
def columns(model: type[models.Model], alias: str) -> str:
    """The model's columns for a SELECT, in the order `read` wants them."""
    return ", ".join(f'{alias}."{field.column}"' for field in model._meta.concrete_fields)


class Loader:
    """Builds a model's objects from rows of all its columns."""

    def __init__(self, model: type[models.Model]) -> None:
        fields = model._meta.concrete_fields
        self.model, self.names = model, [field.attname for field in fields]
        self._json = [index for index, field in enumerate(fields) if isinstance(field, models.JSONField)]

    def __call__(self, values: Sequence[Any]) -> Any:
        found = list(values)
        for index in self._json:
            if isinstance(found[index], str):
                found[index] = json.loads(found[index])
        return self.model.from_db("default", self.names, found)


@cache
def loader(model: type[models.Model]) -> Loader:
    """How `read` builds the model's objects, for statements that hold those of several models."""
    return Loader(model)


@cache
def _columns(model: type[models.Model]) -> list[tuple[str, str, bool]]:
    """(attribute, column, whether the database fills it when it is left out)."""
    return [
        (
            field.attname,
            str(field.column),
            field.db_default is not models.NOT_PROVIDED or isinstance(field, models.AutoField),
        )
        for field in model._meta.concrete_fields
    ]


@cache
def _column_of(model: type[models.Model]) -> dict[str, str]:
    return {attname: column for attname, column, _ in _columns(model)}


@lru_cache(maxsize=1_000)
def _insert(model: type[models.Model], columns: _Shape, clocks: _Shape, most: int) -> str:
    table = model._meta.db_table
    names = [f'"{column}"' for column in columns]
    targets = ", ".join([*names, *(f'"{column}"' for column in clocks)])
    sources = ", ".join([*names, *(_CLOCK for _ in clocks)])
    return f"INSERT INTO {table} ({targets}) SELECT {sources} FROM {_rows(table, most)} AS given"


@lru_cache(maxsize=1_000)
def _update(model: type[models.Model], source: str, columns: _Shape, most: int) -> str:
    table = model._meta.db_table
    settings = [f'"{column}" = given."{column}"' for column in columns]
    if "updated_at" in _column_of(model):
        settings.append(f'"updated_at" = {_CLOCK}')
    status = getattr(model, "STATUS_FIELD", "status")
    # Not `=`: that would let the planner walk a partial index of everything that is claimed instead of one key.
    guard = f" AND kept.\"{status}\" IS NOT DISTINCT FROM '{source}'" if source else ""
    return (
        f"UPDATE {table} AS kept SET {', '.join(settings)} FROM {_rows(table, most)} AS given "
        f"WHERE kept.id = given.id{guard} RETURNING 1"
    )


def _rows(table: str, most: int) -> str:
    """The rows of a document. The planner is told of how many at most: else it takes a set for a hundred."""
    if most == 1:
        return f"json_populate_record(NULL::{table}, %s::json)"
    return f"(SELECT * FROM json_populate_recordset(NULL::{table}, %s::json) LIMIT {most})"


def _bound(count: int) -> int:
    """So many rows or more: one of a few numbers, for each is another statement to plan."""
    return next((bound for bound in _BOUNDS if count <= bound), _MOST_ROWS)


@lru_cache(maxsize=1_000)
def _statement(parts: tuple[str, ...]) -> str:
    steps = ", ".join(f"step_{number} AS ({part})" for number, part in enumerate(parts))
    counted = [number for number, part in enumerate(parts) if part.startswith("UPDATE")]
    counts = ", ".join(f"(SELECT count(*) FROM step_{number})" for number in counted)
    return f"WITH {steps} SELECT {counts or '1'}"


def _encode(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows[0] if len(rows) == 1 else rows, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written: {value!r:.100}")


__all__ = ["NOW", "Writes", "ask", "columns", "loader", "read"]
