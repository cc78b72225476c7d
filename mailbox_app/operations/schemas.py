"""JSON Schema (draft 2020-12), for answers: is it one, and does a value keep to it? Nothing is fetched."""

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from mailbox_app.errors import InvalidInput
from mailbox_app.operations import inputs

# Of what a value does wrong, so much is told.
_MOST_ERRORS = 20
_LONGEST = 300


def checked(name: str, value: Any) -> dict[str, Any] | None:
    """A schema as it is stored, or None. It may refer to its own parts alone. Raises InvalidInput."""
    if value is None:
        return None
    schema = inputs.mapping(name, value)
    try:
        Draft202012Validator.check_schema(schema)
        resolver = Registry().resolver_with_root(Resource.from_contents(schema, default_specification=DRAFT202012))
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise InvalidInput(
                    name, "not_a_schema", f"{name} refers to {reference!r}: only its own parts, #…, can be"
                )
            resolver.lookup(reference)
        # Whatever goes round in circles at once does so here, and not when somebody answers.
        _validator(schema).is_valid(None)
    except SchemaError as error:
        raise InvalidInput(name, "not_a_schema", f"{name} is no JSON Schema: {error.message[:_LONGEST]}") from None
    except Unresolvable as error:
        raise InvalidInput(name, "not_a_schema", f"{name} refers to {error.ref!r}, which it does not hold") from None
    except RecursionError:
        raise InvalidInput(name, "not_a_schema", f"{name} refers to itself without an end") from None
    return schema


def refuse(name: str, value: Any, *, schema: dict[str, Any]) -> None:
    """Raise InvalidInput, with each thing that is wrong, unless the value keeps to a schema that was checked."""
    try:
        wrong = sorted(_validator(schema).iter_errors(value), key=lambda error: error.json_path)[:_MOST_ERRORS]
    except RecursionError:
        raise InvalidInput(name, "too_deep", f"{name} is nested too deep for its schema") from None
    if not wrong:
        return
    refusal = InvalidInput(**_told(name, wrong[0]))
    refusal.errors = [_told(name, error) for error in wrong]
    raise refusal


def _validator(schema: dict[str, Any]) -> Any:
    # With a registry of its own it asks no network for what it does not know.
    return Draft202012Validator(schema, registry=Registry())


def _told(name: str, error: ValidationError) -> dict[str, str]:
    field = name + error.json_path.removeprefix("$")
    return {"field": field, "code": "schema_violation", "message": f"{field}: {error.message[:_LONGEST]}"}


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [reference for one in part for reference in _references(one)]
    if not isinstance(part, dict):
        return []
    own = [part[word] for word in ("$ref", "$dynamicRef") if isinstance(part.get(word), str)]
    return own + [reference for one in part.values() for reference in _references(one)]
