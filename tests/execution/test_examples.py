"""The example agents: what they answer, exactly."""

import pytest

from mailbox_app import testing
from mailbox_app.models import JournalEntry, Run
from mailbox_app.testing import Mailbox


def ask(mailbox: Mailbox, agent: str, text: str) -> Run:
    run = mailbox.submit(text, agent=agent)
    mailbox.run_until_idle()
    return run


TABLE = """name,amount,note,city,day
Ada,1.5,"a, quoted | cell",Paris,2026-01-31
Bo,2.5,,Paris,2026-02-01
Cy,5,"two
lines",Rome,2025-12-24
"""

REPORT = r"""# 3 rows, 5 columns

| column | kind | filled | distinct | summary |
|---|---|---:|---:|---|
| name | text | 3 | 3 | all different |
| amount | number | 3 | 3 | min 1.5 · median 2.5 · mean 3 · max 5 |
| note | text | 2 | 2 | all different |
| city | text | 3 | 2 | most often “Paris” (2 times) |
| day | date | 3 | 3 | 2025-12-24 to 2026-02-01 |

Missing cells: note (1)."""


def test_echo_says_the_words_back_one_by_one(mailbox: Mailbox) -> None:
    run = ask(mailbox, "echo", "  say   this\tback ")
    testing.assert_run_finished(run, output="say this back")
    assert mailbox.streamed(run) == ["say ", "this ", "back "]


def test_analyst_reports_on_every_column(mailbox: Mailbox) -> None:
    run = ask(mailbox, "analyst", TABLE)
    testing.assert_run_finished(run, output=REPORT)
    testing.assert_said(run, [REPORT])
    steps = JournalEntry.objects.filter(verb="step").order_by("id").values_list("name", "key")
    columns = [("profile-column", name) for name in ("name", "amount", "note", "city", "day")]
    assert list(steps) == [("read-table", ""), *columns, ("write-report", "")]
    testing.assert_events(run, ["TableRead", *["ColumnProfiled"] * 5], own_only=True)
    assert "".join(mailbox.streamed(run)) == REPORT


def test_analyst_escapes_what_would_break_its_table(mailbox: Mailbox) -> None:
    run = ask(mailbox, "analyst", 'a|b,c\n"x | y\nz",1\n"x | y\nz",2\n')
    report = testing.assert_run_finished(run).final_output
    assert isinstance(report, str)
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("hello there", "the message holds no CSV table: a header line and at least one row are needed"),
        ("a,b", "the message holds no CSV table: a header line and at least one row are needed"),
        ("a\n1\n2", "the message holds no CSV table: a header line and at least one row are needed"),
        ("a,b\n1,2\n3", "line 3 of the table has 1 cells, the header 2"),
        ("a,b\n1,2,3", "line 2 of the table has 3 cells, the header 2"),
        ("a,a\n1,2", "two columns of the table have the same name"),
    ],
)
def test_analyst_buries_a_crooked_table_with_a_clear_message(table: str, message: str, mailbox: Mailbox) -> None:
    run = ask(mailbox, "analyst", table)
    assert testing.assert_dead_letter(run, code="permanent").attempt_count == 1
    run.refresh_from_db()
    assert run.error == {"code": "permanent", "message": f"Permanent: {message}"}
    assert JournalEntry.objects.count() == 0


def test_analyst_buries_a_cell_that_is_longer_than_csv_reads(mailbox: Mailbox) -> None:
    run = ask(mailbox, "analyst", "a,b\n" + "x" * 200_000 + ",1\n")
    testing.assert_dead_letter(run)
    run.refresh_from_db()
    assert run.error == {
        "code": "permanent",
        "message": "Permanent: the table cannot be read: field larger than field limit (131072)",
    }
