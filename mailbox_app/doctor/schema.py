"""The tables: whether every constraint and index the promises rest on is there, valid, and kept by every row."""

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import CheckConstraint, ForeignKey, Model, Q, UniqueConstraint
from django.db.models.constraints import BaseConstraint
from django.db.models.sql import Query

from mailbox_app.doctor.findings import Check, Finding
from mailbox_app.doctor.walk import rows, snapshot

_CREATE = (
    "Mend the rows that break it (`constraint_broken`), then create it as the migrations do: "
    "`manage.py sqlmigrate mailbox <number>` prints it."
)

MIGRATION_MISSING = Check(
    "migration_missing",
    "A migration of Mailbox's is not applied.",
    "migration {name} is not applied",
    "Run `manage.py migrate`.",
)
CONSTRAINT_MISSING = Check(
    "constraint_missing",
    "A constraint is missing, or was never validated: the database would take what breaks a promise.",
    "constraint {name} of {table} is {state}",
    _CREATE,
)
CONSTRAINT_BROKEN = Check(
    "constraint_broken",
    "Rows break a constraint that is missing or was never validated.",
    "row {row_id} of {table} breaks {name}",
    "Nothing in Mailbox writes this. Decide row by row, by what its thread's events say; then create the constraint.",
)
INDEX_INVALID = Check(
    "index_invalid",
    "An index is missing or invalid: a look that should cost nothing reads the whole table.",
    "index {name} of {table} is {state}",
    "`REINDEX INDEX CONCURRENTLY <name>` for an invalid one; a missing one is printed by "
    "`manage.py sqlmigrate mailbox <number>`.",
)
CHECKS = (MIGRATION_MISSING, CONSTRAINT_MISSING, CONSTRAINT_BROKEN, INDEX_INVALID)

# Rows of a broken constraint that are looked for, in one look at a table that lost it.
_MOST_ROWS = 1_000

_STORED = """
    SELECT conname AS name, convalidated AS is_valid, contype AS kind, conrelid::regclass::text AS table,
        (SELECT attname FROM pg_attribute WHERE attrelid = conrelid AND attnum = conkey[1]) AS first_column
    FROM pg_constraint WHERE conrelid = ANY(%(tables)s::regclass[])
"""
_INDEXES = """
    SELECT indexrelid::regclass::text AS name, indisvalid AND indisready AS is_valid, indisunique AS is_unique,
        indrelid::regclass::text AS table
    FROM pg_index WHERE indrelid = ANY(%(tables)s::regclass[])
"""


def migrations() -> list[Finding]:
    """Migrations that are not applied. If there are any, nothing else can be looked at."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes("mailbox"))
    return [MIGRATION_MISSING.found(name=f"{one.app_label}.{one.name}") for one, _ in plan]


def look() -> list[Finding]:
    """Compare what the models declare with what the database has; look for rows only where it guards them no more."""
    models = [model for model in apps.get_app_config("mailbox").get_models() if not model._meta.proxy]
    found: list[Finding] = []
    with snapshot():
        tables = [model._meta.db_table for model in models]
        constraints = rows(_STORED, {"tables": tables})
        indexes = {row["name"].strip('"'): row for row in rows(_INDEXES, {"tables": tables})}
        valid = {row["name"] for row in constraints if row["is_valid"]}
        valid |= {name for name, row in indexes.items() if row["is_valid"] and row["is_unique"]}
        known = {row["name"] for row in constraints} | set(indexes)
        keyed = {(row["table"], row["first_column"]) for row in constraints if row["kind"] == "f"}
        for model in models:
            table = model._meta.db_table
            for constraint in model._meta.constraints:
                if constraint.name not in valid:
                    state = "not valid" if constraint.name in known else "missing"
                    found.append(CONSTRAINT_MISSING.found(name=constraint.name, table=table, state=state))
                    found += _broken(model, constraint)
            found += [
                CONSTRAINT_MISSING.found(name=f"foreign key on {column}", table=table, state="missing")
                for column in _foreign_keys(model)
                if (table, column) not in keyed
            ]
            found += [
                INDEX_INVALID.found(name=index.name, table=table, state="missing")
                for index in model._meta.indexes
                if index.name not in indexes
            ]
        declared = {constraint.name for model in models for constraint in model._meta.constraints}
        found += [
            CONSTRAINT_MISSING.found(name=row["name"], table=row["table"], state="not valid")
            for row in constraints
            if not row["is_valid"] and row["name"] not in declared
        ]
        found += [
            INDEX_INVALID.found(name=name, table=row["table"], state="invalid")
            for name, row in indexes.items()
            if not row["is_valid"] and name not in declared
        ]
    return found


def _foreign_keys(model: type[Model]) -> Iterator[str]:
    for field in model._meta.concrete_fields:
        if isinstance(field, ForeignKey) and getattr(field, "db_constraint", True):
            yield str(field.column)


def _broken(model: type[Model], constraint: BaseConstraint) -> list[Finding]:
    """Rows that the constraint would refuse, as PostgreSQL judges them: what it cannot tell passes."""
    table = model._meta.db_table
    key = model._meta.pk.column if model._meta.pk else "id"
    if isinstance(constraint, CheckConstraint):
        sql = f"SELECT {key} AS id FROM {table} WHERE NOT ({_condition(model, constraint.condition)})"
    elif isinstance(constraint, UniqueConstraint):
        fields = [model._meta.get_field(name) for name in constraint.fields]
        columns = ", ".join(f'"{field.column}"' for field in fields)  # type: ignore[union-attr]
        given = " AND ".join(f'"{field.column}" IS NOT NULL' for field in fields)  # type: ignore[union-attr]
        where = given if constraint.condition is None else f"{given} AND ({_condition(model, constraint.condition)})"
        sql = f"SELECT id FROM (SELECT {key} AS id, count(*) OVER (PARTITION BY {columns}) AS alike FROM {table} "
        sql += f"WHERE {where}) AS row WHERE alike > 1"
    else:
        return []
    broken = rows(f"{sql} ORDER BY 1 LIMIT {_MOST_ROWS}")
    return [CONSTRAINT_BROKEN.found(row_id=row["id"], table=table, name=constraint.name) for row in broken]


def _condition(model: type[Model], condition: Q | Any) -> str:
    """The condition as the migrations write it: literals in their place, for a statement without parameters."""
    query = Query(model=model, alias_cols=False)
    where = query.build_where(condition)
    with connection.schema_editor(collect_sql=True, atomic=False) as editor:
        sql, params = where.as_sql(query.get_compiler(connection=connection), connection)
        return str(sql % tuple(editor.quote_value(one) for one in params))
