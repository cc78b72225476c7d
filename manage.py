#!/usr/bin/env python3
"""Django's manage.py, which first makes the environment it needs: `python3 manage.py demo` works in a fresh clone.

The environment is `.venv` (or the folder in MAILBOX_VENV), built from requirements.lock and rebuilt when the lock, the
Python version or the checkout's place changes. Inside an active virtual or conda environment, and with
MAILBOX_BOOTSTRAP=0, nothing is built: the current environment is used as it is. Standard library only, and in words
that Python 3.6 can read, so that an old Python says what it lacks.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
LOCK = os.path.join(ROOT, "requirements.lock")
VENV = os.path.abspath(os.path.join(ROOT, os.environ.get("MAILBOX_VENV") or ".venv"))
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "mailbox-stamp")  # exists: made here; equals wanted(): complete and current
LOG = os.path.join(VENV, "mailbox-build.log")
NEWER = ("python3.13", "python3.12", "python3.14", "python3.11")
NOT_COMPILED = "/(mypy|hypothesis|hatchling|grimp|networkx|[^/]*-stubs|tests?)/"
NO_NETWORK = "name resolution|Name or service|new connection|dns error|unreachable|client error|refused"


def main() -> None:
    if is_needed():
        use_environment()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        sys.exit(f"manage.py: {error} in {sys.prefix}: install requirements.lock there, or deactivate it")
    execute_from_command_line(sys.argv)


def is_needed() -> bool:
    """Tell whether this is a bare interpreter; conda's own base environment counts as one."""
    conda = os.environ.get("CONDA_DEFAULT_ENV", "base") != "base" and os.environ.get("CONDA_PREFIX") == sys.prefix
    return sys.prefix == sys.base_prefix and not conda and os.environ.get("MAILBOX_BOOTSTRAP") != "0"


