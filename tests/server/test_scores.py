"""The whole service, over HTTP: what a newcomer's first photos come back as."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest

from tests.conftest import Running
from tests.photos import coffee_jpeg

pytestmark = pytest.mark.server


def unique(photo: bytes) -> bytes:
    """The same picture in other bytes: a JPEG comment behind the start marker."""
    comment = uuid.uuid4().bytes
    return photo[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + photo[2:]


def test_the_printed_curl_line_scores_a_real_photo(service: Running) -> None:
    block = (service.data_dir / "terminal.log").read_text()
    line = re.search(r"curl -sS .*?\\\n.*?/v1/scores", block, re.DOTALL)
    assert line
    answer = subprocess.run(["bash", "-c", line[0]], capture_output=True, check=True, timeout=30).stdout
    result = json.loads(answer)
    assert result["status"] == "scored"
    assert result["dishes"][0]["name"] in {"coffee", "hot chocolate"}  # it is one with milk


def test_a_photo_comes_back_with_everything(service: Running) -> None:
    photo = unique(coffee_jpeg(1024, 768))
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=10) as client:
        response = client.post("/v1/scores", content=photo)
        assert response.status_code == 200, response.text
        result = response.json()
        assert result["image"]["sha256"] == hashlib.sha256(photo).hexdigest()
        assert (result["image"]["width"], result["image"]["height"]) == (1024, 768)
        assert abs(sum(result["score_probabilities"]) - 1) < 1e-3
        assert result["tip"]["text"]
        stages = set(re.findall(r"(\w+);dur=", response.headers["server-timing"]))
        assert stages == {"auth", "dedupe", "store", "queue", "decode", "score", "tip"}
        assert client.get(f"/v1/scores/{result['id']}").json() == result
        assert client.get(f"/v1/scores/{result['id']}/image").content == photo
        again = client.post("/v1/scores", content=photo).json()
        assert again["duplicate_of"] == result["id"]
        assert again["score_probabilities"] == result["score_probabilities"]


def test_a_large_photo_passes_between_the_deployments(service: Running) -> None:
    """Larger than gRPC takes by default."""
    photo = unique(coffee_jpeg(7000, 5000, quality=98))
    assert len(photo) > 4 * 2**20
    response = httpx.post(f"{service.url}/v1/scores", content=photo, headers=service.headers, timeout=10)
    assert response.status_code == 200, response.text


def test_twins_sent_at_once_are_scored_once(service: Running) -> None:
    photo = unique(coffee_jpeg(800, 600))

    async def send_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=10) as client:
            return await asyncio.gather(*(client.post("/v1/scores", content=photo) for _ in range(8)))

    results = [response.json() for response in asyncio.run(send_all())]
    firsts = [result["id"] for result in results if result["duplicate_of"] is None]
    assert len(firsts) == 1
    assert {result["duplicate_of"] for result in results} == {None, firsts[0]}


def test_a_bad_photo_fails_alone_among_good_ones(service: Running) -> None:
    good = coffee_jpeg(640, 480)

    async def send_all() -> list[httpx.Response]:
        bodies = [unique(good)[:-2000] if i % 3 == 0 else unique(good) for i in range(24)]
        async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=10) as client:
            return await asyncio.gather(*(client.post("/v1/scores", content=body) for body in bodies))

    for i, response in enumerate(asyncio.run(send_all())):
        if i % 3 == 0:
            assert response.json()["code"] == "image_truncated"
        else:
            assert response.status_code == 200, response.text


def test_a_spent_budget_is_said_and_leaves_nothing(service: Running) -> None:
    response = httpx.post(
        f"{service.url}/v1/scores",
        content=unique(coffee_jpeg(4000, 3000)),
        headers=service.headers | {"X-Budget-Ms": "1"},
        timeout=10,
    )
    assert response.status_code == 504
    assert response.json()["code"] == "deadline_exceeded"
    assert response.headers["retry-after"] == "1"


def test_a_client_cannot_tell_serve_how_to_treat_its_request(service: Running) -> None:
    headers = service.headers | {"x-request-timeout-seconds": "0.001", "x-request-disconnect-disabled": "?1"}
    photo = unique(coffee_jpeg(640, 480))
    response = httpx.post(f"{service.url}/v1/scores", content=photo, headers=headers, timeout=10)
    assert response.status_code == 200, response.text


def test_the_request_id_is_in_the_logs_of_all_three_deployments(service: Running) -> None:
    request_id = f"log-test-{uuid.uuid4().hex}"
    photo = unique(coffee_jpeg(640, 480))
    response = httpx.post(
        f"{service.url}/v1/scores", content=photo, headers=service.headers | {"X-Request-Id": request_id}
    )
    assert response.headers.get_list("x-request-id") == [request_id]
    logs = list(ray_logs(service).glob("replica_fooddx_*.log"))
    deadline = time.monotonic() + 10
    found: set[str] = set()
    while len(found) < 3 and time.monotonic() < deadline:
        found = {log.name.split("_")[2] for log in logs if request_id in log.read_text()}
        time.sleep(0.1)
    assert found == {"Ingress", "Preprocessor", "Scorer"}
    for log in ray_logs(service).rglob("*"):
        if log.is_file():
            assert service.api_key.encode() not in log.read_bytes(), f"the API key is in {log.name}"


def test_metrics_tell_what_happened(service: Running) -> None:
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=10) as client:
        photo = unique(coffee_jpeg(640, 480))
        client.post("/v1/scores", content=photo)
        client.post("/v1/scores", content=photo)
        client.post("/v1/scores", content=b"no photo")
    wanted = {
        'ray_fooddx_images_total{.*status="scored"', "ray_fooddx_cache_hits_total{",
        'ray_fooddx_rejected_total{.*code="unsupported_media_type"',
        'ray_fooddx_stage_seconds_count{.*stage="decode"',
        "ray_fooddx_batch_size_count{", "ray_fooddx_in_flight{", "ray_fooddx_scorer_queue{",
    }  # fmt: skip
    deadline = time.monotonic() + 60
    missing = wanted
    while missing and time.monotonic() < deadline:
        text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
        missing = {line for line in wanted if not re.search(line, text)}
        time.sleep(0.5)
    assert not missing


def ray_logs(service: Running) -> Path:
    """The log folder of the service's Ray: the session named on its processes' command lines."""
    import psutil

    for process in psutil.Process(service.process.pid).children(recursive=True):
        for argument in process.cmdline():
            if match := re.search(r"/\S+?/session_[^/]+/logs", argument):
                return Path(match[0]) / "serve"
    raise AssertionError("the service runs no Ray")
