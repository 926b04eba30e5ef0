"""The job that peers do is the product's: the same numbers, the same results in the same stores."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.engines import Engine
from app.errors import BadImage, Unauthenticated
from app.imaging.prepare import prepare
from app.messages import PhotoJob, Rejected, Scored
from app.schemas import Result
from app.settings import Settings
from app.stores.embedded import EmbeddedStore
from loadtests.peers import job
from loadtests.photos import make_photo
from models.manifest import load_manifest
from tests.conftest import API_KEY, MODEL

PHOTO = make_photo(0.05)


@pytest.fixture
def settings(tmp_path: Path, models_dir: Path) -> Settings:
    (tmp_path / "models").symlink_to(models_dir)
    return Settings(data_dir=tmp_path, models=(MODEL,), api_key=API_KEY)


@pytest.fixture
def scorer(settings: Settings) -> job.Scorer:
    return job.Scorer(settings)


def test_the_likeliest_classes_are_the_engines(scorer: job.Scorer, engine: Engine) -> None:
    data = PHOTO.unique()
    top = json.loads(scorer.answer(data))["top"]
    classes = load_manifest(MODEL).columns("classes")
    prepared = prepare(data, scorer._limits, scorer._specs)
    expected = engine.predict(prepared.pixels[0][None])[0][classes]
    assert [found["class"] for found in top] == list(np.argsort(expected)[::-1][: job.TOP])
    assert [found["probability"] for found in top] == pytest.approx(
        np.sort(expected)[::-1][: job.TOP], abs=1e-6
    )


def test_the_full_job_stores_the_photo_and_knows_it_again(settings: Settings, tmp_path: Path) -> None:
    scorers = job.Scorers(settings, 2)

    async def score(photo: PhotoJob) -> Scored | Rejected:
        return await asyncio.to_thread(scorers.score, photo)

    async def twice(data: bytes, url: str) -> list[Result]:
        full = job.FullJob(
            settings.model_copy(update={"redis_url": Settings(redis_url=url).redis_url}), score
        )
        try:
            return [Result.model_validate_json(await full.run(data)) for _ in range(2)]
        finally:
            await full.close()

    with EmbeddedStore(tmp_path / "valkey") as store:
        data = PHOTO.unique()
        first, second = asyncio.run(twice(data, store.url))
    assert (first.duplicate_of, second.duplicate_of) == (None, first.id)
    assert (Path(settings.store) / first.image.key).read_bytes() == data


def test_a_broken_photo_is_rejected_by_its_code(scorer: job.Scorer) -> None:
    outcome = scorer.score(PhotoJob(PHOTO.unique()[:500], (MODEL,), 2e9, "-"))
    assert isinstance(outcome, Rejected)
    with pytest.raises(BadImage):
        scorer.prepare(PHOTO.unique()[:500])


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Bearer nobody's", API_KEY])
def test_only_the_api_key_opens(settings: Settings, header: str | None) -> None:
    keys = job.Keys(settings)
    keys.check(f"Bearer {API_KEY}")
    with pytest.raises(Unauthenticated):
        keys.check(header)


def test_options_of_the_search_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    best: dict[job.Level, job.Options] = {"compute": {"workers": 1}, "full": {"workers": 2, "batch": 8}}
    assert job.task(best).options == best["full"]
    monkeypatch.setenv(job.OPTIONS_VARIABLE, '{"workers": 3}')
    assert job.task(best).options == {"workers": 3, "batch": 8}
    monkeypatch.setenv(job.LEVEL_VARIABLE, "compute")
    assert job.task(best).level == "compute"


def test_the_job_needs_neither_torch_nor_ray() -> None:
    program = (
        "import sys, loadtests.peers.job; print([m for m in ('torch', 'ray', 'timm') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
