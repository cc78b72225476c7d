"""Child processes that never outlive their supervisor, and the one-owner lock on a folder."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mailbox_app.devtools.account import Account

_LAUNCH = str(Path(__file__).with_name("launch.py"))
# -I -S: neither the caller's environment nor site-packages reach the launcher, which starts in about 20 ms.
_PYTHON = [sys.executable, "-I", "-S", _LAUNCH]
# How long a new owner waits for the children of one that was killed; the watcher kills them after 5 seconds.
LEFTOVERS_SECONDS = 15.0


class FolderInUse(RuntimeError):
    """Another live process owns the folder: use that one, or stop it first."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        super().__init__(f"{folder} is in use by process {pid or 'unknown'}")
        self.folder = folder
        self.pid = pid


def spawn(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | str = "/",
    output: int | IO[bytes],
    account: Account | None = None,
    death_signal: int = signal.SIGKILL,
    inherit: Iterable[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own that gets `death_signal` when this process dies, however it dies.

    Call it from the main thread: Linux sends the signal when the thread that started the child ends.
    """
    who = f"{account.uid}:{account.gid}" if account else "-"
    process = subprocess.Popen(
        [*_PYTHON, "run", str(os.getpid()), str(int(death_signal)), who, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
        pass_fds=tuple(inherit),
    )
    _watcher.add(process.pid, death_signal)
    return process


def end(process: subprocess.Popen[bytes], *steps: tuple[int, float]) -> int:
    """Signal the child's group step by step, (signal, seconds to wait) each, then SIGKILL; return its exit code."""
    for number, seconds in steps:
        _signal_group(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    return bury(process)


def bury(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the child's group, such as the pool processes of a dead worker; return its exit code."""
    _signal_group(process.pid, signal.SIGKILL)
    code = process.wait()
    _watcher.remove(process.pid)
    return code


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Watcher:
    """The launcher's `watch` process of this interpreter, started with the first child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._groups: dict[int, int] = {}

    def add(self, group: int, number: int) -> None:
        if self._owner != os.getpid():  # a fork inherits the pipe, but not the children
            self._process, self._owner, self._groups = None, os.getpid(), {}
        self._groups[group] = int(number)
        self._tell(f"+{group} {int(number)}\n")

    def remove(self, group: int) -> None:
        if self._owner == os.getpid() and group in self._groups:
            del self._groups[group]
            self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [*_PYTHON, "watch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
            line = "".join(f"+{group} {number}\n" for group, number in self._groups.items())
        assert self._process.stdin is not None
        # A watcher that was killed just now is replaced at the next call; Linux children have their own signal.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())


_watcher = _Watcher()


class Ownership:
    """The right to run things from a folder: one live owner, whose children have to be gone before the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner_fd = -1
        self.children_fd = -1

    def acquire(self) -> None:
        """Take the folder, waiting for the children of a killed owner to end; FolderInUse when an owner lives."""
        self._owner_fd = _open(self.folder / "owner.lock")
        try:
            if not _try_lock(self._owner_fd):
                raise FolderInUse(self.folder, owner_of(self.folder))
            # Children inherit this second lock: it is free when the last of them has ended.
            self.children_fd = _open(self.folder / "children.lock")
            if not wait_until(lambda: _try_lock(self.children_fd), LEFTOVERS_SECONDS):
                raise FolderInUse(self.folder, None)
            os.ftruncate(self._owner_fd, 0)
            os.pwrite(self._owner_fd, str(os.getpid()).encode(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        for fd in (self.children_fd, self._owner_fd):
            if fd >= 0:
                os.close(fd)
        self.children_fd = self._owner_fd = -1


def owner_of(folder: Path) -> int | None:
    """The pid of the live owner of a folder, None when it has none."""
    try:
        fd = os.open(folder / "owner.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _try_lock(fd):
            return None
        return int(os.pread(fd, 20, 0) or 0) or None
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(condition: Callable[[], Any], seconds: float, *, every: float = 0.02) -> bool:
    """Ask until the condition is true; False when the seconds are over first."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(every)
    return True


def free_port(preferred: int = 0, *, tries: int = 20) -> int:
    """A loopback port that nobody listens on: the preferred one or one shortly after it, else any."""
    for port in [*range(preferred, preferred + tries), 0] if preferred else [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
