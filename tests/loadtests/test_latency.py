"""The closed loop against a small service: what is counted, what is sent, what is written."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from loadtests import latency
from loadtests.photos import Photo
from loadtests.sending import Sample, Senders, fresh
from tests.loadtests.serving import scoring

PHOTO = Photo("tiny", b"<", b">")
OVERLOADED = {"code": "overloaded"}


def test_percentiles_are_of_the_scored_photos() -> None:
    sample = Sample(np.arange(1, 101) / 1000, Counter({"429": 3}), wall_s=2.0, cpu_s=0.1)
    measured = latency.summarise(2, sample)
    assert (measured.images, measured.images_per_s, measured.max_ms) == (100, 50, 100)
    assert (measured.p50_ms, measured.p95_ms, measured.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert measured.client_cpu_ms_per_image == pytest.approx(1)
    assert measured.errors == {"429": 3}


def test_no_scored_photo_is_no_division_by_zero() -> None:
    assert latency.summarise(1, Sample(errors=Counter({"503": 1}), wall_s=1.0)).images_per_s == 0


def test_every_answer_is_counted_once_and_every_photo_is_new() -> None:
    bodies: list[bytes] = []

    async def score(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer key"
        bodies.append(await request.read())
        refused = len(bodies) % 5 == 0
        headers = {"Retry-After": "0"} if refused else {}
        return web.json_response(
            OVERLOADED if refused else {}, status=429 if refused else 200, headers=headers
        )

    with scoring(score) as target:
        sample = latency.run(target, fresh(PHOTO), 4, 0.2)
    assert sample.images > 0
    assert sample.images + sample.errors["429 overloaded"] == len(bodies) == len(set(bodies))
    assert sample.rejects == {True: sample.errors["429 overloaded"]}


@pytest.mark.parametrize(("clients", "processes"), [(1, 2), (3, 2), (4, 2)])
def test_clients_are_shared_out_among_processes(clients: int, processes: int) -> None:
    shares: list[int] = []

    class Recorder(Senders):
        def __init__(self) -> None:
            pass

        def run(self, tasks: object) -> Sample:
            shares.extend(task.args[2] for task in tasks)  # type: ignore[attr-defined]
            return Sample()

    target = latency.Target("http://nowhere", "key")
    latency.closed_loop(Recorder(), target, fresh(PHOTO), clients, 1.0, processes)
    assert sum(shares) == clients
    assert len(shares) == min(clients, processes)
    assert max(shares) - min(shares) <= 1


def test_a_service_that_is_not_there_is_an_error_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOODDX_API_KEY", "key")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    file = tmp_path / "figures.json"
    short = ["--clients", "2", "--seconds", "0.1", "--warmup", "0.1", "--megapixels", "0.01"]
    assert latency.main(["--url", f"http://127.0.0.1:{port}", *short, "--json", str(file)]) == 1
    (row,) = json.loads(file.read_text())["rows"]
    assert row["images"] == 0
    assert row["errors"].keys() == {"ConnectionRefusedError"}
