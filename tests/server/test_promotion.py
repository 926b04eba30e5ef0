"""A model of one's own takes over in the running service and goes again; no request is the worse for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli import main
from models.manifest import MANIFEST, load_manifest, write_manifest
from models.registry import DEFAULT
from tests.conftest import Running
from tests.photos import coffee_jpeg
from tests.server.processes import replica
from tests.server.test_scores import unique

pytestmark = pytest.mark.server

# Of another input size than the default, so that pixels cut for one do not fit the other.
OWN = load_manifest("imagenet-lite1").model_copy(update={"name": "canteen", "version": "2"})
DEPLOYMENTS = ("Ingress", "Preprocessor", "Scorer")


def served(client: httpx.Client) -> str:
    serving = client.get("/v1/models").json()["serving"]
    return f"{serving['name']}@{serving['version']}"


def fooddx(service: Running, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("FOODDX_DATA_DIR", str(service.data_dir))
    monkeypatch.setenv("FOODDX_URL", service.url)
    return main(["model", *arguments])


async def score_until(service: Running, done: asyncio.Event) -> list[dict[str, Any]]:
    """Four clients score new photos, one after the other; anything but 200 ends the test."""
    results: list[dict[str, Any]] = []
    photo = coffee_jpeg(640, 480)

    async def client(http: httpx.AsyncClient) -> None:
        while not done.is_set():
            response = await http.post("/v1/scores", content=unique(photo))
            assert response.status_code == 200, response.text
            results.append(response.json())

    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=20) as http:
        await asyncio.gather(*(client(http) for _ in range(4)))
    return results


def test_a_promoted_model_takes_over_under_load_and_goes_back(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(OWN, tmp_path / MANIFEST)
    assert fooddx(service, monkeypatch, "register", str(tmp_path)) == 0
    pids = [replica(service, name).pid for name in DEPLOYMENTS]

    async def story() -> list[dict[str, Any]]:
        done = asyncio.Event()
        load = asyncio.create_task(score_until(service, done))
        for command in (("promote", "canteen@2", "--force"), ("rollback",)):
            await asyncio.sleep(1)
            assert await asyncio.to_thread(fooddx, service, monkeypatch, *command) == 0
        await asyncio.sleep(1)
        done.set()
        return await load

    results = asyncio.run(story())
    names = [result["model"]["name"] for result in sorted(results, key=lambda r: r["created_at"])]
    assert set(names) == {DEFAULT, "canteen"}, "every result says which model it is from"
    assert (names[0], names[-1]) == (DEFAULT, DEFAULT)
    assert [replica(service, name).pid for name in DEPLOYMENTS] == pids, "nothing was restarted"
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=10) as client:
        assert served(client).startswith(f"{DEFAULT}@")


def test_a_model_that_cannot_be_loaded_leaves_the_others_serving(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(OWN.model_copy(update={"version": "3"}), tmp_path / MANIFEST)
    assert fooddx(service, monkeypatch, "register", str(tmp_path)) == 0
    manifest = service.data_dir / "registry" / "canteen-3" / MANIFEST
    sound = manifest.read_text()
    manifest.write_text(sound.replace("imagenet.csv", "meals.csv"))
    try:
        promoted = asyncio.run(
            asyncio.to_thread(fooddx, service, monkeypatch, "promote", "canteen@3", "--force")
        )
        assert promoted == 1
        with httpx.Client(base_url=service.url, headers=service.headers, timeout=20) as client:
            assert served(client).startswith(f"{DEFAULT}@")
            photo = unique(coffee_jpeg(640, 480))
            assert client.post("/v1/scores", content=photo).json()["model"]["name"] == DEFAULT
    finally:
        manifest.write_text(sound)
        assert fooddx(service, monkeypatch, "rollback") in {0, 1}
        time.sleep(0.5)
