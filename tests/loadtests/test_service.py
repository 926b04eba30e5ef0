"""A service of the load tests' own: what is deleted, and what is said when it does not start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from loadtests import service
from loadtests.service import Service, StartError


def test_photos_are_forgotten_by_age_and_nothing_else_is(tmp_path: Path) -> None:
    images = tmp_path / "images" / "default" / "ab"
    images.mkdir(parents=True)
    old, young, marker = images / "old", images / "young", tmp_path / "images" / ".ready"
    for file in (old, young, marker, tmp_path / "api_key"):
        file.write_text("x")
    os.utime(old, (time.time() - 100,) * 2)
    running = Service("http://127.0.0.1:1", "key", data_dir=tmp_path)
    running.forget_photos(older_s=60)
    assert (old.exists(), young.exists()) == (False, True)
    running.forget_photos()
    assert not young.exists()
    assert marker.exists()
    assert (tmp_path / "api_key").exists()


def test_a_service_of_somebody_else_is_left_alone() -> None:
    elsewhere = Service("http://127.0.0.1:1", "key")
    elsewhere.forget_photos()
    assert elsewhere.usage() == {}


def test_a_service_that_does_not_start_leaves_words_and_no_data(tmp_path: Path) -> None:
    dead, alive = tmp_path / f"data-{2**22 + 1}", tmp_path / f"data-{os.getppid()}"
    for left in (dead, alive):
        left.mkdir()
    with pytest.raises(StartError, match=r"terminal\.log"), service.started(tmp_path, {"typo": 1}):
        pass
    assert "FOODDX_TYPO" in (tmp_path / "terminal.log").read_text()
    assert list(tmp_path.glob("data-*")) == [alive]
