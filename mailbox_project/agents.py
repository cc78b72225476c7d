"""The example agents: `echo` streams your words back, `analyst` profiles a CSV table in journalled steps, `chat.py` has
one that talks through a language model, and `support.py` one that asks, is steered and has a child.
"""

import csv
import io
import statistics
from datetime import date
from typing import Any

from mailbox_app.errors import Permanent
from mailbox_app.execution import Context, agent
from mailbox_project import chat, support

__all__ = ["analyst", "chat", "echo", "support"]


@agent("echo")
def echo(ctx: Context) -> str:
    """Say back what was said, word by word as it goes."""
    words = ctx.messages[-1].text.split()
    for word in words:
        ctx.delta(word + " ")
        ctx.checkpoint()
    return " ".join(words)


@agent("analyst", version="1", max_attempts=3, timeout_seconds=300)
def analyst(ctx: Context) -> str:
    """Profile the columns of the CSV table in the last message and answer with a Markdown report."""
    text = ctx.messages[-1].text
    # The table itself stays out of the journal: it is in the message, and cheap to parse again.
    header, rows = _parse(text)
    shape = ctx.step("read-table", lambda: {"columns": len(header), "rows": len(rows)})
    ctx.emit("TableRead", shape)
    profiles = []
    for index, name in enumerate(header):
        ctx.checkpoint()
        profile = ctx.step("profile-column", lambda column=index: _profile([row[column] for row in rows]), key=name)
        ctx.emit("ColumnProfiled", {"column": name, "kind": profile["kind"]})
        profiles.append({"name": name, **profile})
    report = ctx.step("write-report", lambda: _report(shape["rows"], profiles))
    for line in report.splitlines(keepends=True):
        ctx.delta(line)
    return report


def _parse(text: str) -> tuple[list[str], list[list[str]]]:
    try:
        lines = [row for row in csv.reader(io.StringIO(text.strip())) if row]
    except csv.Error as error:
        raise Permanent(f"the table cannot be read: {error}") from error
    if len(lines) < 2 or len(lines[0]) < 2:
        raise Permanent("the message holds no CSV table: a header line and at least one row are needed")
    header = [name.strip() or f"column {number}" for number, name in enumerate(lines[0], start=1)]
    crooked = next((number for number, row in enumerate(lines[1:], start=2) if len(row) != len(header)), None)
    if crooked is not None:
        raise Permanent(f"line {crooked} of the table has {len(lines[crooked - 1])} cells, the header {len(header)}")
    if len(set(header)) != len(header):
        raise Permanent("two columns of the table have the same name")
    return header, lines[1:]


def _profile(cells: list[str]) -> dict[str, Any]:
    filled = [cell.strip() for cell in cells if cell.strip()]
    profile: dict[str, Any] = {"filled": len(filled), "missing": len(cells) - len(filled), "distinct": len(set(filled))}
    numbers = [number for number in map(_number, filled) if number is not None]
    if filled and len(numbers) == len(filled):
        middle = statistics.median(numbers)
        spread = {"min": min(numbers), "median": middle, "mean": statistics.fmean(numbers), "max": max(numbers)}
        return {**profile, "kind": "number", **{name: round(value, 4) for name, value in spread.items()}}
    if filled and all(map(_is_date, filled)):
        return {**profile, "kind": "date", "first": min(filled), "last": max(filled)}
    common = max(sorted(set(filled)), key=filled.count) if filled else ""
    return {**profile, "kind": "text" if filled else "empty", "most_common": common, "times": filled.count(common)}


def _number(cell: str) -> float | None:
    try:
        number = float(cell.replace("_", "x"))  # float() reads "1_000", which no spreadsheet writes
    except ValueError:
        return None
    return number if number - number == 0 else None  # neither nan nor inf


def _is_date(cell: str) -> bool:
    """Whether the cell is a day as ISO 8601 writes it, which also sorts as text."""
    try:
        return date.fromisoformat(cell).isoformat() == cell
    except ValueError:
        return False


def _report(rows: int, profiles: list[dict[str, Any]]) -> str:
    lines = [
        f"# {rows} rows, {len(profiles)} columns",
        "",
        "| column | kind | filled | distinct | summary |",
        "|---|---|---:|---:|---|",
    ]
    for column in profiles:
        if column["kind"] == "number":
            summary = "min {min:g} · median {median:g} · mean {mean:g} · max {max:g}".format(**column)
        elif column["kind"] == "date":
            summary = f"{column['first']} to {column['last']}"
        elif column["kind"] == "text" and column["distinct"] == column["filled"]:
            summary = "all different"
        elif column["kind"] == "text":
            summary = f"most often “{_cell(column['most_common'])}” ({column['times']} times)"
        else:
            summary = "nothing but empty cells"
        lines.append(
            f"| {_cell(column['name'])} | {column['kind']} | {column['filled']} | {column['distinct']} | {summary} |"
        )
    gaps = [f"{_cell(column['name'])} ({column['missing']})" for column in profiles if column["missing"]]
    lines += ["", f"Missing cells: {', '.join(gaps)}." if gaps else "No cell is missing."]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
