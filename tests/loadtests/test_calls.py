"""The calls against a small service: what is repeated, what counts as a promise, and what as wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests import calls as module
from loadtests.calls import Answer, Call, Client, Promise, Props, calls, promise, wrong
from loadtests.photos import Photo

PHOTO = Photo("tiny", b"<", b">")
SHA = hashlib.sha256(b"kept").hexdigest()
PROPS = Props(
    photo=b"photo",
    later=b"later",
    forsaken=(b"1", b"2"),
    kept={"id": "k", "image": {"key": "clinic/k", "sha256": SHA}},
    doomed="d",
    form={"id": "u", "fields": {}},
)
BY_NAME = {call.name: call for call in calls(PROPS, readiness=True)}


def told(
    answers: Sequence[tuple[int, bytes]], story: Callable[[Client], Awaitable[None]]
) -> list[tuple[str, str | None]]:
    """A client of a server that gives these answers in turn, the last repeatedly; paths and keys it sent."""
    left, sent = list(answers), []

    async def answer(request: web.Request) -> web.Response:
        sent.append((f"{request.method} {request.path}", request.headers.get("Idempotency-Key")))
        assert request.headers["Authorization"] == "Bearer key"
        status, body = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, body=body)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            await story(Client("clinic", "key", session, str(server.make_url("")).rstrip("/")))

    asyncio.run(run())
    return sent


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


def test_a_call_is_repeated_as_it_was_until_it_is_answered_well() -> None:
    async def story(client: Client) -> None:
        answers = await client.until_well(BY_NAME["POST photo"])
        assert [answer.words for answer in answers] == ["503 images_unavailable", "500", "200"]
        assert all(answer.ms > 0 for answer in answers)

    sent = told([(503, b'{"code": "images_unavailable"}'), (500, b"oops"), (200, b"{}")], story)
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert sent[0][1]


def test_a_call_is_given_up_when_time_is_up() -> None:
    async def story(client: Client) -> None:
        answers = await client.until_well(BY_NAME["GET result"], patience_s=0.05)
        assert {answer.status for answer in answers} == {503}

    assert told([(503, b"{}")], story)


def test_what_is_sent_once_is_not_repeated() -> None:
    async def story(client: Client) -> None:
        assert len(await client.until_well(BY_NAME["POST photo, once"])) == 1

    assert len(told([(503, b"{}")], story)) == 1


def test_no_answer_is_one_too() -> None:
    async def story(client: Client) -> None:
        nobody = Client("clinic", "key", client.session, "http://127.0.0.1:9")
        answer = await nobody.ask(BY_NAME["GET models"])
        assert answer.words == "none ClientConnectorError"
        assert wrong(answer, ())

    assert told([(200, b"")], story) == []


def test_every_call_is_of_its_own_material() -> None:
    assert [f"{call.method} {call.path}" for call in calls(PROPS, readiness=False)] == [
        "POST /v1/scores", "POST /v1/scores", "POST /v1/uploads", "POST /v1/scores",
        "POST /v1/scores", "POST /v1/scores",
        "GET /v1/scores/k", "GET /v1/scores/k/image", "GET /v1/scores?user=ana", "POST /v1/scores/k/review",
        "GET /v1/labels", "GET /v1/models", "DELETE /v1/scores/d", "GET /v1/scores/u",
    ]  # fmt: skip
    assert BY_NAME.keys() - {call.name for call in calls(PROPS, readiness=False)} == {"GET readyz"}
    keys = {
        name: call.headers.get("Idempotency-Key") for name, call in BY_NAME.items() if call.method == "POST"
    }
    assert len(set(keys.values())) == len(keys) - 1
    assert [name for name, key in keys.items() if not key] == ["POST photo, once", "POST respond-async, once"]


@pytest.mark.parametrize(
    ("name", "status", "said", "expected"),
    [
        ("POST photo", 200, {"id": "1"}, ("1", hashlib.sha256(b"photo").hexdigest())),
        ("POST respond-async", 202, {"id": "2"}, ("2", hashlib.sha256(b"later").hexdigest())),
        ("POST key", 200, {"id": "3", "image": {"sha256": SHA}}, ("3", SHA)),
        ("photo by the queue", 200, {"id": "4", "image": {"sha256": SHA}}, ("4", SHA)),
        ("DELETE result", 204, {}, ("d", "")),
        ("POST photo", 503, {"id": "1"}, None),
        ("photo by the queue", 202, {"id": "4"}, None),
        ("GET result", 200, {"id": "k"}, None),
        ("POST photo, once", 503, {}, None),
    ],
)
def test_what_an_answer_promises(
    name: str, status: int, said: object, expected: tuple[str, str] | None
) -> None:
    found = promise("clinic", BY_NAME[name], Answer(status, "", 1.0, json.dumps(said).encode()), PROPS)
    assert found == (Promise("clinic", name, *expected) if expected else None)


RESULT = json.dumps({"image": {"sha256": SHA}}).encode()


@pytest.mark.parametrize(
    ("sha256", "answers", "broken"),
    [
        (SHA, [(200, RESULT), (200, b"kept")], ""),
        (SHA, [(202, b"{}"), (200, RESULT), (503, b"{}"), (200, b"kept")], ""),
        (SHA, [(200, RESULT), (200, b"another photo")], "another photo"),
        (SHA, [(200, json.dumps({"image": {"sha256": "0"}}).encode())], "the result of another photo"),
        (SHA, [(200, RESULT), (404, b'{"code": "not_found"}')], "no photo: 404 not_found"),
        (SHA, [(202, b"{}")], "no result: 202"),
        ("", [(503, b"{}"), (404, b"{}")], ""),
        ("", [(200, RESULT)], "not deleted: 200"),
    ],
)
def test_a_promise_is_kept_when_result_and_photo_are_there_or_the_result_is_gone(
    monkeypatch: pytest.MonkeyPatch, sha256: str, answers: list[tuple[int, bytes]], broken: str
) -> None:
    ask_for_long = Client.until_well

    async def ask_shortly(client: Client, call: Call) -> list[Answer]:
        return await ask_for_long(client, call, 0.2)

    monkeypatch.setattr(Client, "until_well", ask_shortly)

    async def story(client: Client) -> None:
        assert await Promise("clinic", "POST photo", "1", sha256).broken(client) == broken

    told(answers, story)


@pytest.mark.parametrize(
    ("status", "code", "text", "found"),
    [
        (200, "", "127.0.0.1 and SECRET are in a form", ()),
        (503, "images_unavailable", "The image store s3://bucket is slow.", ()),
        (500, "internal", "", ("unplanned: 500 internal",)),
        (503, "", "no healthy upstream", ("unplanned: 503",)),
        (503, "images_unavailable", "signed with SECRET", ("tells a secret",)),
        (503, "images_unavailable", "http://127.0.0.1:80/bucket", ("tells an endpoint or a path",)),
        (500, "", "Traceback", ("unplanned: 500", "tells an endpoint or a path")),
    ],
)
def test_what_no_answer_should_be(status: int, code: str, text: str, found: tuple[str, ...]) -> None:
    assert wrong(Answer(status, code, 1.0, text.encode()), ["SECRET"]) == found
