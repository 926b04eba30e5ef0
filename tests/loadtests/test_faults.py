"""The fault tool against a small service: what is counted, and when it gives up."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from loadtests import faults
from loadtests.faults import Seen


def one_photo(answers: Sequence[tuple[int, object]], patience_s: float = 60.0) -> tuple[Seen, list[str]]:
    """Send one photo to a server that answers these in turn, the last one repeatedly; also its keys."""
    left, sent, seen = list(answers), [], Seen()

    async def score(request: web.Request) -> web.Response:
        sent.append(request.headers["Idempotency-Key"])
        status, body = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response(body, status=status)

    async def story() -> None:
        app = web.Application()
        app.router.add_post("/v1/scores", score)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            url = str(server.make_url("")).rstrip("/")
            await faults._until_answered(session, url, b"photo", seen, time.perf_counter() + patience_s)

    asyncio.run(story())
    return seen, sent


def test_the_longest_gap_is_between_neighbouring_answers() -> None:
    assert Seen().longest_gap_s == Seen(acknowledged={"a": 5.0}).longest_gap_s == 0.0
    assert Seen(acknowledged={"a": 9.0, "b": 1.0, "c": 3.0}).longest_gap_s == 6.0


def test_what_may_pass_is_sent_again_by_its_key_until_answered() -> None:
    refusals = [
        (409, {"code": "idempotency_in_flight"}),
        (429, {"code": "overloaded"}),
        (500, None),
        (503, {}),
    ]
    seen, keys = one_photo([*refusals, (200, {"id": "1"})])
    assert list(seen.acknowledged) == ["1"]
    assert seen.failures == {"409 idempotency_in_flight": 1, "429 overloaded": 1, "500": 1, "503": 1}
    assert seen.unanswered == 0
    assert (len(keys), len(set(keys))) == (5, 1)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_that_no_retry_changes_is_final(status: int) -> None:
    seen, keys = one_photo([(status, {"code": "no"}), (200, {"id": "1"})])
    assert (seen.failures, seen.unanswered, len(keys)) == ({f"{status} no": 1}, 1, 1)
    assert not seen.acknowledged


def test_a_photo_that_is_never_answered_is_given_up_at_the_deadline() -> None:
    seen, keys = one_photo([(503, {"code": "results_unavailable"})], patience_s=0.2)
    assert seen.unanswered == 1
    assert seen.failures == {"503 results_unavailable": len(keys)}


def test_a_service_that_is_gone_is_given_up_too() -> None:
    seen = Seen()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unused_port = listener.getsockname()[1]

    async def story() -> None:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{unused_port}"
            await faults._until_answered(session, url, b"photo", seen, time.perf_counter() + 0.2)

    asyncio.run(story())
    assert seen.unanswered == 1
    assert set(seen.failures) == {"ClientConnectorError"}


def test_the_table_shows_every_count() -> None:
    seen = Seen(7, {"a": 1.0, "b": 3.5}, Counter({"500": 4, "ClientOSError": 1}), unanswered=3, lost=6)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(faults.table({"Scorer": seen, "Ingress": Seen()}))
    rows = [line.split() for line in console.export_text().splitlines() if "│" in line]
    cells = [[word for word in row if word != "│"] for row in rows]
    assert cells == [
        ["Scorer", "7", "2", "3", "6", "4", "×", "500,", "1", "×", "ClientOSError", "2.5"],
        ["Ingress", "0", "0", "0", "0", "none", "0.0"],
    ]


@pytest.mark.parametrize(
    ("seen", "status"),
    [(Seen(), 0), (Seen(failures=Counter("x")), 0), (Seen(lost=1), 1), (Seen(unanswered=1), 1)],
)
def test_the_exit_code_tells_of_a_loss(monkeypatch: pytest.MonkeyPatch, seen: Seen, status: int) -> None:
    async def strike(*_: object) -> Seen:
        return seen

    monkeypatch.setattr(faults, "strike", strike)
    monkeypatch.setenv("FOODDX_API_KEY", "key")
    assert faults.main(["--kill", "Scorer", "--megapixels", "0.01"]) == status


def test_what_does_not_run_here_cannot_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOODDX_API_KEY", "key")
    assert faults.main(["--kill", "NoSuchDeployment", "--megapixels", "0.01"]) == 2
