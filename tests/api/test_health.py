"""/healthz and /readyz, and what a photo is answered while a part is away."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from app.errors import ScorerUnavailable
from app.stores.embedded import EmbeddedStore
from tests.api.conftest import Api, is_problem
from tests.photos import coffee_jpeg


def available(api: Api) -> None:
    assert api.get("/healthz").json() == {"status": "alive"}
    assert api.get("/readyz").json() == {"status": "ready"}
    assert api.score(coffee_jpeg()).status_code == 200


def away(api: Api, code: str) -> None:
    """Alive, not ready, and a photo is answered with an error that says to come again."""
    assert api.get("/healthz").status_code == 200
    for response in (api.get("/readyz"), api.score(coffee_jpeg(quality=60))):
        problem = is_problem(response, 503, code)
        assert int(response.headers["retry-after"]) >= 1
        assert not any(word in problem.detail for word in ("valkey", "Errno", "socket", "images/"))
    api.settled()


@pytest.fixture
def own_store(tmp_path):
    """A result store that a test may stop."""
    with EmbeddedStore(tmp_path / "results") as store:
        yield store


def test_without_the_result_store_it_is_alive_and_not_ready(make_api, own_store):
    api = make_api(redis_url=own_store.url)
    available(api)
    own_store.stop()
    away(api, "results_unavailable")
    for path in ("/v1/scores?user=ana", "/v1/reviews", "/v1/scores/0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11"):
        is_problem(api.get(path), 503, "results_unavailable")
    is_problem(api.delete("/v1/users/ana"), 503, "results_unavailable")
    own_store.start()
    available(api)


def test_without_the_image_folder_it_is_alive_and_not_ready(api):
    available(api)
    folder = Path(api.local.settings.store)
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("a file where the folder was: nobody can write into it, root included")
    away(api, "images_unavailable")
    folder.unlink()
    aside.rename(folder)
    available(api)
    assert len(api.stored()) == 1


def test_a_photo_that_vanished_from_the_folder_is_not_found(api):
    result_id = api.result(coffee_jpeg())["id"]
    shutil.rmtree(Path(api.local.settings.store) / api.tenant)
    is_problem(api.get(f"/v1/scores/{result_id}/image"), 404, "not_found")


def test_without_a_scorer_it_is_alive_and_not_ready(make_api):
    api = make_api()

    async def missing(_job=None) -> None:
        raise ScorerUnavailable("The models are not loaded yet.", retry_after_s=2)

    ready = api.local.service
    api.app.state.service = dataclasses.replace(ready, scorer_ready=missing)
    api.local.scorer.before = missing
    away(api, "scorer_unavailable")
    assert api.stored() == []
    api.app.state.service = ready
    api.local.scorer.before = None
    available(api)


def test_a_scorer_that_fails_once_is_asked_once_more(api):
    calls = []

    async def first_fails(_job) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ScorerUnavailable

    api.local.scorer.before = first_fails
    assert api.score(coffee_jpeg()).status_code == 200
    assert len(calls) == 2
