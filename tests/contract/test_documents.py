"""Documents that are printed from the code say what the code says.

After a change: `MAILBOX_WRITE_DOCUMENTS=1 python -m pytest tests/contract/test_documents.py` writes them anew.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from mailbox_app import checks, conf, metrics, payloads, states
from mailbox_app.api.v1 import errors, schema
from tests.chaos import kills

ROOT = Path(__file__).resolve().parents[2]

STATES = """# States

Every status and every legal move, printed by `python -m mailbox_app.states`. A status changes only through `move()`,
of one row on its fenced thread (`mailbox_app/models/thread.py`) or of many (`mailbox_app/models/base.py`), along one of
these edges; the source is in the statement's WHERE, so a row that has moved on is left alone.

"""
SETTINGS = """# Settings

Every key of `MAILBOX = {…}`, printed by `python -m mailbox_app.conf`; each may be left out. A key that is unknown, of
the wrong type or out of its range stops the process, and system check `mailbox.E001` names it.

"""
CHECKS = """# System checks

What `manage.py check` finds, printed from `mailbox_app/checks.py`. `manage.py check --database default` asks the server
as well. Django's `SILENCED_SYSTEM_CHECKS` silences one by its id.

"""
ERRORS = """# Error codes

Every refusal of the API is problem details (RFC 9457) with one of these codes, printed from
`mailbox_app/api/v1/errors.py`. Decide by `code`; `detail` is for people, and may change. 422 and some others name the
fields in `errors`, each with a code of its own. In Python the same codes are on the classes of `mailbox_app.errors`.

"""
OPENAPI = """# Printed from the code (mailbox_app/api/v1); a test compares. A running server shows it at /v1/docs.
"""
METRICS = """# Metrics

What `/metrics` shows, printed from `mailbox_app/metrics.py`. Mount it in your urls and give Prometheus its token:

```python
path("metrics", include("mailbox_app.api.v1.metrics")),                  # urls.py
MAILBOX = {"metrics_token": "…", "metrics_folder": "/run/mailbox", …}      # settings.py
```

**Who may read it.** The bearer token `metrics_token`, and staff: with a session, or with an API token of theirs. Nobody
else, also not from the same host: behind a proxy everybody is.

**Gauges** are sampled from the rows when somebody asks, at a cost a backlog does not raise; nothing is counted for them
in between. Of queued dispatches 10,000 are looked at; beyond that PostgreSQL's own estimate is shown, as
`mailbox_depth_is_estimated` says. Only the web process samples them.

**Counters and histograms** are counted where things happen, after the commit: in web processes, in a worker's pool
children, in its threads. All that share `metrics_folder` (one host, or one container) show each other's counts, those
of processes that were killed included, so one of them is enough to ask. Without a folder each process knows of itself
alone. For workers on other hosts, set `metrics_port`: each worker then serves `/metrics` for its own host, counters
only, under the same token. Workers that share a folder share their counts: give a port to one of them.

A rate over the sum of all instances is right where each instance has a folder of its own. Counts outlive restarts, for
as long as the folder does.

"""
EVENTS = """# Events

Every kind of event the system records, printed from `mailbox_app/payloads.py`. An event is one durable fact, written in
the transaction that made it true: where it is, what it tells is there, and the other way round. It has

- a `cursor`, its number in the thread: 1, 2, 3 … without a gap, in the order of the commits. Who has seen 7 will never
  see another one appear below it.
- a `kind` and a `payload`, below. An agent's own come from `ctx.emit`; they may not be called like one of these.
- `run_id` and `dispatch_id`, of what it tells about. An event of a run is one of its thread too, with the same cursor;
  an event of the thread is not among any run's.
- `correlation_id`: what it belongs together with. Events of an agent's own carry their activation's.
- `schema_version`, of its kind's payload. Fields are added to a payload without a new one, and kinds are added: pass
  over what you do not know. A field that goes, or says something else, raises it.

They are read page by page (`GET …/events`), or as they happen ([streaming](streaming.md)); both show what all may see.
An event that is seen as its message is internal if the message is. What operators see is in the admin alone.

A plain run records four: `RunQueued`, `RunStarted`, the `MessageCommitted` of its answer, `RunFinished`. What a turn
begins with is told by the event that begins it, by the ids of the messages; what is read in its midst has a
`MessageCommitted` of its own. That a waiting run may go on is told when it does (`RunResumed`). With `RunFinished`,
`RunErrored`, `RunCancelled` or `RunTerminated` a run is done; what becomes of the messages it has not read follows in
the same transaction, and a `DeliveryFailed` of something it has sent may come at any time.

Events are deleted after `event_retention_seconds`, the oldest first; a cursor before what is left is answered with 410
(`cursor_pruned`), the newest and 0 are always good. Those of an unresolved dead letter stay as long as it does.

## Kinds

"""
KILLS = """# Who is ended by what, where

