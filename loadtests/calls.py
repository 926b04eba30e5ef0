"""Every call of the HTTP contract as one tenant makes it: once, or until it is answered well."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from loadtests.photos import Photo
from loadtests.target import problem_code

PATIENCE_S: Final = 60.0
"""How long a call is repeated."""
POST_PHOTO, POST_KEY, POST_ASYNC = "POST photo", "POST key", "POST respond-async"
DELETE, BY_QUEUE = "DELETE result", "photo by the queue"
_ANY: Final = frozenset(range(600))
_PAUSE_S: Final = 0.1
_USER: Final = "ana"
_ENDPOINT_OR_PATH: Final = re.compile(r"127\.0\.0\.1|localhost|Traceback|\.py\b|/tmp|unix:")


@dataclass(frozen=True)
class Call:
    """A request that can be made again and again; ``well`` are the statuses that end that."""

    name: str
    method: str
    path: str
    well: frozenset[int] = frozenset({200})
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """What came back; where nothing did, ``status`` is 0 and ``code`` the kind of failure."""

    status: int
    code: str
    ms: float
    body: bytes = field(default=b"", repr=False)

    @property
    def words(self) -> str:
        """Status and code."""
        return f"{self.status or 'none'} {self.code}".strip()


@dataclass(frozen=True)
class Client:
    """One tenant's: its API key, and the service it calls."""

    tenant: str
    key: str = field(repr=False)
    session: aiohttp.ClientSession
    url: str

    async def ask(self, call: Call) -> Answer:
        """Make a call once."""
        headers = {"Authorization": f"Bearer {self.key}", **call.headers}
        start = time.perf_counter()
        try:
            async with self.session.request(
                call.method, self.url + call.path, data=call.body, headers=headers
            ) as answer:
                status, body = answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return Answer(0, type(error).__name__, (time.perf_counter() - start) * 1000)
        code = problem_code(body) if status >= 400 else ""
        return Answer(status, code, (time.perf_counter() - start) * 1000, body)

    async def until_well(self, call: Call, patience_s: float = PATIENCE_S) -> list[Answer]:
        """Make a call until it is answered well, or time is up: all answers, the first one first."""
        deadline = time.perf_counter() + patience_s
        answers = [await self.ask(call)]
        while answers[-1].status not in call.well and time.perf_counter() < deadline:
            await asyncio.sleep(_PAUSE_S)
            answers.append(await self.ask(call))
        return answers

    async def made(self, call: Call) -> Any:
        """What a call makes, as JSON.

        Raises:
            TimeoutError: it was not answered well in time.
        """
        answer = (await self.until_well(call))[-1]
        if answer.status not in call.well:
            raise TimeoutError(f"{call.name} was answered {answer.words} for {PATIENCE_S:.0f} s")
        return json.loads(answer.body)

    async def send(self, form: Mapping[str, Any], photo: bytes, bucket: str) -> None:
        """Send a photo by its form to ``bucket``, a URL.

        Raises:
            aiohttp.ClientError: it was not taken.
        """
        fields = aiohttp.FormData(form["fields"])
        fields.add_field("file", photo, filename="photo.jpg")
        async with self.session.post(bucket, data=fields) as answer:  # without our API key
            answer.raise_for_status()


@dataclass(frozen=True)
class Props:
    """What a round of calls is about, all of it made before.

    Attributes:
        photo: never sent before.
        later: another.
        forsaken: two more.
        kept: a result.
        doomed: the id of one to delete.
        form: for an upload.
    """

    photo: bytes
    later: bytes
    forsaken: tuple[bytes, bytes]
    kept: Mapping[str, Any]
    doomed: str
    form: Mapping[str, Any]

    @classmethod
    async def by(cls, client: Client, photo: Photo) -> Props:
        """New ones; TimeoutError where the service does not make them."""
        kept = await client.made(_photo(POST_PHOTO, photo.unique()))
        doomed = await client.made(_photo(POST_PHOTO, photo.unique()))
        form = await client.made(_upload(photo.unique()))
        forsaken = photo.unique(), photo.unique()
        return cls(photo.unique(), photo.unique(), forsaken, kept, doomed["id"], form)


