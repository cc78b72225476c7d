"""What holds for every file: who may import whom, form, types, length, words, and what a clone may not depend on."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mailbox_app"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]
# A file that outgrows this holds two ideas.
MOST_LINES = 350


def run(*command: str) -> None:
    """Run a tool of this environment in the checkout; what it prints is the failure."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def committed() -> list[Path]:
    """Files that are, or would be, in the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_upper_layers_import_lower_ones_only() -> None:
    run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


def test_the_linter_finds_nothing() -> None:
    run("-m", "ruff", "check", ".")


def test_every_file_is_formatted() -> None:
    run("-m", "ruff", "format", "--check", "--diff", ".")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_types_are_right() -> None:
    run("-m", "mypy")


@pytest.mark.django_db
def test_the_migrations_say_what_the_models_say() -> None:
    call_command("makemigrations", check_changes=True, dry_run=True, verbosity=3)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


# A class of these says by its base and its name what it is; its module says what they are for.
_SPEAKING_BASES = ("QuerySet", "Choices", "Serializer", "View", "Command", "AppConfig")


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions and classes of a module that say nothing about themselves."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            speaks = node.name.startswith("pytest_")
        elif isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).split("[")[0] for base in node.bases]
            speaks = any(base.endswith(_SPEAKING_BASES) for base in bases)
        else:
            continue
        if not node.name.startswith("_") and not speaks and not ast.get_docstring(node):
            yield node.name


def test_every_public_function_and_class_says_what_it_is() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in undocumented(ast.parse(path.read_text()))
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    """A module that holds code; an empty `__init__.py` holds none."""
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    assert [path.relative_to(ROOT) for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def locked() -> list[Requirement]:
    """What the lock pins, with the marker of each."""
    joined = re.sub(r"\\\n\s*", " ", LOCK)
    lines = [line.split(" --hash=")[0].strip() for line in joined.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def wanted() -> list[Requirement]:
    """What the project says it needs, to run and to be worked on."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    return [Requirement(text) for one in lists for text in one if isinstance(text, str)]


def test_the_lock_names_no_host() -> None:
    assert re.findall(r"\w+://\S+|^-\S+.*|\s@\s.*", LOCK, re.M) == []
    assert [line for line in LOCK.splitlines() if re.search(r"\b[\w-]+\.(org|com|net|io|dev)\b", line)] == []


def test_every_locked_version_is_pinned_by_hash() -> None:
    for requirement in locked():
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), str(requirement)
    entries = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", LOCK, flags=re.M).strip())
    assert len(entries) == len(locked())
    assert [entry.splitlines()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_has_what_the_project_needs(python: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins: dict[str, str] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(here):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is locked twice for Python {python}"
            pins[name] = next(iter(pin.specifier)).version
    for requirement in wanted():
        if requirement.marker is None or requirement.marker.evaluate(here):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{name} is not locked for Python {python}"
            assert requirement.specifier.contains(pins[name], prereleases=True), (
                f"{requirement}: {pins[name]} is locked"
            )


def index_hosts() -> set[str]:
    """Hosts of package indexes: the public ones, and those this machine is told to use."""
    found = {".".join(("pypi", "org")), ".".join(("pythonhosted", "org"))}
    told = [value for name, value in os.environ.items() if re.fullmatch(r"(PIP|UV)_.*(INDEX|LINKS).*", name)]
    homes = [Path("/etc"), Path.home() / ".config/pip", Path.home() / ".pip", Path.home() / ".config/uv"]
    for path in [home / name for home in homes for name in ("pip.conf", "uv.toml")]:
        if path.is_file():
            told.append(path.read_text())
    for text in told:
        found |= set(re.findall(r"\bhttps?://(?:[^@/\s]*@)?([\w.-]+\.\w+)", text))
    return found


def test_no_file_names_a_package_index() -> None:
    hosts = {host.encode() for host in index_hosts()}
    naming = [path.relative_to(ROOT) for path in committed() if any(host in path.read_bytes() for host in hosts)]
    assert naming == []
