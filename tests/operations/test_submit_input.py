"""Every input a submission refuses: the field and the code it names, and that nothing is written."""

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest

from mailbox_app.errors import InvalidInput
from mailbox_app.models import Message
from mailbox_app.operations import inputs, submit
from mailbox_app.operations.inputs import NewMessage
from tests.operations import scene

pytestmark = pytest.mark.django_db

NUL, SURROGATE = "a\x00b", "a\ud800b"


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "hello", **fields}]


def a_message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"content": "hello", **fields}]}


def content(value: Any) -> dict[str, Any]:
    return {"messages": ["fine", {"content": value}]}


LOOP: dict[str, Any] = {}
LOOP["again"] = LOOP

# name: (arguments, field, code)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "messages", "empty"),
    "messages text": ({"messages": "hello"}, "messages", "not_a_list"),
    "messages object": ({"messages": {"content": "x"}}, "messages", "not_a_list"),
    "messages none": ({"messages": None}, "messages", "not_a_list"),
    "messages generator": ({"messages": (m for m in ["hello"])}, "messages", "not_a_list"),
    "too many messages": ({"messages": ["x"] * 101}, "messages", "too_many"),
    "message number": ({"messages": ["fine", 7]}, "messages[1]", "not_an_object"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    "unknown field": (a_message(colour="red"), "messages[0].colour", "unknown_field"),
    "unknown field of two kinds": (a_message(b=1) | {}, "messages[0].b", "unknown_field"),
    "unknown field unprintable": (a_message(**{SURROGATE: 1}), "messages[0].a\\ud800b", "unknown_field"),
    "blank text": (content(" \n\t"), "messages[1].content", "blank"),
    "content none": (content(None), "messages[1].content", "not_content"),
    "content number": (content(5), "messages[1].content", "not_content"),
    "content object": (content({"type": "text", "text": "x"}), "messages[1].content", "not_content"),
    "no parts": (content([]), "messages[1].content", "blank"),
    "part text": (content(["x"]), "messages[1].content[0]", "not_a_part"),
    "part without type": (content([{"text": "x"}]), "messages[1].content[0]", "not_a_part"),
    "part blank type": (content([{"type": " "}]), "messages[1].content[0]", "not_a_part"),
    "part without text": (content([{"type": "text"}]), "messages[1].content[0].text", "not_a_string"),
    "nul in text": (content(NUL), "messages[1].content", "unstorable_text"),
    "surrogate in text": (content(SURROGATE), "messages[1].content", "unstorable_text"),
    "nul in part": (content(part(text=NUL)), "messages[1].content[0].text", "unstorable_text"),
    "surrogate in nested key": (content(part(more={SURROGATE: 1})), "messages[1].content[0].more", "unstorable_text"),
    "nul in nested list": (
        content(part(more=[{"k": [NUL]}])),
        "messages[1].content[0].more[0].k[0]",
        "unstorable_text",
    ),
    "nan": (content(part(score=float("nan"))), "messages[1].content[0].score", "not_json"),
    "infinity": (content(part(score=float("-inf"))), "messages[1].content[0].score", "not_json"),
    "huge integer": (content(part(score=10**5000)), "messages[1].content[0].score", "not_json"),
    "bytes": (content(part(data=b"x")), "messages[1].content[0].data", "not_json"),
    "datetime": (content(part(at=datetime(2026, 1, 1))), "messages[1].content[0].at", "not_json"),
    "number key": (content(part(more={1: 2})), "messages[1].content[0].more", "not_json"),
    "too deep": (content(part(more=nested(110))), "messages[1].content[0].more" + "[0]" * 99, "too_deep"),
    "two MiB": (content("x" * 2 * 1024 * 1024), "messages[1].content", "too_large"),
    "one byte too large": (content("x" * (1_048_576 - 1)), "messages[1].content", "too_large"),
    "role blank": (a_message(role=" "), "messages[0].role", "blank"),
    "role unknown": (a_message(role="boss"), "messages[0].role", "not_a_choice"),
    "role none": (a_message(role=None), "messages[0].role", "not_a_choice"),
    "role list": (a_message(role=["user"]), "messages[0].role", "not_a_choice"),
    "visibility": (a_message(visibility="secret"), "messages[0].visibility", "not_a_choice"),
    "sender number": (a_message(sender=1), "messages[0].sender", "not_a_string"),
    "sender long": (a_message(sender="x" * 201), "messages[0].sender", "too_long"),
    "client id blank": (a_message(client_id=""), "messages[0].client_id", "blank"),
    "client id nul": (a_message(client_id=NUL), "messages[0].client_id", "unstorable_text"),
    "client id twice": ({"messages": [{"content": "x", "client_id": "a"}] * 2}, "messages", "duplicate_id"),
    "message metadata list": (a_message(metadata=[1]), "messages[0].metadata", "not_an_object"),
    "message metadata nul": (a_message(metadata={"a": {"b": NUL}}), "messages[0].metadata.a.b", "unstorable_text"),
    "scope blank": ({"scope": " "}, "scope", "blank"),
    "scope none": ({"scope": None}, "scope", "not_a_string"),
    "scope with a line break": ({"scope": "ac\nme"}, "scope", "control_character"),
    "scope with an escape": ({"scope": "ac\x1b[2Jme"}, "scope", "control_character"),
    "scope long": ({"scope": "x" * 201}, "scope", "too_long"),
    "agent number": ({"agent": 5}, "agent", "not_a_string"),
    "agent nul": ({"agent": NUL}, "agent", "unstorable_text"),
    "agent surrogate": ({"agent": SURROGATE}, "agent", "unstorable_text"),
    "agent unknown": ({"agent": "nobody"}, "agent", "unknown_agent"),
    "no default agent": ({"agent": ""}, "agent", "unknown_agent"),
    "thread id": ({"thread_id": "not-an-id"}, "thread_id", "not_an_id"),
    "thread id number": ({"thread_id": 5}, "thread_id", "not_an_id"),
    "thread id nul": ({"thread_id": NUL}, "thread_id", "not_an_id"),
    "thread key blank": ({"thread_key": " "}, "thread_key", "blank"),
    "thread key long": ({"thread_key": "x" * 201}, "thread_key", "too_long"),
    "thread key surrogate": ({"thread_key": SURROGATE}, "thread_key", "unstorable_text"),
    "both": ({"thread_key": "k", "thread_id": "0" * 32}, "thread_key", "contradiction"),
    "if active": ({"if_active": "sometimes"}, "if_active", "not_a_choice"),
    "priority 256": ({"priority": 256}, "priority", "out_of_range"),
    "priority -1": ({"priority": -1}, "priority", "out_of_range"),
    "priority true": ({"priority": True}, "priority", "not_an_integer"),
    "priority text": ({"priority": "1"}, "priority", "not_an_integer"),
    "priority float": ({"priority": 1.0}, "priority", "not_an_integer"),
    "max attempts 0": ({"max_attempts": 0}, "max_attempts", "out_of_range"),
    "max attempts 1001": ({"max_attempts": 1001}, "max_attempts", "out_of_range"),
    "time text": ({"available_at": "2026-01-01T00:00:00Z"}, "available_at", "not_a_time"),
    "time without zone": ({"available_at": datetime(2026, 1, 1)}, "available_at", "not_a_time"),
    "dedupe key blank": ({"dedupe_key": ""}, "dedupe_key", "blank"),
    "run id blank": ({"client_id": ""}, "client_id", "blank"),
    "client id that steers": ({"client_id": "mine", "if_active": "steer"}, "client_id", "contradiction"),
    "dedupe key nul": ({"dedupe_key": NUL}, "dedupe_key", "unstorable_text"),
    "options list": ({"options": []}, "options", "not_an_object"),
    "options nul key": ({"options": {NUL: 1}}, "options", "unstorable_text"),
    "options object": ({"options": {"a": object()}}, "options.a", "not_json"),
    "options loop": ({"options": LOOP}, "options" + ".again" * 100, "too_deep"),
    "metadata large": ({"metadata": {"a": "x" * 65_536}}, "metadata", "too_large"),
}


