"""manage.py's first job: an environment of its own, made once, and only where there is none."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
DJANGO = """
import sys

def execute_from_command_line(argv):
    print("django", sys.prefix, argv[1:])
"""


class Checkout:
    """A copy of manage.py beside a stand-in for Django, with a stand-in for uv on PATH that only counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a check out"
        self.venv = self.root / ".venv"
        self.calls = folder / "calls"
        bin_folder = folder / "bin"
        self.env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(folder), "PIP_NO_INDEX": "1"}
        for path in (bin_folder, self.root / "django" / "core"):
            path.mkdir(parents=True)
        (self.root / "manage.py").write_bytes((ROOT / "manage.py").read_bytes())
        self.write_lock("# nothing yet")
        (self.root / "django" / "core" / "management.py").write_text(DJANGO)
        self.uv = bin_folder / "uv"
        self.write_uv("exit 0")

    def write_uv(self, ending: str) -> None:
        self.uv.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls}"\n{ending}\n')
        self.uv.chmod(0o755)

    def write_lock(self, text: str) -> None:
        (self.root / "requirements.lock").write_text(text + "\n")

    @property
    def builds(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def command(self, python: str = BARE) -> list[str]:
        return [python, "manage.py", "some command", "--option"]

    def run(self, python: str = BARE, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(python), cwd=self.root, env={**self.env, **env}, capture_output=True, text=True, timeout=60
        )

    def in_environment(self) -> str:
        return f"django {self.venv} ['some command', '--option']\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_start_builds_and_the_next_ones_do_not(checkout: Checkout) -> None:
    first = checkout.run()
    assert (first.returncode, first.stdout) == (0, checkout.in_environment()), first.stderr
    assert "making .venv for Python" in first.stderr
    assert ".venv is ready after" in first.stderr
    assert "--require-hashes -r" in checkout.calls.read_text()
    second = checkout.run()
    assert (second.returncode, second.stdout, second.stderr) == (0, checkout.in_environment(), "")
    assert checkout.builds == 1


def test_another_lock_builds_again_from_nothing(checkout: Checkout) -> None:
    checkout.run()
    left = checkout.venv / "left-over"
    left.touch()
    checkout.write_lock("# something else")
    assert checkout.run().stdout == checkout.in_environment()
    assert checkout.builds == 2
    assert not left.exists()


def test_an_interrupted_build_is_not_taken_for_a_finished_one(checkout: Checkout) -> None:
    checkout.write_uv("kill -9 $PPID")
    assert checkout.run().returncode == -9
    checkout.write_uv("exit 0")
    assert checkout.run().stdout == checkout.in_environment()
    assert checkout.builds == 2


def test_an_environment_whose_python_is_gone_is_built_again(checkout: Checkout) -> None:
    checkout.run()
    (checkout.venv / "bin" / "python").unlink()
    (checkout.venv / "bin" / "python").symlink_to("/nowhere/python")
    assert checkout.run().stdout == checkout.in_environment()


def test_two_first_starts_build_once(checkout: Checkout) -> None:
    gate = checkout.root / "gate"
    os.mkfifo(gate)
    checkout.write_uv(f'read line < "{gate}"')
    both = [
        subprocess.Popen(checkout.command(), cwd=checkout.root, env=checkout.env, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    with gate.open("w") as opened:  # returns when one of them is in the middle of its build
        opened.write("go on\n")
    for one in both:
        out, err = one.communicate(timeout=60)
        assert (one.returncode, out) == (0, checkout.in_environment()), err
    assert checkout.builds == 1


def test_mailbox_venv_names_another_folder(checkout: Checkout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert checkout.run(MAILBOX_VENV=str(elsewhere)).stdout.startswith(f"django {elsewhere} ")
    assert not checkout.venv.exists()


def test_a_folder_that_manage_py_did_not_make_is_left_alone(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    (checkout.venv / "precious").touch()
    refused = checkout.run()
    assert refused.returncode == 1
    assert "is not from here" in refused.stderr
    assert [path.name for path in checkout.venv.iterdir()] == ["precious"]


def test_pip_takes_over_where_uv_fails(checkout: Checkout) -> None:
    if subprocess.run([BARE, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip(f"{BARE} has no pip")
    checkout.write_uv("exit 2")
    done = checkout.run()
    assert (done.returncode, done.stdout) == (0, checkout.in_environment()), done.stderr


def test_without_an_index_it_says_so(checkout: Checkout) -> None:
    checkout.write_uv('echo "error: dns error"; exit 2')
    checkout.write_lock("no-such-package-at-all==1 --hash=sha256:" + "0" * 64)
    failed = checkout.run()
    assert failed.returncode == 1
    assert "no package index could be reached" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert checkout.run().returncode == 1  # and does not take what is there for an environment


def test_without_pip_it_says_what_to_install(checkout: Checkout, tmp_path: Path) -> None:
    checkout.uv.unlink()
    for name in ("pip", "ensurepip"):
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError")
    failed = checkout.run(PYTHONPATH=str(tmp_path / "hidden"))
    assert failed.returncode == 1
    assert "install pip 22.3 or newer (python3-pip) or uv" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("name", ["MAILBOX_BOOTSTRAP", "CONDA_PREFIX"])
def test_it_stays_out_of_the_way_when_told_and_in_a_conda_environment(checkout: Checkout, name: str) -> None:
    base = str(Path(subprocess.check_output([BARE, "-c", "import sys; print(sys.prefix)"], text=True).strip()))
    env = {"MAILBOX_BOOTSTRAP": "0"} if name == "MAILBOX_BOOTSTRAP" else {name: base, "CONDA_DEFAULT_ENV": "team"}
    assert checkout.run(**env).stdout == f"django {base} ['some command', '--option']\n"
    assert not checkout.venv.exists()


def test_it_stays_out_of_the_way_in_an_active_environment(checkout: Checkout, tmp_path: Path) -> None:
    subprocess.run([BARE, "-m", "venv", "--without-pip", tmp_path / "own"], check=True)
    done = checkout.run(str(tmp_path / "own" / "bin" / "python"))
    assert done.stdout == f"django {tmp_path / 'own'} ['some command', '--option']\n"
    assert (checkout.builds, checkout.venv.exists()) == (0, False)


def test_an_environment_without_django_is_named(checkout: Checkout) -> None:
    (checkout.root / "django" / "core" / "management.py").write_text("raise ImportError('No module named django')")
    failed = checkout.run(MAILBOX_BOOTSTRAP="0")
    assert failed.returncode == 1
    assert failed.stderr.startswith("manage.py: No module named django in ")


def test_an_old_python_says_what_it_lacks(checkout: Checkout, tmp_path: Path) -> None:
    pretend = "import runpy, sys; sys.version_info = (3, 8, 0); runpy.run_path('manage.py', run_name='__main__')"
    env = {**checkout.env, "PATH": str(tmp_path)}
    failed = subprocess.run([BARE, "-c", pretend], cwd=checkout.root, env=env, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Python 3.11 or newer is needed and none is on PATH" in failed.stderr
    assert not checkout.venv.exists()


def test_an_old_python_hands_over_to_a_newer_one_that_works(checkout: Checkout) -> None:
    broken, works = checkout.uv.with_name("python3.13"), checkout.uv.with_name("python3.12")
    broken.write_text("#!/bin/sh\nexit 127\n")  # such as a version manager's shim
    works.write_text(f'#!/bin/sh\nexec "{BARE}" "$@"\n')
    for path in (broken, works):
        path.chmod(0o755)
    pretend = (
        "import runpy, sys; sys.version_info = (3, 8, 0); sys.argv[:] = ['manage.py', 'some command', '--option']; "
    )
    pretend += "runpy.run_path('manage.py', run_name='__main__')"
    done = subprocess.run([BARE, "-c", pretend], cwd=checkout.root, env=checkout.env, capture_output=True, text=True)
    assert done.stdout == checkout.in_environment(), done.stderr


def test_an_old_python_can_read_it() -> None:
    ast.parse((ROOT / "manage.py").read_text(), feature_version=(3, 7))
