"""How a message is to be delivered: at which boundary, how many together, and to which run; checked."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mailbox_app.errors import InvalidInput
from mailbox_app.models import Boundary, Granularity
from mailbox_app.operations import inputs

IF_ACTIVE = ("enqueue", "steer", "interrupt", "reject")

# What `if_active` asks for, said as a boundary.
_BOUNDARIES = {
    "enqueue": Boundary.NEW_RUN,
    "reject": Boundary.NEW_RUN,
    "steer": Boundary.NEXT_STEP,
    "interrupt": Boundary.INTERRUPT,
}
# What a boundary asks for, where no `if_active` is given.
_WORDS = {
    Boundary.NEW_RUN: "enqueue",
    Boundary.NEXT_STEP: "steer",
    Boundary.ON_NATURAL_END: "steer",
    Boundary.RESUME_INPUT: "steer",
    Boundary.INTERRUPT: "interrupt",
}
_FIELDS = ("boundary", "granularity", "barrier", "target_run_id", "fallback")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where in a run's life the messages of a submission are read, and by which.

    `granularity`: "one" is read alone. `barrier`: nothing said later is read before, or together with, the last of
    them. `target_run_id`: for the open run of this id and no other; when it ends first, they are retracted or, with the
    `fallback` "new_run", get a run of their own.
    """

    boundary: Boundary = Boundary.NEW_RUN
    granularity: Granularity = Granularity.BATCH
    barrier: bool = False
    target_run_id: uuid.UUID | None = None
    fallback: str = ""
    # Whether the boundary `new_run` was asked for by its name.
    has_own_run: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the messages may be read together with what is said before and after them."""
        return self.granularity == Granularity.BATCH and not self.barrier and not self.has_own_run


def check(if_active: Any, given: Any) -> tuple[str, Delivery]:
    """Both ways of saying it, brought together: (`if_active`, delivery). Raises InvalidInput where they contradict."""
    word = None if if_active is None else inputs.choice("if_active", if_active, IF_ACTIVE)
    if given is None:
        word = word or "enqueue"
        return word, Delivery(boundary=_BOUNDARIES[word])
    if not isinstance(given, Mapping):
        raise InvalidInput("delivery", "not_an_object", f"delivery must be an object, not {type(given).__name__}")
    unknown = sorted(str(name) for name in set(given) - set(_FIELDS))
    if unknown:
        raise InvalidInput(f"delivery.{unknown[0]:.100}", "unknown_field", f"delivery has no field {unknown[0]!r:.100}")
    found = {name: value for name, value in given.items() if value is not None}
    boundary = None
    if "boundary" in found:
        boundary = Boundary(inputs.choice("delivery.boundary", found["boundary"], Boundary.values))
    if word is not None and boundary is not None and boundary != _BOUNDARIES[word]:
        raise InvalidInput(
            "delivery.boundary", "contradiction", f"if_active {word!r} contradicts the boundary {boundary.value!r}"
        )
    word = word or (_WORDS[boundary] if boundary is not None else "enqueue")
    boundary = boundary or _BOUNDARIES[word]
    granularity = inputs.choice("delivery.granularity", found.get("granularity", "batch"), Granularity.values)
    barrier = found.get("barrier", False)
    if not isinstance(barrier, bool):
        raise InvalidInput(
            "delivery.barrier", "not_a_boolean", f"delivery.barrier must be true or false: {barrier!r:.50}"
        )
    target = inputs.identifier("delivery.target_run_id", found.get("target_run_id"))
    if target is not None and word != "steer":
        raise InvalidInput(
            "delivery.target_run_id", "contradiction", f"what is read at {boundary.value!r} goes to no run that is open"
        )
    if target is None and boundary == Boundary.RESUME_INPUT:
        raise InvalidInput("delivery.target_run_id", "required", "resume_input names its run: delivery.target_run_id")
    fallback = ""
    if "fallback" in found:
        fallback = inputs.choice("delivery.fallback", found["fallback"], [Boundary.NEW_RUN.value])
        if target is None:
            raise InvalidInput("delivery.fallback", "contradiction", "a fallback is for what has a target_run_id")
    return word, Delivery(
        boundary=boundary,
        granularity=Granularity(granularity),
        barrier=barrier,
        target_run_id=target,
        fallback=fallback,
        has_own_run=found.get("boundary") == Boundary.NEW_RUN,
    )
