"""Documents that are printed from the code say what the code says.

After a change: `MAILBOX_WRITE_DOCUMENTS=1 python -m pytest tests/contract/test_documents.py` writes them anew.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from mailbox_app import checks, conf, metrics, states
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

`mailbox_streams_open` and `mailbox_stream_threads` are of no row: each web process counts what it has open now. Those
that share `metrics_folder` are added up, and one that was killed takes its share along; without a folder, a process
shows its own, and which one is asked is the load balancer's choice.

**Counters and histograms** are counted where things happen, after the commit: in web processes, in a worker's pool
children, in its threads. All that share `metrics_folder` (one host, or one container) show each other's counts, those
of processes that were killed included, so one of them is enough to ask. Without a folder each process knows of itself
alone. For workers on other hosts, set `metrics_port`: each worker then serves `/metrics` for its own host, counters
only, under the same token. Workers that share a folder share their counts: give a port to one of them.

A rate over the sum of all instances is right where each instance has a folder of its own. Counts outlive restarts, for
as long as the folder does.

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