def calls(props: Props, *, readiness: bool) -> tuple[Call, ...]:
    """One of each; the last asks for the result of the upload. ``readiness``: also what needs no API key."""
    kept = f"/v1/scores/{props.kept['id']}"
    by_key = {"key": props.kept["image"]["key"], "profile": {"user": _USER}}
    return (
        _photo(POST_PHOTO, props.photo),
        _json(POST_KEY, "/v1/scores", by_key),
        _upload(props.photo),
        _photo(POST_ASYNC, props.later, well=202, Prefer="respond-async"),
        _once("POST photo, once", props.forsaken[0]),
        _once("POST respond-async, once", props.forsaken[1], Prefer="respond-async"),
        Call("GET result", "GET", kept),
        Call("GET image", "GET", f"{kept}/image"),
        Call("GET diary", "GET", f"/v1/scores?user={_USER}"),
        _json("POST review", f"{kept}/review", {"score": 3}),
        Call("GET labels", "GET", "/v1/labels"),
        Call("GET models", "GET", "/v1/models"),
        *((Call("GET readyz", "GET", "/readyz"),) if readiness else ()),
        # 404 to a repetition: one before has deleted it, whatever it was answered.
        Call(DELETE, "DELETE", f"/v1/scores/{props.doomed}", frozenset({204, 404})),
        Call(BY_QUEUE, "GET", f"/v1/scores/{props.form['id']}"),
    )


def _once(name: str, photo: bytes, **headers: str) -> Call:
    """Of a client that never asks again: what is left of its photo is for the service to clear away."""
    return Call(name, "POST", "/v1/scores", _ANY, {"Content-Type": "image/jpeg", **headers}, photo)


def _photo(name: str, photo: bytes, *, well: int = 200, **headers: str) -> Call:
    own = {"Content-Type": "image/jpeg", "Idempotency-Key": uuid.uuid4().hex, **headers}
    return Call(name, "POST", "/v1/scores", frozenset({well}), own, photo)


def _json(name: str, path: str, body: Mapping[str, Any], *, well: int = 200) -> Call:
    own = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
    return Call(name, "POST", path, frozenset({well}), own, json.dumps(body).encode())


def _upload(photo: bytes) -> Call:
    asked = {"media_type": "image/jpeg", "bytes": len(photo)}
    return _json("POST uploads", "/v1/uploads", asked, well=201)


@dataclass(frozen=True)
class Promise:
    """What a good answer promises: a result and its photo; without a hash, that there is no such result."""

    tenant: str
    call: str
    result_id: str
    sha256: str = ""

    async def broken(self, client: Client) -> str:
        """What there is instead, "" where the promise is kept: now or in a while, for work may be put off."""
        path = f"/v1/scores/{self.result_id}"
        if not self.sha256:
            gone = Call(self.call, "GET", path, frozenset({404}))
            last = (await client.until_well(gone))[-1]
            return "" if last.status in gone.well else f"not deleted: {last.words}"
        result, image = Call(self.call, "GET", path), Call(self.call, "GET", f"{path}/image")
        found = (await client.until_well(result))[-1]
        if found.status not in result.well:
            return f"no result: {found.words}"
        if json.loads(found.body)["image"]["sha256"] != self.sha256:
            return "the result of another photo"
        photo = (await client.until_well(image))[-1]
        if photo.status not in image.well:
            return f"no photo: {photo.words}"
        return "" if _sha256(photo.body) == self.sha256 else "another photo"


def promise(tenant: str, call: Call, answer: Answer, props: Props) -> Promise | None:
    """What an answer promises, if anything."""
    if answer.status not in call.well:
        return None
    if call.name == DELETE:
        return Promise(tenant, call.name, props.doomed)
    if call.name not in {POST_PHOTO, POST_KEY, POST_ASYNC, BY_QUEUE}:
        return None
    said = json.loads(answer.body)
    sha256 = _sha256(call.body or b"") if call.name in {POST_PHOTO, POST_ASYNC} else said["image"]["sha256"]
    return Promise(tenant, call.name, said["id"], sha256)


def _sha256(photo: bytes) -> str:
    return hashlib.sha256(photo).hexdigest()


def wrong(answer: Answer, secrets: Iterable[str]) -> tuple[str, ...]:
    """What no answer should be, whatever failed: unplanned, or telling what is nobody's business.

    Args:
        answer: to look at.
        secrets: what no problem's text may hold.
    """
    found = []
    if answer.status in {0, 500} or (answer.status >= 400 and not answer.code):
        found.append(f"unplanned: {answer.words}")
    text = answer.body.decode(errors="replace") if answer.status >= 400 else ""
    if any(secret in text for secret in secrets):
        found.append("tells a secret")
    if _ENDPOINT_OR_PATH.search(text):
        found.append("tells an endpoint or a path")
    return tuple(found)
