"""Log lines: structured, with the ids of the run they were written in, and without what users wrote."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from mailbox_app.errors import Transient
from mailbox_app.execution import Context
from mailbox_app.telemetry import JsonFormatter, RunFilter, observe, observe_on_commit, observed, running
from tests.execution.conftest import Perform

SECRET = "the customer's own words"


class Lines(logging.Handler):
    """What a handler with our filter and formatter writes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.addFilter(RunFilter())
        self.setFormatter(JsonFormatter())
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written]

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == logger]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def test_an_event_of_the_app_is_one_object_with_its_name_and_fields(lines: Lines) -> None:
    observe("lease.lost", level=logging.WARNING, dispatch_id="d-1", seconds=1.5)
    [line] = lines.of("mailbox")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "mailbox",
        "event": "lease.lost",
        "dispatch_id": "d-1",
        "seconds": 1.5,
    }


def test_a_field_cannot_pose_as_the_line_s_own(lines: Lines) -> None:
    observe("odd", logger="forged", event="forged", time="forged")
    [line] = lines.of("mailbox")
    assert (line["event"], line["logger"]) == ("odd", "mailbox")
    assert line["time"] != "forged"


def test_a_line_break_in_a_value_does_not_break_the_line(lines: Lines) -> None:
    logging.getLogger("team").warning("one\ntwo")
    assert [line["message"] for line in lines.of("team")] == ["one\ntwo"]
    assert "\n" not in lines.written[-1]


def test_an_exception_of_a_team_s_own_line_is_told_with_its_traceback(lines: Lines) -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("team").exception("it failed")
    [line] = lines.of("team")
    assert line["level"] == "error"
    assert line["exception"].endswith("ValueError: bad")


def test_ids_are_those_of_the_innermost_block_and_gone_after_it(lines: Lines) -> None:
    log = logging.getLogger("team")
    with running(run_id=1):
        with running(run_id=2):
            log.info("inner")
        log.info("outer")
    log.info("outside")
    assert [line.get("run_id") for line in lines.of("team")] == ["2", "1", None]


@pytest.mark.django_db(transaction=True)
def test_a_team_s_own_lines_inside_an_agent_carry_the_ids_of_its_run(lines: Lines, perform: Perform) -> None:
    claim = perform(lambda ctx: logging.getLogger("team").info("looking it up"))
    [line] = lines.of("team")
    assert {name: line[name] for name in ("thread_id", "run_id", "dispatch_id", "message")} == {
        "thread_id": str(claim.thread_id),
        "run_id": str(claim.run_id),
        "dispatch_id": str(claim.dispatch_id),
        "message": "looking it up",
    }
    logging.getLogger("team").info("afterwards")
    assert "run_id" not in lines.of("team")[-1]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [False, True], ids=["answered", "failed"])
def test_the_app_logs_nothing_that_a_user_or_an_agent_wrote(fails: bool, lines: Lines, perform: Perform) -> None:
    def agent(ctx: Context) -> str:
        ctx.emit("Noted", {"text": SECRET})
        ctx.step("note", lambda: SECRET)
        if fails:
            raise Transient(SECRET)
        return SECRET

    perform(agent, SECRET, max_attempts=1)
    assert len(lines.of("mailbox")) >= 3
    assert [line for line in lines.of("mailbox") if SECRET in json.dumps(line)] == []


@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_is_not_told() -> None:
    told: list[str] = []

    def listen(name: str, **_: Any) -> None:
        told.append(name)

    observed.connect(listen)
    try:
        with transaction.atomic():
            observe_on_commit("kept")
            assert told == []
        with transaction.atomic():
            observe_on_commit("rolled.back")
            transaction.set_rollback(True)
    finally:
        observed.disconnect(listen)
    assert told == ["kept"]
