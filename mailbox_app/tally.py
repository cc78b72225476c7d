"""What the processes of one host have counted, so that any of them can say it all.

Prefork children, threads, web processes: each adds to a file of its own in `metrics_folder` (memory that outlives it,
so a kill loses nothing), under a lock of its own that the operating system lifts when it dies. Who reads adds the files
up, and folds those of dead processes into one, so that neither a count nor the time it takes to read grows with the
children that came and went. Without a folder each process counts in its memory, and knows of itself alone.
"""

import contextlib
import fcntl
import json
import logging
import os
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict

from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

# A dict of floats in a file that is mapped into memory; the library has no types for it.
_Mapped: Any = mmap_dict.MmapedDict
# A name that begins so is of what is there now, and goes with its process; any other is of what has happened.
PRESENT = "now:"
_SUFFIX = ".counts"
_ENDED = "ended.json"
# Who holds the folder is done within milliseconds, unless it was stopped in the middle.
_PATIENCE_SECONDS = 1.0


class Tally:
    """Sums by name, of this process, or of every process that shares its folder."""

    def __init__(self) -> None:
        self._own_folder: Path | None = None
        self._is_open = False
        self._begin()
        os.register_at_fork(after_in_child=self._begin_in_child)

    def add(self, amounts: Mapping[str, float]) -> None:
        """Add to sums. Takes some microseconds, and never fails."""
        with self._lock:
            if not self._is_open:
                self._is_open = True
                self._open()
            for name, amount in amounts.items():
                value = self._values[name] = self._values.get(name, 0.0) + amount
                if self._file is not None:
                    self._file.write_value(name, value, 0.0)

    @property
    def folder(self) -> Path | None:
        """Where this process counts: the folder of the settings, else one it was given; None: in its memory."""
        return Path(conf.metrics_folder) if conf.metrics_folder else self._own_folder

    def use(self, folder: Path) -> None:
        """Count in this folder where the settings name none, and so will the processes that are forked from here."""
        self.close()
        self._own_folder = folder

    def totals(self) -> dict[str, float]:
        """All sums: of every process of the folder, dead or alive; else of this one."""
        folder = self.folder
        if folder is None or (self._is_open and self._file is None):
            with self._lock:
                return dict(self._values)
        with _only_one(folder):
            ended, living = _fold(folder)
            totals = Counter(ended)
            for file in living:
                totals.update(_read(file))
        return dict(totals)

    def close(self) -> None:
        """Let go of the file, as a process that ends; the next sum begins a new one."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                os.close(self._claim)
            self._begin()

    def _begin(self) -> None:
        # One that its holder may take again: a signal's handler may count in the middle of a count.
        self._lock = threading.RLock()
        self._values: dict[str, float] = {}
        self._file: Any = None
        self._claim = -1
        self._is_open = False

    def _begin_in_child(self) -> None:
        """A forked child counts from zero, in a file of its own; its parent goes on holding the one it had."""
        file, claim = self._file, self._claim
        self._begin()
        if file is not None:
            file.close()
            os.close(claim)

    def _open(self) -> None:
        folder = self.folder
        if folder is None:
            return
        try:
            with _only_one(folder):
                _fold(folder)
                path = folder / f"{uuid.uuid4()}{_SUFFIX}"
                self._claim = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._claim, fcntl.LOCK_EX)
                self._file = _Mapped(str(path))
        except OSError as error:
            # Counting must not cost anybody a run: the process counts for itself.
            observe("metrics.folder_failed", level=logging.ERROR, folder=str(folder), error=type(error).__name__)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder: nobody begins a file, folds or adds up meanwhile. Counting goes on. TimeoutError: it is held."""
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while not _take(lock):
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"{folder} is held by another process")
            time.sleep(0.005)
        yield
    finally:
        os.close(lock)


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fold(folder: Path) -> tuple[dict[str, float], list[Path]]:
    """Add the files of dead processes to what is remembered; returns that, and the files of living ones.

    1. write the new sums with the names of the files in them, at once; 2. delete those files. A crash in between leaves
    files whose names are known: they are not added again.
    """
    before = _ended(folder)
    found = sorted(folder.glob(f"*{_SUFFIX}"))
    left_over = [file for file in found if file.name in before["folded"]]
    dead = [file for file in found if file.name not in before["folded"] and _is_dead(file)]
    totals = Counter(before["totals"])
    if dead or left_over:
        for file in dead:
            totals.update({name: value for name, value in _read(file).items() if not name.startswith(PRESENT)})
        after = {"totals": dict(totals), "folded": [file.name for file in (*dead, *left_over)]}
        written = folder / f"{_ENDED}.new"
        written.write_text(json.dumps(after))
        written.replace(folder / _ENDED)
        for file in (*dead, *left_over):
            file.unlink(missing_ok=True)
    return dict(totals), [file for file in found if file not in dead and file not in left_over]


def _ended(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _ENDED).read_text()))
    except FileNotFoundError:
        return {"totals": {}, "folded": []}


def _is_dead(file: Path) -> bool:
    claim = os.open(file, os.O_RDONLY)
    try:
        return _take(claim)
    finally:
        os.close(claim)


def _read(file: Path) -> dict[str, float]:
    try:
        return {name: value for name, value, _, _ in _Mapped.read_all_values_from_file(str(file))}
    except (struct.error, RuntimeError):
        return {}  # its process died as it began the file


tally = Tally()
