"""docker-compose.yml says what the settings read, and nothing that a checkout should not hold."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from mailbox_app.conf import Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("migrate", "web", "worker", "quarantine", "maintenance", "beat", "flower")
LONG_LIVED = tuple(name for name in SERVICES if name != "migrate")
# Read by the programs in the containers, not by our settings.
FOREIGN = {"FLOWER_BASIC_AUTH", "MAILBOX_NODE"}


def dockerfile() -> list[str]:
    return str(COMPOSE["x-app"]["build"]["dockerfile_inline"]).splitlines()


def test_every_service_of_the_stack_is_there() -> None:
    assert set(SERVICES) == {"postgres", "redis", *OURS}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_one_that_the_settings_read(name: str) -> None:
    read = set(re.findall(r"[\"']([A-Z][A-Z_]+)[\"']", (ROOT / "mailbox_project" / "settings.py").read_text()))
    given = set(SERVICES[name]["environment"])
    assert given - FOREIGN <= read
    assert {"DJANGO_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"} <= given


def test_no_secret_is_written_down_and_a_missing_one_is_named() -> None:
    secret = re.compile(r"PASSWORD|SECRET|AUTH|TOKEN|_URL$")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{name}: {variable}"
    # A URL holds no password but a required variable, whatever key it stands under.
    for password in re.findall(r"://[^:\s]*:([^@\s]+)@", TEXT):
        assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", password), password


def test_queues_are_those_of_the_settings() -> None:
    known = Settings()
    listened = {name: queue_of(SERVICES[name]["command"]) for name in ("worker", "quarantine", "maintenance")}
    assert listened == {
        "worker": known.default_queue,
        "quarantine": known.quarantine_queue,
        "maintenance": known.maintenance_queue,
    }


def test_quarantine_executes_one_at_a_time_in_a_process_that_may_be_lost() -> None:
    command = SERVICES["quarantine"]["command"]
    assert [command[command.index(option) + 1] for option in ("-P", "-c")] == ["prefork", "1"]


def queue_of(command: list[str]) -> str:
    return command[command.index("-Q") + 1]


@pytest.mark.parametrize("name", OURS)
def test_commands_name_what_exists(name: str) -> None:
    command = SERVICES[name]["command"]
    assert command[0] == "python"
    if command[1] == "manage.py":
        assert command[2] in get_commands()
        return
    assert command[1] == "-m"
    assert importlib.util.find_spec(command[2]) is not None
    if command[2] == "celery":
        application = command[command.index("-A") + 1]
        assert importlib.util.find_spec(f"{application}.celery") is not None
        assert command[command.index("-A") + 2] in {"worker", "beat", "flower"}
    else:
        module, _, attribute = command[3].partition(":")
        assert hasattr(importlib.import_module(module), attribute)


def test_health_is_checked_and_waited_for() -> None:
    for name in LONG_LIVED:
        check = SERVICES[name]["healthcheck"]
        assert check["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert {"interval", "timeout", "retries"} <= set(check), name
        assert SERVICES[name]["restart"] == "unless-stopped", name
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in OURS[1:]:
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
        }, name


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"web", "flower"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_image_installs_the_lock_and_is_not_root() -> None:
    lines = dockerfile()
    base = re.fullmatch(r"FROM python:(\d+)\.(\d+)-slim", lines[0])
    assert base is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {base[1]}.{base[2]}" in project["classifiers"]
    assert any("--require-hashes" in line and line.endswith("-r requirements.lock") for line in lines)
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER mailbox"]
    assert lines[-1] == users[0]
    copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
    assert all((ROOT / path).exists() for path in copied), copied
    assert "MAILBOX_BOOTSTRAP=0" in "\n".join(lines)
    assert all(SERVICES[name]["build"] == COMPOSE["x-app"]["build"] for name in OURS)


def test_volumes_that_are_used_are_declared() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
