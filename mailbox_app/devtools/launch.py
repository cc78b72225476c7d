"""Start one child of this package's supervisors, or watch over all of them. Standard library only, run as a script.

`launch.py run PARENT_PID SIGNAL ACCOUNT COMMAND…` becomes COMMAND, which gets SIGNAL when its parent dies (Linux).
`launch.py watch` reads "+GROUP SIGNAL" and "-GROUP" lines; when its input ends, because the parent has ended in any
way, it signals the groups that are left and kills what is still there seconds later. The first reaches a child at
once; the second also reaches a child's children, and works on macOS.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 5.0


def run(parent_pid: int, death_signal: int, account: str, command: list[str]) -> None:
    """Become the command, as UID:GID when an account is given; exit quietly when the parent is already gone."""
    if account != "-":
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # Set after the account change, which would clear it; kept by exec.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error}")


def watch() -> None:
    """Follow the list on standard input; end the groups that are left on it when it closes."""
    groups: dict[int, int] = {}
    for line in sys.stdin:
        words = line.split()
        if words[0].startswith("+"):
            groups[int(words[0][1:])] = int(words[1])
        else:
            groups.pop(int(words[0][1:]), None)
    for group, first_signal in groups.items():
        _signal_group(group, first_signal)
    until = time.monotonic() + GRACE_SECONDS
    while any(_signal_group(group, 0) for group in groups) and time.monotonic() < until:
        time.sleep(0.02)
    for group in groups:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch()
    else:
        run(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
