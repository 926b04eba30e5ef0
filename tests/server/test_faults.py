"""Processes killed under load: what was answered with 200 is there, and what failed may be sent again."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from loadtests.target import problem_code
from tests.conftest import Running
from tests.photos import coffee_jpeg
from tests.server.processes import named, replica
from tests.server.test_scores import unique

pytestmark = pytest.mark.server

RECOVERY_S = 60.0


@dataclass
class Load:
    """What clients saw while a fault happened, and after it."""

    acknowledged: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def may_pass(response: httpx.Response) -> bool:
    """Whether the same request may be answered later. Of ours, 500 ``internal`` may not: it is a fault."""
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return "retry-after" in response.headers
    return response.status_code in {500, 503}  # HAProxy and Serve, with no replica to ask


async def under_load(service: Running, fault: Callable[[], None]) -> Load:
    """Eight clients send photos; the fault strikes; they go on until they have been answered again.

    Each photo is sent again by its Idempotency-Key until it is answered with 200.
    """
    load = Load()
    photo = coffee_jpeg(640, 480)
    struck = asyncio.Event()

    async def acknowledged(http: httpx.AsyncClient, end: float) -> str:
        body, key = unique(photo), {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            assert time.monotonic() < end, f"no recovery; saw {load.refused}"
            try:
                response = await http.post("/v1/scores", content=body, headers=key)
            except httpx.TransportError as error:
                # The connection went with the process: the client knows nothing, and may retry by its key.
                load.refused[type(error).__name__] += 1
            else:
                if response.status_code == 200:
                    return response.json()["id"]
                assert may_pass(response), response.text
                load.refused[f"{response.status_code} {problem_code(response.content)}".strip()] += 1
            await asyncio.sleep(0.05)

    async def client(http: httpx.AsyncClient) -> None:
        answered_since = 0
        end = time.monotonic() + RECOVERY_S
        while answered_since < 10:
            load.acknowledged.append(await acknowledged(http, end))
            answered_since += struck.is_set()

    async def strike() -> None:
        await asyncio.sleep(0.5)
        fault()
        struck.set()

    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=10) as http:
        await asyncio.gather(strike(), *(client(http) for _ in range(8)))
    return load


def assert_nothing_lost(service: Running, load: Load) -> None:
    assert len(set(load.acknowledged)) == len(load.acknowledged), "two photos got one result"
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=10) as client:
        for result_id in load.acknowledged:
            assert client.get(f"/v1/scores/{result_id}").status_code == 200, result_id
            assert client.get(f"/v1/scores/{result_id}/image").status_code == 200, result_id


@pytest.mark.parametrize("deployment", ["Preprocessor", "Scorer", "Ingress"])
def test_a_killed_replica_loses_nothing_that_was_acknowledged(service: Running, deployment: str) -> None:
    victim = replica(service, deployment)
    load = asyncio.run(under_load(service, victim.kill))
    assert_nothing_lost(service, load)
    assert replica(service, deployment).pid != victim.pid


def test_a_killed_store_answers_503_and_comes_back_with_everything(service: Running) -> None:
    victim = named(service, "valkey-server")
    load = asyncio.run(under_load(service, victim.kill))
    assert_nothing_lost(service, load)
    assert not any(refusal.startswith("500") for refusal in load.refused)


def test_a_frozen_store_is_told_and_survived_without_a_restart(service: Running) -> None:
    store = named(service, "valkey-server")
    ingress = replica(service, "Ingress").pid
    store.suspend()
    try:
        start = time.monotonic()
        response = httpx.post(
            f"{service.url}/v1/scores",
            content=unique(coffee_jpeg(640, 480)),
            headers=service.headers,
            timeout=20,
        )
        waited = time.monotonic() - start
    finally:
        store.resume()
    assert (response.status_code, response.json()["code"]) in {
        (503, "results_unavailable"),
        (504, "deadline_exceeded"),
    }
    assert waited < 10, "a frozen store must not make clients hang"
    deadline = time.monotonic() + RECOVERY_S
    while httpx.get(f"{service.url}/readyz", timeout=10).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = httpx.post(
        f"{service.url}/v1/scores", content=unique(coffee_jpeg(640, 480)), headers=service.headers, timeout=20
    )
    assert again.status_code == 200
    assert replica(service, "Ingress").pid == ingress


def test_more_than_fits_is_refused_at_once_with_429(service: Running) -> None:
    photo = coffee_jpeg(640, 480)
    scorer = replica(service, "Scorer")

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=service.url, headers=service.headers, timeout=30, limits=limits
        ) as client:
            sent = [client.post("/v1/scores", content=unique(photo)) for _ in range(200)]
            responses = []
            for answer in asyncio.as_completed(sent):
                responses.append(await answer)
                if len(responses) == 1:
                    # Only a refusal can come first: nobody is scored yet.
                    scorer.resume()
            return responses

    # Held, so that the places fill up however fast this machine is and however slowly we send.
    scorer.suspend()
    try:
        responses = asyncio.run(flood())
    finally:
        scorer.resume()
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) <= {200, 429, 504}, statuses
    assert responses[0].status_code == 429
    assert statuses[200] > 0
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
    assert psutil.pid_exists(replica(service, "Scorer").pid)