Printed by `python -m tests.chaos.kills`: each name is a cell, a test of `tests/chaos/test_kills.py`. A round of the
suite takes the bold ones, `MAILBOX_KILLS=all` takes all. The COMMITs that are cut off are in `tests/chaos/commits.py`.
"""
DOCUMENTS: dict[str, tuple[str, Callable[[], str]]] = {
    "docs/states.md": (STATES, states.diagram),
    "docs/settings.md": (SETTINGS, conf.reference),
    "docs/checks.md": (CHECKS, checks.reference),
    "docs/errors.md": (ERRORS, errors.reference),
    "docs/openapi.yaml": (OPENAPI, schema.printed),
    "docs/events.md": (EVENTS, payloads.reference),
    "docs/metrics.md": (METRICS, metrics.reference),
    "tests/chaos/kills.md": (KILLS, kills.table),
}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_printed_document_equals_the_code(path: str) -> None:
    head, body = DOCUMENTS[path]
    expected = head + body()
    if os.environ.get("MAILBOX_WRITE_DOCUMENTS"):
        (ROOT / path).write_text(expected)
    assert (ROOT / path).read_text() == expected


def test_the_settings_are_printed_by_their_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mailbox_app.conf"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == conf.reference()


def test_every_setting_has_one_line_with_its_unit() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\w+) \|", (ROOT / "docs/settings.md").read_text(), re.M)
    assert [name for name, _, _ in rows] == [one.name for one in fields(conf.Settings)]
    for name, _, unit in rows:
        assert (unit == "seconds") == name.endswith("_seconds")
        assert (unit == "bytes") == name.endswith("_bytes")


def test_every_error_code_has_one_line_and_says_what_to_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (.+) \| (.+) \|$", (ROOT / "docs/errors.md").read_text(), re.M)
    assert [(code, int(status)) for code, status, _, _ in rows] == [
        (code, kind.status) for code, kind in errors.PROBLEMS.items()
    ]
    assert all(meaning.strip().endswith(".") for _, _, _, meaning in rows)


def test_every_check_has_one_line_and_a_test_named_after_it() -> None:
    numbers = [check.id for check in checks.CHECKS]
    assert len(set(numbers)) == len(numbers)
    lines = re.findall(r"^\| `(mailbox\.[EW]\d{3})` \|", (ROOT / "docs/checks.md").read_text(), re.M)
    assert lines == numbers
    tested = set(
        re.findall(r"^def test_mailbox_([EW]\d{3})_", (ROOT / "tests/contract/test_checks.py").read_text(), re.M)
    )
    assert tested == {number.removeprefix("mailbox.") for number in numbers}


def test_every_check_says_what_to_do() -> None:
    for check in checks.CHECKS:
        assert check.finding.endswith(".")
        assert check.hint.endswith(".")


def test_every_metric_has_one_line_and_follows_the_rules_of_prometheus() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert rows == [(one.name, one.type) for one in metrics.METRICS]
    assert len({name for name, _ in rows}) == len(rows)
    for one in metrics.METRICS:
        assert one.name.startswith("mailbox_")
        assert (one.type == "counter") == one.name.endswith("_total")
        assert one.type != "histogram" or one.name.endswith("_seconds")
        assert one.meaning.endswith(".")
        assert not [label for label in one.labels if label.endswith("_id")]


def test_every_kind_of_event_has_one_line_and_a_payload() -> None:
    text = (ROOT / "docs/events.md").read_text()
    kinds = [str(kind) for kind in payloads.DESCRIBED]
    assert re.findall(r"^\| \[`(\w+)`\]", text, re.M) == re.findall(r"^### (\w+)$", text, re.M) == kinds
    for one in payloads.DESCRIBED.values():
        assert one.when.endswith(".")
        assert len({field.name for field in one.fields}) == len(one.fields)


def test_a_payload_keeps_what_its_version_has_promised() -> None:
    """`payloads.json`: the fields of each kind as they were first promised. Fields are added there, and none is changed
    but under another version of its kind."""
    promised = json.loads(Path(__file__).with_name("payloads.json").read_text())
    now = {
        f"{one.kind} {one.version}": {
            field.name: f"{field.type}{' or null' * field.is_nullable}{', may be left out' * field.is_optional}"
            for field in one.fields
        }
        for one in payloads.DESCRIBED.values()
    }
    if os.environ.get("MAILBOX_WRITE_DOCUMENTS"):
        added = {kind: {**fields, **promised.get(kind, {})} for kind, fields in now.items()}
        Path(__file__).with_name("payloads.json").write_text(json.dumps({**promised, **added}, indent=2) + "\n")
    assert {kind: {**now[kind], **fields} for kind, fields in promised.items() if kind in now} == now
    gone = {kind.split()[0] for kind in promised} - {str(kind) for kind in payloads.DESCRIBED}
    assert not gone, "a kind is never taken back"


PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
# `operations/submit.py: run()`, `models/thread.py`; a folder of the package or of the checkout.
_PLACE = re.compile(r"`((?:[\w.]+/)*[\w]+\.py)(?:: (\w+)\(\))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_a_page_names_is_there(page: Path) -> None:
    for name, function in _PLACE.findall(page.read_text()):
        if name.startswith(("your", "celery.py", "urls.py", "settings.py")):
            continue
        found = [path for path in (ROOT / "mailbox_app" / name, ROOT / name) if path.is_file()]
        assert found, f"{page.name} names {name}"
        if function:
            source = found[0].read_text()
            assert re.search(rf"def {function}\(|class {function}\b", source), (
                f"{page.name} names {function}() of {name}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_runbook_names_metrics_and_codes_there_are() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    known = metrics.reference()
    for name in set(re.findall(r"`(mailbox_[a-z_]+)`", text)):
        assert f"`{name}`" in known, name
    for code in set(re.findall(r"code `(\w+)`", text)):
        spelled = [path for path in (ROOT / "mailbox_app").rglob("*.py") if f'"{code}"' in path.read_text()]
        assert spelled, code
