"""Counting together: what every process of a folder counted is there once, whoever dies when."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbox_app.conf import conf
from mailbox_app.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
import sys
from django.conf import settings
settings.configure(MAILBOX={"metrics_folder": sys.argv[1]})
from mailbox_app.tally import tally
tally.add({"a": float(sys.argv[2])})
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": str(tmp_path / "metrics")}
    return Path(conf.metrics_folder)


@pytest.fixture
def tally(folder: Path) -> Iterator[Tally]:
    made = Tally()
    yield made
    made.close()


def counting(folder: Path, amount: float) -> subprocess.Popen[bytes]:
    """A process that has counted, and lives."""
    command = [sys.executable, "-c", COUNT, str(folder), str(amount)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"counted\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def files(folder: Path) -> int:
    return len(list(folder.glob("*.counts")))


def test_living_and_dead_processes_are_added_up(tally: Tally, folder: Path) -> None:
    first, second = counting(folder, 1), counting(folder, 10)
    try:
        tally.add({"a": 100, "b": 0.5})
        assert tally.totals() == {"a": 111, "b": 0.5}
        assert files(folder) == 3
        first.send_signal(signal.SIGKILL)
        first.wait()
        for _ in range(2):
            assert tally.totals() == {"a": 111, "b": 0.5}
            assert files(folder) == 2
    finally:
        end(first)
        end(second)
    assert tally.totals() == {"a": 111, "b": 0.5}
    assert files(folder) == 1


def test_what_is_there_now_goes_with_its_process_and_what_has_happened_stays(
    tally: Tally, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.COUNT", COUNT.replace('{"a":', '{"a": 1.0, "now:a":'))
    tally.add({"a": 1, "now:a": 2})
    other = counting(folder, 5)
    assert tally.totals() == {"a": 2, "now:a": 7}
    end(other)
    assert tally.totals() == {"a": 2, "now:a": 2}
    assert files(folder) == 1


def test_many_processes_that_came_and_went_leave_one_file(tally: Tally, folder: Path) -> None:
    for _ in range(6):
        end(counting(folder, 1))
    assert files(folder) == 1, "each that begins folds those before it"
    assert tally.totals() == {"a": 6}
    assert files(folder) == 0


def test_a_crash_between_folding_and_deleting_counts_nothing_twice(
    tally: Tally, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(counting(folder, 1))

    def crash(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            tally.totals()
    assert files(folder) == 1
    assert tally.totals() == {"a": 1}
    assert tally.totals() == {"a": 1}
    assert files(folder) == 0


def test_a_crash_before_the_sums_are_in_place_loses_nothing(
    tally: Tally, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(counting(folder, 1))

    def crash(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            tally.totals()
    assert tally.totals() == {"a": 1}


def test_a_file_that_its_process_had_only_begun_counts_for_nothing(tally: Tally, folder: Path) -> None:
    tally.add({"a": 1})
    (folder / "begun.counts").touch()
    (folder / "torn.counts").write_bytes(b"\x00\x01")
    assert tally.totals() == {"a": 1}
    assert files(folder) == 1


@pytest.mark.parametrize("shares", [True, False], ids=["in a folder", "in memory"])
def test_a_forked_child_counts_from_zero_and_leaves_its_parent_s_counts_alone(
    shares: bool, tmp_path: Path, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": str(tmp_path / "metrics") if shares else ""}
    tally = Tally()
    tally.add({"a": 1})
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        tally.add({"a": 10})
        os.write(write, repr(tally.totals()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == (b"{'a': 11.0}" if shares else b"{'a': 10.0}")
    tally.add({"a": 100})
    assert tally.totals() == ({"a": 111} if shares else {"a": 101})
    tally.close()
    os.close(read)
    os.close(write)


def test_a_child_that_outlives_its_parent_does_not_keep_its_file_alive(tally: Tally, folder: Path) -> None:
    """A forked child inherits its parent's lock, and must let go of it."""
    parent = Tally()
    parent.add({"a": 1})
    began, begins = os.pipe()
    ended, ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ends)
        os.write(begins, b"!")
        os.read(ended, 1)  # until the test closes its end
        os._exit(0)
    try:
        assert os.read(began, 1) == b"!"
        parent.close()
        assert tally.totals() == {"a": 1}
        assert files(folder) == 0
    finally:
        os.close(ends)
        os.waitpid(pid, 0)
        for descriptor in (began, begins, ended):
            os.close(descriptor)


@pytest.mark.parametrize("shares", [True, False], ids=["in a folder", "in memory"])
def test_threads_lose_no_count(shares: bool, tmp_path: Path, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": str(tmp_path / "metrics") if shares else ""}
    tally = Tally()

    def count() -> None:
        for _ in range(2_000):
            tally.add({"a": 1, "b": 2})

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.totals() == {"a": 16_000, "b": 32_000}
    tally.close()


def test_a_folder_that_cannot_be_used_costs_no_count(tmp_path: Path, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "metrics_folder": str(tmp_path / "no" / "such")}
    tally = Tally()
    tally.add({"a": 1})
    assert tally.totals() == {"a": 1}


def test_a_folder_that_somebody_holds_for_ever_costs_a_second_once_and_no_count(folder: Path) -> None:
    folder.mkdir()
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    tally = Tally()
    try:
        started = time.monotonic()
        for _ in range(1_000):
            tally.add({"a": 1})
        assert time.monotonic() - started < 2
        assert tally.totals() == {"a": 1_000}
    finally:
        os.close(held)


def test_more_names_than_the_file_had_room_for_are_kept(tally: Tally) -> None:
    amounts = {f"{number:05d}{'x' * 200}": float(number) for number in range(1_000)}
    tally.add(amounts)
    assert tally.totals() == amounts
