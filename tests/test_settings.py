"""Settings: every field from every source, and a start that stops with clear words and no secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from app.settings import CLIENT_VARIABLES, PREFIX, Settings, SettingsError, load_settings

KEY = "fdx_a-key-that-is-long-enough"
QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/intake"
# What a setting cannot be without.
WITH = {"queue": {"dead_letter_queue": QUEUE, "store": "s3://bucket"}}
# Of every setting: a word as a person would write it, what it means, and words that mean nothing.
SAMPLES: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "data_dir": ("/srv/fooddx", Path("/srv/fooddx"), ()),
    "store": ("s3://bucket/photos/", "s3://bucket/photos", ("s3://b", "s3://bucket/a//b", "file:///srv")),
    "photo_key": ("alias/photos", "alias/photos", ()),
    "credential_key": ("alias/credentials", "alias/credentials", ()),
    "queue": (QUEUE, QUEUE, ("intake", "http://sqs.example.com/1/intake", f"{QUEUE}.fifo")),
    "dead_letter_queue": (QUEUE, QUEUE, ("dead", f"{QUEUE}.fifo")),
    "notice_queue": (QUEUE, QUEUE, ("notices", f"{QUEUE}.fifo")),
    "intake_max_in_flight": ("4", 4, ("0", "65", "few")),
    "intake_tries": ("3", 3, ("0", "101", "few")),
    "intake_replicas": ("2", 2, ("0", "two")),
    "redis_url": (
        "rediss://user:pass@host:6379/0",
        SecretStr("rediss://user:pass@host:6379/0"),
        ("http://host", "host:6379", "redis://user:pa#ss@host", "redis://host:port", "redis://[host"),
    ),
    "api_key": (KEY, SecretStr(KEY), ("too-short",)),
    "host": ("0.0.0.0", "0.0.0.0", ()),  # noqa: S104
    "port": ("8123", 8123, ("0", "65536", "http", "-1")),
    "metrics_port": ("9123", 9123, ("0", "65536", "http", "-1")),
    "device": ("cuda", "cuda", ("gpu", "CPU", "")),
    "precision": ("bf16", "bf16", ("fp8", "INT8")),
    "decode": ("gpu", "gpu", ("cuda", "both")),
    "models": (
        "imagenet-lite0, imagenet-lite1",
        ("imagenet-lite0", "imagenet-lite1"),
        (",", "one,one", "one,,two"),
    ),
    "scorer_threads": ("4", 4, ("0", "65", "many")),
    "ingress_replicas": ("2", 2, ("0", "two")),
    "preprocessor_replicas": ("2", 2, ("0", "two")),
    "scorer_replicas": ("2", 2, ("0", "two")),
    "budget_ms": ("800", 800, ("49", "60001", "1s", "0.8")),
    "max_body_bytes": ("1048576", 2**20, ("1023", "67108865", "16MB")),
    "max_pixels": ("1000000", 10**6, ("9999", "many")),
    "body_timeout_s": ("2.5", 2.5, ("0", "601", "soon")),
    "max_in_flight": ("8", 8, ("0", "4097", "few")),
    "batch_size": ("32", 32, ("0", "257", "big")),
    "batch_wait_ms": ("0.5", 0.5, ("-1", "1001", "short")),
    "dedupe_days": ("0.5", 0.5, ("0", "-1", "week")),
    "idempotency_hours": ("48", 48.0, ("0", "-1", "day")),
    "log_level": ("DEBUG", "DEBUG", ("debug", "LOUD")),
}
FIELDS = sorted(Settings.model_fields)
WRONG = [(name, word) for name in FIELDS for word in SAMPLES[name][2]]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_every_setting_has_a_sample_and_words_that_explain_it():
    assert set(SAMPLES) == set(FIELDS)
    for name in FIELDS:
        assert Settings.model_fields[name].description, name


def outcome(**arguments: Any) -> str:
    """What anybody may read: the settings, or the words of the refusal and of what caused it."""
    try:
        settings = load_settings(**arguments)
    except SettingsError as refused:
        return f"{refused!r} {refused.__cause__!r}"
    return f"{settings!r} {settings}"


class TestSources:
    @pytest.mark.parametrize("name", FIELDS)
    def test_a_value_comes_from_the_environment(self, name, monkeypatch):
        word, value, _ = SAMPLES[name]
        monkeypatch.setenv(PREFIX + name.upper(), word)
        assert getattr(load_settings(**WITH.get(name, {})), name) == value

    @pytest.mark.parametrize("name", FIELDS)
    def test_a_value_comes_from_an_argument_first(self, name, monkeypatch):
        word, value, wrong = SAMPLES[name]
        monkeypatch.setenv(PREFIX + name.upper(), wrong[0] if wrong else "/elsewhere")
        assert getattr(load_settings(**{name: word}, **WITH.get(name, {})), name) == value

    @pytest.mark.parametrize("name", FIELDS)
    def test_a_value_may_be_given_as_what_it_is(self, name):
        value = SAMPLES[name][1]
        assert getattr(load_settings(**{name: value}, **WITH.get(name, {})), name) == value

    def test_the_defaults_alone_make_a_service(self):
        settings = load_settings()
        assert settings.redis_url is settings.api_key is None
        assert settings.models == (), "whatever is promoted"
        assert settings.budget_s == settings.budget_ms / 1000 == 1

    @pytest.mark.parametrize("name", ["redis_url", "api_key"])
    def test_an_empty_secret_is_none(self, name, monkeypatch):
        monkeypatch.setenv(PREFIX + name.upper(), "")
        assert getattr(load_settings(), name) is None

    def test_the_variables_of_the_client_are_known(self, monkeypatch):
        for name in CLIENT_VARIABLES:
            monkeypatch.setenv(name, "http://elsewhere")
        load_settings()

    def test_nothing_can_be_changed_afterwards(self):
        with pytest.raises(ValidationError):
            load_settings().port = 1


class TestRefusals:
    def test_of_a_variable_nobody_knows(self, monkeypatch):
        monkeypatch.setenv("FOODDX_BUGDET_MS", "800")
        with pytest.raises(SettingsError, match="unknown environment variable FOODDX_BUGDET_MS") as refused:
            load_settings()
        assert "FOODDX_BUDGET_MS" in str(refused.value)
        assert "800" not in str(refused.value)

    def test_of_an_argument_nobody_knows(self):
        with pytest.raises(SettingsError, match=r"^bugdet_ms: .*not permitted"):
            load_settings(bugdet_ms="800")

    @pytest.mark.parametrize(("name", "word"), WRONG)
    def test_name_the_setting(self, name, word, monkeypatch):
        with pytest.raises(SettingsError, match=f"^{name}: ."):
            load_settings(**{name: word})
        monkeypatch.setenv(PREFIX + name.upper(), word)
        with pytest.raises(SettingsError, match=f"^{name}: ."):
            load_settings()

    def test_name_every_setting_that_is_wrong(self):
        with pytest.raises(SettingsError) as refused:
            load_settings(port=0, device="gpu", budget_ms=1)
        assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
            "port",
            "device",
            "budget_ms",
        ]

    @given(
        st.sampled_from(["redis_url", "api_key"]),
        st.sampled_from(["", "redis://", "redis://user:", "rediss://:", "unix://u:", "https://"]),
        st.text(min_size=1, max_size=12),
        st.sampled_from(["", "@host", "@host:port", "@[host", "/x/y"]),
    )
    def test_never_repeat_a_secret(self, name: str, before: str, rest: str, after: str):
        secret = f"zq7x{rest}"
        assert "zq7x" not in outcome(**{name: before + secret + after})

    @pytest.mark.parametrize("name", ["redis_url", "api_key"])
    @pytest.mark.parametrize("value", [["zq7x-in-a-list"], {"zq7x": 1}, 7])
    def test_never_repeat_a_secret_of_a_wrong_type(self, name, value):
        with pytest.raises(SettingsError, match=f"^{name}: ") as refused:
            load_settings(**{name: value})
        assert "zq7x" not in str(refused.value)


class TestAQueue:
    def test_needs_a_place_for_what_cannot_be_scored(self):
        with pytest.raises(SettingsError, match="needs a dead_letter_queue"):
            load_settings(queue=QUEUE, store="s3://bucket")

    def test_needs_a_bucket(self):
        with pytest.raises(SettingsError, match="needs a store of s3://bucket"):
            load_settings(queue=QUEUE, dead_letter_queue=QUEUE)


class TestSecrets:
    def test_stay_behind_when_the_settings_travel(self):
        settings = load_settings(api_key=KEY, redis_url="redis://:hunter2@host:6379")
        travelling = settings.without_secrets()
        assert travelling.api_key is travelling.redis_url is None
        assert travelling.model_copy(
            update={"api_key": settings.api_key, "redis_url": settings.redis_url}
        ) == (settings)
        for words in (repr(settings), str(settings), settings.model_dump_json(), repr(travelling)):
            assert KEY not in words
            assert "hunter2" not in words


class TestFolders:
    def test_are_absolute_whatever_is_typed(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        settings = load_settings(data_dir="mine", store="photos")
        assert (settings.data_dir, settings.store) == (tmp_path / "mine", str(tmp_path / "photos"))
        assert settings.models_dir == tmp_path / "mine" / "models"

    def test_may_begin_at_home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        settings = load_settings(data_dir="~/mine", store="~/photos")
        assert (settings.data_dir, settings.store) == (tmp_path / "mine", str(tmp_path / "photos"))

    def test_of_photos_are_in_the_data_folder_unless_named(self, tmp_path):
        assert load_settings(data_dir=tmp_path).store == str(tmp_path / "images")
