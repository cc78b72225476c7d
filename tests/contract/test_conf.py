"""Every setting: what is refused, in which words, and when the settings are read."""

from dataclasses import fields
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from mailbox_app.conf import Settings, conf, problems

FIELDS = fields(Settings)
NUMBERS = [one for one in FIELDS if not isinstance(one.default, str)]
TEXTS = [one for one in FIELDS if isinstance(one.default, str)]


def test_the_defaults_are_right() -> None:
    assert problems({}) == []
    assert problems({one.name: one.default for one in FIELDS}) == []
    for one in NUMBERS:
        least, most = one.metadata["least"], one.metadata["most"]
        assert least is None or one.default >= least, one.name
        assert most is None or one.default <= most, one.name


def test_every_setting_says_what_it_means() -> None:
    assert [one.name for one in FIELDS if not one.metadata["meaning"].strip()] == []
    assert [one.name for one in NUMBERS if one.metadata["least"] is None] == []


def test_an_unknown_key_is_named() -> None:
    assert problems({"lease_second": 30}) == ["MAILBOX has no key 'lease_second'."]


@pytest.mark.parametrize("given", [[], "lease_seconds=30", 30, [("lease_seconds", 30)]])
def test_settings_that_are_no_dict_are_refused(given: Any) -> None:
    assert problems(given) == [f"MAILBOX must be a dict, not {type(given).__name__}."]


@pytest.mark.parametrize("name", [one.name for one in NUMBERS])
@pytest.mark.parametrize("value", ["30", None, True, [30]])
def test_a_number_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    (problem,) = problems({name: value})
    assert problem.startswith(f"MAILBOX['{name}'] must be ")
    assert problem.endswith(f"not {value!r}.")


@pytest.mark.parametrize("name", [one.name for one in NUMBERS if isinstance(one.default, int)])
def test_a_count_is_whole(name: str) -> None:
    assert problems({name: 1.5}) == [f"MAILBOX['{name}'] must be int, not 1.5."]


@pytest.mark.parametrize("name", [one.name for one in NUMBERS if isinstance(one.default, float)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_is_finite(name: str, value: float) -> None:
    assert problems({name: value}) == [f"MAILBOX['{name}'] must be a finite number, not {value!r}."]


@pytest.mark.parametrize("name", [one.name for one in TEXTS])
@pytest.mark.parametrize("value", [None, 7, b"redis://", ["a"]])
def test_a_text_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    assert problems({name: value}) == [f"MAILBOX['{name}'] must be a string, not {value!r}."]


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_a_value_below_its_range_is_named_and_the_bound_itself_is_taken(one: Any) -> None:
    least, most = one.metadata["least"], one.metadata["most"]
    below = least - 1 if isinstance(one.default, int) else least - 0.001
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    assert problems({one.name: below}) == [f"MAILBOX['{one.name}'] must be {bounds}, not {below!r}."]
    assert problems({one.name: least}) == []


@pytest.mark.parametrize("one", [one for one in NUMBERS if one.metadata["most"] is not None], ids=lambda one: one.name)
def test_a_value_above_its_range_is_named_and_the_bound_itself_is_taken(one: Any) -> None:
    least, most = one.metadata["least"], one.metadata["most"]
    expected = f"MAILBOX['{one.name}'] must be from {least} to {most}, not {most + 1!r}."
    assert problems({one.name: most + 1}) == [expected]
    assert problems({one.name: most}) == []


def test_every_problem_is_told_at_once() -> None:
    found = problems({"lease_second": 1, "max_attempts": 0, "redis_url": None})
    assert [problem.split("'")[1] for problem in found] == ["lease_second", "max_attempts", "redis_url"]


@pytest.mark.parametrize("name", ["default_queue", "maintenance_queue", "default_agent"])
def test_a_name_that_work_depends_on_is_not_blank(name: str) -> None:
    assert problems({name: " "}) == [f"MAILBOX['{name}'] must not be blank."]


@pytest.mark.parametrize("url", ["localhost:6379", "amqp://localhost", "redis+socket:///run/redis.sock"])
def test_a_redis_url_that_the_client_cannot_read_is_named_before_it_fails(url: str) -> None:
    assert problems({"redis_url": url}) == ["MAILBOX['redis_url'] must begin with one of redis://, rediss://, unix://."]
    for scheme in ("redis://", "rediss://", "unix://"):
        assert problems({"redis_url": f"{scheme}localhost/0"}) == []


def test_a_lease_outlives_one_lost_renewal() -> None:
    assert problems({"lease_seconds": 10, "renewal_seconds": 5}) == []
    (problem,) = problems({"lease_seconds": 10, "renewal_seconds": 5.1})
    assert "MAILBOX['renewal_seconds'] must be at most half of lease_seconds" in problem


def test_renewal_is_a_third_of_the_lease_unless_given() -> None:
    with override_settings(MAILBOX={"lease_seconds": 6}):
        assert conf.renewal_seconds == 2
    with override_settings(MAILBOX={"lease_seconds": 6, "renewal_seconds": 1}):
        assert conf.renewal_seconds == 1


def test_settings_are_read_when_asked_for_and_again_when_they_change() -> None:
    before = conf.lease_seconds
    with override_settings(MAILBOX={"lease_seconds": 7}):
        assert conf.lease_seconds == 7
        assert conf.max_attempts == 5
        with override_settings(MAILBOX={"lease_seconds": 8}):
            assert conf.lease_seconds == 8
        assert conf.lease_seconds == 7
    assert conf.lease_seconds == before


def test_without_settings_the_defaults_hold(settings: Any) -> None:
    del settings.MAILBOX
    assert conf.read() == Settings()


def test_wrong_settings_are_refused_by_whoever_reads_them() -> None:
    with (
        override_settings(MAILBOX={"lease_second": 30}),
        pytest.raises(ImproperlyConfigured, match="MAILBOX has no key 'lease_second'"),
    ):
        _ = conf.lease_seconds
    assert conf.lease_seconds > 0


def test_a_name_that_is_no_setting_is_an_error() -> None:
    with pytest.raises(AttributeError, match="lease_second"):
        _ = conf.lease_second
