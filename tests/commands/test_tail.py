"""`manage.py mailbox_tail`: a process of its own follows what verbs commit and agents say, and prints it safely."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.core.management.color import no_style
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from mailbox_app import channel, saying
from mailbox_app.devtools.processes import wait_until
from mailbox_app.execution.live import LiveText
from mailbox_app.management.commands.mailbox_tail import INTERRUPTED
from mailbox_app.models import Event, Run, Thread
from mailbox_app.operations import checkpoint, prune, settle, submit, threads, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.watching import rows, text
from mailbox_app.watching.follow import End, Said, follow
from mailbox_app.watching.rows import Target
from mailbox_app.watching.terminal import Lines
from tests import given, make
from tests.operations import scene
from tests.races.actors import ROOT, database_url, terminate

pytestmark = pytest.mark.django_db(transaction=True)

# Much longer than anything takes.
PATIENCE_SECONDS = 30.0
# Clear the screen, set the title, end the line as an event would, turn the text around, a C1 control and DEL.
EVIL = "\x1b[2J\x1b]0;owned\x07\r\n12:00:00.000      9  RunFinished\u202e\x9b31m\x7f"


class Tail:
    """The command in a process, and what it has printed."""

    def __init__(self, *arguments: str, through: Sequence[str] = (), **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "mailbox_tail", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "DATABASE_URL": database_url(),
                "DJANGO_SETTINGS_MODULE": "mailbox_project.settings",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Who runs the tests in the background of a script has them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._read: dict[str, list[bytes]] = {"out": [], "notes": []}
        self._collecting: list[threading.Thread] = []
        out = self.process.stdout
        if through:
            out = subprocess.Popen(through, stdin=out, stdout=subprocess.PIPE).stdout
            assert self.process.stdout is not None
            self.process.stdout.close()
        for name, pipe in (("out", out), ("notes", self.process.stderr)):
            self._collecting.append(threading.Thread(target=self._collect, args=(name, pipe), daemon=True))
            self._collecting[-1].start()

    def _collect(self, name: str, pipe: Any) -> None:
        while piece := pipe.read1():
            self._read[name].append(piece)

    @property
    def out(self) -> str:
        return b"".join(self._read["out"]).decode()

    @property
    def notes(self) -> str:
        return b"".join(self._read["notes"]).decode()

    def until(self, is_it: Callable[[], Any], why: str = "") -> None:
        wait_until(is_it, PATIENCE_SECONDS)
        assert is_it(), (why, self.out, self.notes)

    def until_out(self, text: str) -> None:
        self.until(lambda: text in self.out, text)

    def code(self) -> int:
        """How it ends by itself."""
        code = self.process.wait(PATIENCE_SECONDS)
        for one in self._collecting:  # what it said last may still be on its way
            one.join(PATIENCE_SECONDS)
        return code

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.code()


@pytest.fixture
def tail() -> Iterator[Callable[..., Tail]]:
    started: list[Tail] = []

    def start(*arguments: object, **given: Any) -> Tail:
        started.append(Tail(*map(str, arguments), **given))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


@pytest.fixture(autouse=True)
def _closed_breaker() -> None:
    channel.forget_failures()


def told(*arguments: object) -> tuple[list[str], list[str]]:
    """The lines and the notes of what is there now."""
    out, notes = io.StringIO(), io.StringIO()
    call_command("mailbox_tail", *map(str, arguments), "--no-follow", stdout=out, stderr=notes)
    return out.getvalue().splitlines(), notes.getvalue().splitlines()


def objects(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told(*arguments, "--json")[0]]


def kinds(lines: list[str]) -> list[str]:
    return [line.split()[2] for line in lines if line[:2].isdigit()]


def finish(taken: Claim, output: str = "done") -> None:
    settle.complete(taken, output=output)


def say(taken: Claim, text: str, n: int = 1) -> None:
    checkpoint.say(taken, scene.entry("say", verb="say", n=n), text)


def test_a_run_is_followed_until_it_is_done(tail: Callable[..., Tail]) -> None:
    receipt = scene.post()
    following = tail(receipt.run_id)
    following.until_out("RunQueued")
    assert "RunStarted" not in following.out
    taken = scene.taken()
    following.until_out("RunStarted")
    live = LiveText(taken)
    live.delta("I think")
    following.until_out("  | I think")
    live.delta(" so.\nAnd")
    following.until_out("  | I think so.\n  | And")
    say(taken, "I think so.\nAnd")
    live.close()
    following.until_out("MessageCommitted")
    finish(taken)
    assert following.code() == 0
    lines = following.out.splitlines()
    events = list(Event.objects.filter(run_id=receipt.run_id).order_by("cursor"))
    assert kinds(lines) == [event.kind for event in events]
    assert [int(line.split()[1]) for line in lines if line[:2].isdigit()] == [event.cursor for event in events]
    assert [line for line in lines if line.startswith("  | ")] == ["  | I think so.", "  | And"]
    started = next(line for line in lines if "RunStarted" in line)
    assert f"run {receipt.run_id.hex[-8:]} dispatch {receipt.dispatch_id.hex[-8:]} " in started
    assert following.notes.splitlines() == [f"-- run {receipt.run_id} is done: natural_end"]


def test_who_comes_late_gets_the_events_and_the_text_so_far_and_leaves_by_ctrl_c(tail: Callable[..., Tail]) -> None:
    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("said and closed. ")
    say(taken, "said and closed.")
    live.close()
    live.delta("said before ")
    following = tail(taken.run_id)
    following.until_out("  | said before ")
    live.delta("and after")
    following.until_out("  | said before and after")
    assert "  | said and closed" not in following.out, "that is a message"
    lines = following.out.splitlines()
    assert kinds(lines)[-1] == "MessageCommitted", "what happened before the text stands before it"
    assert "content=said and closed." in lines[-2]
    assert following.interrupt() == INTERRUPTED
    assert following.out.endswith("and after\n"), "the prompt begins on a line of its own"
    assert following.notes == "", "no traceback"


def test_a_new_attempt_s_text_is_shown_from_its_beginning_after_what_has_happened() -> None:
    taken = scene.posted_and_taken()
    LiveText(taken).delta("the first try says")
    found = follow(Target(thread_id=taken.thread_id, run_id=taken.run_id))
    assert next_said(found) == (1, 0, "the first try says")
    settle.nack(taken, code="transient", message="as it was told to", retry_after=0.0)
    scene.make_available(taken)
    tick.promote()
    LiveText(scene.taken()).delta("the second")
    assert [one.kind for one in itertools.islice(found, 2) if isinstance(one, Event)] == [
        "RunRescheduled",
        "RunResumed",
    ]
    assert next_said(found) == (2, 0, "the second")


def test_a_turn_s_text_is_shown_from_its_beginning_after_what_has_begun_it() -> None:
    first = scene.posted_and_taken()
    LiveText(first).delta("the first turn says much more")
    found = follow(Target(thread_id=first.thread_id))
    assert next_said(found) == (1, 0, "the first turn says much more")
    LiveText(replace(first, turn=2)).delta("the second")  # the look that finds this text does not find its beginning
    wait_until(lambda: kept_turn(first) == 2, PATIENCE_SECONDS)
    assert not [one for one in follow(Target(thread_id=first.thread_id), is_live=False) if isinstance(one, Said)]
    submit.messages(scope=scene.SCOPE, thread_id=first.thread_id, messages=["and"], boundary="on_natural_end")
    assert settle.complete(first) is not None
    begun = next(one for one in found if isinstance(one, Said) or one.kind == "TurnStarted")
    assert isinstance(begun, Event)
    assert next_said(found) == (1, 0, "the second")


def test_text_of_a_turn_that_is_over_is_not_joined_to_that_of_the_next_one() -> None:
    taken = scene.posted_and_taken()
    about = {"attempt": 1, "closed": 0, "offset": 0}
    pieces = [{**about, "turn": 1, "text": "first"}, {**about, "turn": 2, "text": "second"}]
    pieces.append({**about, "turn": 1, "closed": 5, "text": "late"})
    key = channel.PREFIX + saying.KEPT.format(run_id=taken.run_id, fence=taken.fence)
    channel.send([("RPUSH", key, *map(json.dumps, pieces))])
    kept = text.kept(taken.run_id, taken.fence)
    assert kept is not None
    assert (kept.turn, kept.start, kept.text, kept.closed) == (2, 0, "second", 0)


def kept_turn(taken: Claim) -> int | None:
    kept = text.kept(taken.run_id, taken.fence)
    return None if kept is None else kept.turn


def next_said(found: Iterator[Any]) -> tuple[int, int, str]:
    """The live text that is followed next: its attempt, where it begins, and what it says."""
    said = next(one for one in found if isinstance(one, Said))
    assert not said.has_gap
    return said.attempt, said.offset, said.text


def test_text_that_was_not_kept_is_a_gap() -> None:
    taken = scene.posted_and_taken()
    live = LiveText(taken)
    live.delta("x" * (saying.MOST_TEXT - 3))
    found = follow(Target(thread_id=taken.thread_id))
    next_said(found)
    with channel.silenced():
        live.delta("lost")
    live.delta("after it")
    said = next(one for one in found if isinstance(one, Said))
    assert (said.has_gap, said.offset, said.text) == (True, saying.MOST_TEXT + 1, "after it")
    out = io.StringIO()
    lines = Lines(OutputWrapper(out), OutputWrapper(out), no_style())
    lines.show(said)
    lines.close()
    assert out.getvalue() == "  | …after it\n"


def test_a_reader_that_leaves_ends_it_without_a_traceback(tail: Callable[..., Tail]) -> None:
    taken = scene.posted_and_taken()
    following = tail(taken.run_id, through=("head", "-n", "2"))
    following.until_out("RunQueued")
    uses = itertools.count(1)

    def has_noticed() -> bool:
        say(taken, "to nobody", n=next(uses))  # once the reader is gone
        return following.process.poll() is not None

    following.until(has_noticed)
    assert following.code() == 1
    assert following.notes == ""
    assert len(following.out.splitlines()) == 2


def test_it_is_the_same_without_redis_but_for_live_text(tail: Callable[..., Tail]) -> None:
    taken = scene.posted_and_taken()
    following = tail(taken.run_id, REDIS_URL="", CELERY_BROKER_URL="memory://")
    following.until_out("RunStarted")
    live = LiveText(taken)
    live.delta("not to be heard")
    say(taken, "to be read")
    live.close()
    finish(taken)
    assert following.code() == 0
    assert "content=to be read" in following.out
    assert "  | " not in following.out
    assert kinds(following.out.splitlines()) == [
        event.kind for event in Event.objects.filter(run_id=taken.run_id).order_by("cursor")
    ]


def test_a_connection_that_is_lost_is_made_again_and_no_event_missed_or_repeated(tail: Callable[..., Tail]) -> None:
    taken = scene.posted_and_taken()
    following = tail(taken.run_id)
    following.until_out("RunStarted")
    for pid in backends(following):
        terminate(pid)
    following.until(lambda: "answers again" in following.notes)
    say(taken, "after it")
    finish(taken)
    assert following.code() == 0
    cursors = [int(line.split()[1]) for line in following.out.splitlines() if line[:2].isdigit()]
    assert cursors == list(
        Event.objects.filter(run_id=taken.run_id).order_by("cursor").values_list("cursor", flat=True)
    )
    assert [line.split(" (")[0] for line in following.notes.splitlines()[:2]] == [
        "-- the database does not answer",
        "-- the database answers again",
    ]


def backends(following: Tail) -> list[int]:
    """The connections of the process, and that none of them is in a transaction."""
    found: list[int] = []

    def are_idle() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query LIKE '%%mailbox_event WHERE run_id%%'"
            )
            found[:], states = zip(*(cursor.fetchall() or [(0, "")]), strict=True)
        assert "idle in transaction" not in states
        return set(states) == {"idle"}

    following.until(are_idle)
    return found


def test_no_text_of_an_agent_or_a_caller_reaches_the_terminal_as_anything_but_text(tail: Callable[..., Tail]) -> None:
    receipt = scene.post(EVIL)
    taken = scene.taken()
    scene.emit(taken, EVIL[:40], {EVIL: EVIL})
    LiveText(taken).delta(f"before {EVIL} after")
    plain = tail(receipt.run_id)
    plain.until_out("after")
    lines = told(receipt.run_id, "--json")[0]
    for out in (plain.out, "\n".join(lines)):
        # A colour of the command's own would be an escape, too: none where nobody can see it.
        assert [one for one in out if not (one.isprintable() or one == "\n")] == []
    assert "\\x1b[2J\\x1b]0;owned\\x07" in plain.out
    assert "\\u202e" in plain.out
    forged = [line for line in plain.out.splitlines() if "RunFinished" in line]
    assert forged
    assert [line for line in forged if line.split()[2:3] == ["RunFinished"]] == []
    found = [json.loads(line) for line in lines]
    assert {"kind": "delta", "text": f"before {EVIL} after"}.items() <= found[-1].items()
    assert next(one["payload"] for one in found if one["kind"] == EVIL[:40]) == {EVIL: EVIL}


def test_what_the_terminal_has_no_letter_for_becomes_an_escape() -> None:
    taken = scene.posted_and_taken()
    say(taken, "Grüße \N{PARTY POPPER}")
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as out:
        call_command("mailbox_tail", str(taken.run_id), "--no-follow", stdout=out)
        assert b"content=Gr\\xfc\\xdfe \\U0001f389" in raw.getvalue()


def test_internal_events_are_marked_and_a_thread_s_are_those_of_all_its_runs() -> None:
    first, second = scene.post(), None
    second = scene.post(thread_id=first.thread_id)
    taken = scene.taken()
    scene.emit(taken, "Debugged", {"n": 1}, visibility="internal")
    lines, _ = told(first.thread_id)
    assert kinds(lines) == scene.kinds(first)
    assert len([line for line in lines if f"run {second.run_id.hex[-8:]} " in line]) == 1
    [internal] = [line for line in lines if "(internal)" in line]
    assert internal.endswith(
        f"Debugged             (internal) run {first.run_id.hex[-8:]} dispatch {first.dispatch_id.hex[-8:]} n=1"
    )
    assert kinds(told(second.run_id)[0]) == ["RunQueued"]


def test_json_has_an_event_whole_on_a_line() -> None:
    taken = scene.posted_and_taken()
    say(taken, "x" * 1_000)
    *_, committed = objects(taken.run_id)
    row = Event.objects.get(thread_id=taken.thread_id, cursor=committed["cursor"])
    assert committed == {
        "cursor": row.cursor,
        "kind": "MessageCommitted",
        "payload": row.payload,
        "run_id": str(taken.run_id),
        "dispatch_id": None,
        "schema_version": 1,
        "correlation_id": row.correlation_id,
        "thread_id": str(taken.thread_id),
        "visibility": "public",
        "created_at": committed["created_at"],
    }
    assert committed["payload"]["content"] == "x" * 1_000
    line = told(taken.run_id)[0][-1]
    assert line.endswith("x…")
    assert len(line) < 300
    finish(taken)
    assert objects(taken.run_id)[-1] == {
        "kind": "end",
        "thread_id": str(taken.thread_id),
        "run_id": str(taken.run_id),
        "status": "done",
    }


def test_it_begins_after_a_cursor_and_pages_through_what_is_there() -> None:
    thread = make.thread(scope=scene.SCOPE, key="order-7")
    run = given.run(thread=thread)
    last = 2 * rows.PAGE + 7
    for cursor in range(2, last + 1):
        given.event(thread=thread, run_id=run.pk if cursor % 2 else None, cursor=cursor, kind="Ticked")
    Thread.objects.filter(pk=thread.pk).update(last_cursor=last)
    with CaptureQueriesContext(connection) as queries:
        found = objects("order-7", "--scope", scene.SCOPE)
    assert [one["cursor"] for one in found] == list(range(1, last + 1))
    assert len(queries) == 1 + 3, "which thread, and a page a statement"
    assert [one["cursor"] for one in objects(thread.pk, "--from", last - 2)] == [last - 1, last]
    assert [one["cursor"] for one in objects(run.pk, "--from", last - 4)] == [last - 2, last]
    assert objects(thread.pk, "--from", last + 50) == []


def test_events_past_their_retention_are_said_to_be_gone(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "event_retention_seconds": 60}
    taken = scene.posted_and_taken()
    finish(taken)
    Event.objects.filter(thread_id=taken.thread_id, cursor__lte=3).update(created_at=Now() - given.timedelta(hours=1))
    prune.batch()
    pruned = scene.thread(taken).pruned_cursor
    assert pruned == 3
    note = "-- events of the thread up to 3 are past their retention and gone"
    for start in (0, 2):
        lines, notes = told(taken.run_id, "--from", start)
        assert notes[0] == note
        assert int(lines[1].split()[1]) == 4
    assert note not in told(taken.run_id, "--from", 3)[1]


def test_a_thread_that_is_deleted_ends_it() -> None:
    taken = scene.posted_and_taken()
    finish(taken)
    target = Target(thread_id=taken.thread_id)
    found = follow(target)
    kinds_before = scene.kinds(taken)
    before = [one.kind for one in itertools.islice(found, len(kinds_before)) if isinstance(one, Event)]
    assert before == kinds_before
    threads.delete(scope=scene.SCOPE, thread_id=taken.thread_id)
    *rest, end = found
    assert [one.kind for one in rest if isinstance(one, Event)] == ["ThreadDeleted"]
    assert end == End(target=target, status="deleted")
    assert told(taken.thread_id)[1] == [f"-- thread {taken.thread_id} was deleted"]


@pytest.mark.parametrize("of", ["thread", "run"])
def test_rows_that_go_away_under_it_end_it(of: str) -> None:
    taken = scene.posted_and_taken()
    target = Target(thread_id=taken.thread_id, run_id=taken.run_id if of == "run" else None)
    found = follow(target)
    next(found)
    Run.objects.filter(pk=taken.run_id).delete()
    if of == "thread":
        Thread.objects.filter(pk=taken.thread_id).delete()
    *_, end = found
    assert end == End(target=target, status="gone")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("order-7",), "order-7 is no id; a thread's key needs --scope"),
        (("order-7", "--scope", "acme"), "scope acme has no thread with the key order-7"),
        ((str(uuid.UUID(int=7)),), f"there is no run or thread {uuid.UUID(int=7)}"),
    ],
)
def test_what_is_not_there_is_said(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        call_command("mailbox_tail", *arguments)


def test_a_database_that_is_not_there_is_said(tail: Callable[..., Tail]) -> None:
    following = tail(uuid.uuid4(), DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere")
    assert following.code() == 1
    assert "the database did not answer: OperationalError" in following.notes
    assert "Traceback" not in following.notes