def use_environment() -> None:
    """Go on in the environment, built first where it is missing or stale."""
    if sys.version_info < (3, 11):
        run_on_newer_python()
    if not is_current():
        import fcntl

        with open(LOCK, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("another manage.py is building the environment; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_current():
                build()
    os.environ.pop("__PYVENV_LAUNCHER__", None)  # macOS: would lead back to this interpreter
    os.execv(PYTHON, [PYTHON, *sys.argv])


def run_on_newer_python() -> None:
    for name in NEWER:
        path = shutil.which(name)
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        # Tried, not trusted: a version manager's shim can exist and fail.
        if path and not subprocess.call([path, "-c", check], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            os.execv(path, [path, *sys.argv])
    sys.exit(f"manage.py: this is Python {sys.version.split()[0]}; Python 3.11 or newer is needed and none is on PATH")


def wanted() -> str:
    with open(LOCK, "rb") as lock:
        return hashlib.sha256(lock.read() + sys.version.encode() + os.fsencode(ROOT)).hexdigest()


def is_current() -> bool:
    try:
        with open(STAMP) as stamp:
            return stamp.read() == wanted() and os.path.exists(PYTHON)
    except OSError:
        return False


def build() -> None:
    """Make the environment anew; the stamp is written last, so an interrupted build never looks finished."""
    if os.path.exists(VENV) and os.listdir(VENV) and not os.path.exists(STAMP):
        sys.exit(f"manage.py: {VENV} is not from here: activate it, delete it, or name another folder in MAILBOX_VENV")
    started, name = time.time(), os.path.relpath(VENV, ROOT)
    say(f"making {name} for Python {sys.version.split()[0]} (on the first start and when the lock changes)")
    try:
        old = VENV + "-old"
        shutil.rmtree(old, ignore_errors=True)
        if os.path.exists(VENV):
            os.rename(VENV, old)
            shutil.rmtree(old, ignore_errors=True)
        os.makedirs(VENV)
        write(STAMP, "building")
        if not run([sys.executable, "-m", "venv", "--without-pip", VENV], "making a virtual environment"):
            give_up()
        if not any(all(run(command, doing) for command, doing in steps) for steps in ways_to_install()):
            give_up()
        # Every process of the stack would otherwise compile what it imports at its first start.
        run([PYTHON, "-m", "compileall", "-q", "-j0", "-x", NOT_COMPILED, os.path.join(VENV, "lib")], "compiling")
        # The packages of the checkout can be imported from any folder, also by `.venv/bin/pytest`.
        for folder in glob.glob(os.path.join(glob.escape(VENV), "lib", "python*", "site-packages")):
            write(os.path.join(folder, "mailbox-checkout.pth"), ROOT + "\n")
        write(STAMP, wanted())
    except OSError as error:
        sys.exit(f"manage.py: cannot build {VENV}: {error}; MAILBOX_VENV can name a folder elsewhere")
    except KeyboardInterrupt:
        sys.exit("\nmanage.py: interrupted; the next start builds the environment again")
    say(f"{name} is ready after {time.time() - started:.0f} s")


def ways_to_install() -> "list[list[tuple[list[str], str]]]":
    """Steps of (command, what it does) to try in turn: uv, this interpreter's pip, a pip made by ensurepip."""
    ways = []
    locked = ["--require-hashes", "-r", LOCK]
    pip = ["install", "--no-input", "--no-compile", "--retries=2", "--only-binary=:all:", "--progress-bar=off", *locked]
    if shutil.which("uv"):
        ways.append([(["uv", "pip", "install", "--python", PYTHON, *locked], "installing packages with uv")])
    asked = [sys.executable, "-m", "pip", "--version"]
    told = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode().split(" ")
    version = [int(part) for part in told[1].split(".")[:2]] if len(told) > 1 else []
    if version >= [22, 3]:
        ways.append([([sys.executable, "-m", "pip", "--python", PYTHON, *pip], "installing packages with pip")])
    elif not subprocess.call([sys.executable, "-c", "import ensurepip"], stderr=subprocess.DEVNULL):
        own = [PYTHON, "-m", "ensurepip", "--default-pip"]
        ways.append([(own, "making a pip"), ([PYTHON, "-m", "pip", *pip], "installing packages with pip")])
    elif not ways:
        found = "its pip is too old" if version else "it has no pip"
        sys.exit(f"manage.py: {sys.executable}: {found}; install pip 22.3 or newer (python3-pip) or uv, then try again")
    return ways


def run(command: "list[str]", doing: str) -> bool:
    """Run a command with its output in the log, showing what it does and for how long; tell whether it worked."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_USER", "PIP_TARGET")}
    env["UV_PYTHON_DOWNLOADS"] = "never"
    started, shows = time.time(), sys.stderr.isatty()
    if not shows:
        say(doing)
    with open(LOG, "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        while process.poll() is None:
            if shows:
                seen = [line.split()[1] for line in read_log() if line.startswith("Collecting ")]
                detail = f" {len(seen)} {seen[-1].split('=')[0]}" if seen and doing.startswith("installing") else ""
                sys.stderr.write(f"\r\033[Kmailbox: {doing}, {time.time() - started:.0f} s{detail}")
                sys.stderr.flush()
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.kill()
        if shows:
            sys.stderr.write("\r\033[K")
    return process.returncode == 0


def give_up() -> None:
    lines = read_log()
    told = [line for line in lines if "error" in line.lower()][-3:] or lines[-3:]
    offline = re.search(NO_NETWORK, "\n".join(lines))
    hint = "no package index could be reached: connect, or configure a mirror for pip or uv"
    told.insert(0, f"manage.py: the environment could not be built; {hint if offline else 'see ' + LOG}")
    sys.exit("\n  ".join(told))


def read_log() -> "list[str]":
    with open(LOG, errors="replace") as log:
        return log.read().splitlines()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def say(text: str) -> None:
    sys.stderr.write(f"mailbox: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
