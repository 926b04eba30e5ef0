"""The floor: that it is the product's own work, on every core and on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import floor
from loadtests.floor import FloorBench
from loadtests.photos import make_photo
from tests.conftest import MODEL


def test_the_loop_is_the_product_and_nothing_else(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    real = floor.prepare
    monkeypatch.setattr(floor, "prepare", lambda *given: prepared.append(real(*given)) or prepared[-1])
    decode_s, infer_s = floor.scorer(MODEL, models_dir)(make_photo(0.2).unique())
    assert decode_s > 0
    assert infer_s > 0
    assert prepared[0].pixels[0].shape == (224, 224, 3)


def test_all_cores_and_one_are_measured(models_dir: Path) -> None:
    with FloorBench(MODEL, models_dir) as bench:
        found = bench.measure(make_photo(0.2).unique(), 0.2)
    assert 0 < found.decode_ms < found.alone_ms
    assert found.images_per_s > 0
    assert found.cpu_ms > 0
    assert found.spent_s > 0
