"""The short way in of ``POST /v1/scores`` against the way through FastAPI: the same answers to anything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api
from tests.photos import coffee_jpeg

# What differs from one request to the next.
VARYING = {"id", "created_at", "request_id", "x-request-id", "server-timing", "content-length", "key"}
PHOTO = coffee_jpeg(320, 240)
_names = itertools.count()


def raw(api: Api, **headers: str) -> httpx.Response:
    return api.score(PHOTO + str(next(_names)).encode(), headers=headers)


CASES: dict[str, Callable[[Api], httpx.Response]] = {
    "a photo": raw,
    "a form with a profile": lambda api: api.post(
        "/v1/scores",
        files={"image": PHOTO + str(next(_names)).encode()},
        data={"profile": json.dumps({"user": "ana", "goals": ["less-sugar"]})},
    ),
    "a form without a photo": lambda api: api.post("/v1/scores", data={"profile": "{}"}),
    "no key": lambda api: raw(api, Authorization=""),
    "somebody's key": lambda api: raw(api, Authorization="Bearer fdx_nobody"),
    "an Idempotency-Key": lambda api: raw(api, **{"Idempotency-Key": f"key-{next(_names)}"}),
    "an Idempotency-Key that is none": lambda api: raw(api, **{"Idempotency-Key": "a b"}),
    "a budget that is none": lambda api: raw(api, **{"X-Budget-Ms": "soon"}),
    "a budget of a millisecond": lambda api: raw(api, **{"X-Budget-Ms": "1"}),
    "respond-async without a queue": lambda api: raw(api, Prefer="respond-async"),
    "a request id": lambda api: raw(api, **{"X-Request-Id": "mine"}),
    "no photo": lambda api: api.score(b"not a photo"),
    "nothing": lambda api: api.score(b""),
    "a photo cut short": lambda api: api.score(PHOTO[:3000]),
    "a key of nothing": lambda api: api.post("/v1/scores", json={"key": "default/aa/none"}),
    "JSON that is none": lambda api: api.post(
        "/v1/scores", content=b"{", headers={"Content-Type": "application/json"}
    ),
    "too many bytes": lambda api: api.score(b"\xff\xd8\xff" + bytes(17 * 2**20)),
}


def plain(value: Any) -> Any:
    """Without what differs, however deep."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name.lower() not in VARYING | {"sha256"}}
    return value


@pytest.mark.parametrize("name", CASES)
def test_both_ways_answer_alike(api: Api, name: str) -> None:
    short = CASES[name](api)
    way, api.app._short = api.app._short, None  # type: ignore[attr-defined]
    assert way is not None
    long = CASES[name](api)
    assert short.status_code == long.status_code
    assert plain(dict(short.headers)) == plain(dict(long.headers))
    assert set(short.headers) == set(long.headers)
    assert plain(short.json()).keys() == plain(long.json()).keys()
    assert plain(short.json()).get("code") == plain(long.json()).get("code")
    assert plain(short.json()).get("detail") == plain(long.json()).get("detail")


def test_what_nobody_planned_for_is_a_problem_here_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(api.local.service.pipeline), "run", broken)
    answer = raw(api)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_paths_and_methods_go_the_long_way(api: Api) -> None:
    assert api.request("PUT", "/v1/scores").status_code == 405
    assert api.post("/v1/scores/").status_code == 404
    assert api.get("/v1/scores?user=ana").status_code == 200