@pytest.mark.parametrize(("given", "field", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_names_its_field_and_writes_nothing(given: dict[str, Any], field: str, code: str) -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        submit.run(**{"scope": "acme", "agent": "echo", "messages": ["hello"], **given})
    assert [(one["field"], one["code"]) for one in refused.value.errors] == [(field, code)]
    # Whatever was in the input, the answer can be encoded and has a bounded size.
    assert len(str(refused.value.errors).encode()) < 3000
    assert refused.value.message.encode()


def test_a_time_too_far_ahead_is_refused_and_the_furthest_is_not() -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        scene.post(available_at=scene.database_now() + timedelta(days=366, minutes=1))
    assert refused.value.errors[0]["code"] == "too_far"
    scene.post(available_at=scene.database_now() + timedelta(days=365, hours=23))


ACCEPTED: dict[str, Any] = {
    "text at the limit": "x" * (1_048_576 - 2),
    "any text": 'quotes " \\ \u2028 tab\t 🎈 \ufffe é',
    "parts": [{"type": "text", "text": ""}, {"type": "image", "url": "x", "size": [1, 2.5, None, True]}],
    "a tuple of parts": ({"type": "text", "text": "x"},),
    "mappings that are no dict": [MappingProxyType({"type": "x", "more": MappingProxyType({"a": (1,)})})],
    "deep": part(more=nested(90)),
}


@pytest.mark.parametrize("given", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_is_accepted_is_stored_as_json_gives_it_back(given: Any) -> None:
    posted = scene.post(messages=[NewMessage(content=given)])
    stored = Message.objects.get(pk=posted.message_ids[0])
    assert stored.content == inputs.document("content", given, most_bytes=2_000_000)
    assert scene.taken().messages[0].content == stored.content


def test_a_mixed_bag_of_unknown_fields_names_one() -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        submit.run(scope="acme", agent="echo", messages=[{"content": "x", 7: 1, "a": 2}])
    assert refused.value.errors[0]["field"] == "messages[0].7"


TITLES: list[tuple[dict[str, Any], str]] = [
    ({"title": "x" * 501}, "title"),
    ({"title": NUL}, "title"),
    ({"key": ""}, "key"),
    ({"metadata": {"a": SURROGATE}}, "metadata.a"),
    ({"scope": ""}, "scope"),
    ({"scope": "ac\tme"}, "scope"),
]


@pytest.mark.parametrize(("given", "field"), TITLES)
def test_a_thread_with_bad_input_is_not_made(given: dict[str, Any], field: str) -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        submit.thread(**{"scope": "acme", **given})
    assert refused.value.errors[0]["field"] == field


CHECKS: list[Callable[[str, Any], Any]] = [inputs.text, inputs.optional_text, inputs.identifier, inputs.mapping]
AWKWARD = (b"x", 1.5, [], {1}, object(), True)


@pytest.mark.parametrize(("check", "value"), list(itertools.product(CHECKS, AWKWARD)), ids=repr)
def test_no_check_fails_with_anything_but_its_own_refusal(check: Callable[[str, Any], Any], value: Any) -> None:
    with pytest.raises(InvalidInput):
        check("field", value)
