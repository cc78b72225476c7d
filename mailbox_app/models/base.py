"""What every noun shares: ids, non-blank names, and `move()` for many rows at once."""

import uuid
from typing import Any, ClassVar, Self, TypeVar

import uuid_utils.compat
from django.db import models
from django.db.models.functions import Now

from mailbox_app.states import Move


def uuid7() -> uuid.UUID:
    """A time-ordered id (RFC 9562, version 7). Its order is a convenience; no rule depends on it."""
    return uuid_utils.compat.uuid7()


def not_blank(name: str, *fields: str) -> models.CheckConstraint:
    """Constraint `<name>`: each of the fields holds something other than white space."""
    condition = models.Q()
    for field in fields:
        condition &= models.Q(**{f"{field}__regex": r"\S"})
    return models.CheckConstraint(condition=condition, name=name)


def iff(left: models.Q, right: models.Q) -> models.Q:
    """Both or neither. Each side must be NULL-proof (`__isnull`, or a column that is never NULL)."""
    return (left & right) | (~left & ~right)


ModelT = TypeVar("ModelT", bound=models.Model, covariant=True)


class MovingQuerySet(models.QuerySet[ModelT]):
    """Rows with a status: it changes only through `move()`, here or on its fenced thread, along an edge."""

    def move(self, move: Move, **fields: Any) -> int:
        """Move the rows of this queryset along one edge and return how many moved: the count is the verdict.

        The edge's source is in the WHERE, so a row that has moved on is left alone. `fields` are written with it.
        """
        noun, column = self.model.NOUN, self.model.STATUS_FIELD  # type: ignore[attr-defined]
        if move.noun != noun:
            raise ValueError(f"{move.noun}.{move.name} is no move of a {noun}")
        return self.filter(**{column: move.source}).update(**{column: move.target, "updated_at": Now(), **fields})


class Moving(models.Model):
    """A model whose status moves. NOUN is its name in `states.py`."""

    NOUN: ClassVar[str]
    STATUS_FIELD: ClassVar[str] = "status"

    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        abstract = True

    @property
    def rows(self) -> "MovingQuerySet[Self]":
        """This row as a queryset, to be moved."""
        manager: Any = type(self)._default_manager
        result: MovingQuerySet[Self] = manager.filter(pk=self.pk)
        return result
