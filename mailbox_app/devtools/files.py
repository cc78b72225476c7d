"""Small private files: written in one step, readable by their owner only."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step with one that only its owner can read."""
    fd, building = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.replace(building, path)
    except BaseException:
        # An interrupt may come after the renaming: it is told, not that there is nothing left to delete.
        Path(building).unlink(missing_ok=True)
        raise


def open_private(path: Path, mode: str = "ab") -> IO[bytes]:
    """Open a file for writing bytes; a new one is readable by its owner only."""
    return open(path, mode, opener=_private)


def read(path: Path) -> str:
    """A small file's text without the white space around it; empty when there is none."""
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
