"""What the process that looks after a service does about promoted models; the rest is in tests/server."""

from __future__ import annotations

import pytest

from app import serving
from app.settings import Settings
from models.registry import DEFAULT, Registry
from tests.runs import write_run


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def registry(settings, tmp_path):
    """With salad@1 promoted after the service began."""
    registry = Registry(settings.registry_dir)
    registry.register(write_run(tmp_path / "run"))
    return registry


def test_promoted_models_are_wanted_until_they_are_taken_up(settings, registry):
    promoted = serving._Promoted(settings)
    assert promoted.models == (DEFAULT,)
    assert promoted.wanted() is None
    registry.promote("salad@1")
    assert promoted.wanted() == ("salad@1",) == promoted.wanted()
    promoted.told(("salad@1",), taken=True)
    assert promoted.models == ("salad@1",)
    assert promoted.wanted() is None


def test_what_could_not_be_taken_up_is_tried_again_later(settings, registry, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(serving.time, "monotonic", lambda: now)
    promoted = serving._Promoted(settings)
    registry.promote("salad@1")
    promoted.told(("salad@1",), taken=False)
    assert promoted.models == (DEFAULT,)
    assert promoted.wanted() is None
    now += serving.TRY_AGAIN_S
    assert promoted.wanted() == ("salad@1",)


def test_another_promotion_need_not_wait_for_one_that_failed(settings, registry, tmp_path):
    registry.register(write_run(tmp_path / "other", name="soup"))
    promoted = serving._Promoted(settings)
    registry.promote("salad@1")
    promoted.told(("salad@1",), taken=False)
    registry.promote("soup@1")
    assert promoted.wanted() == ("soup@1",)


def test_models_that_the_settings_name_are_kept(settings, registry):
    promoted = serving._Promoted(settings.model_copy(update={"models": ("imagenet-lite0",)}))
    registry.promote("salad@1")
    assert promoted.wanted() is None
