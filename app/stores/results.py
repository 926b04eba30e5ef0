"""Results, diary, dedupe, idempotency, reviews and labels, over the Redis protocol.

All keys of a tenant share one hash tag, so that a script touches one slot of a cluster:

==================================  ======  ==============================================================
key (after ``fooddx:{tenant}:``)    type    holds
==================================  ======  ==============================================================
``result:<id>``                     string  the result as JSON, exactly as it was answered
``seen:<sha256>``                   hash    model revision → analysis of a photo, for reuse (expires)
``claim:<sha256>``                  string  who is storing, scoring or deleting this photo now (expires)
``refs:<sha256>``                   set     ids of the results that rest on this photo
``pending``                         zset    photos with a claim, by time: what a crash may have left
``idem:<key>``                      hash    fingerprint and token of a request, then its id (expires)
``diary:<user>``                    zset    ids of a user's results (UUIDv7: by name is by time)
``tip:<user>``                      string  id of the user's last tip
``reviews``                         zset    ids of results that wait for a nutritionist
``labels``                          zset    ids of results that a nutritionist has reviewed, by time
``job:<id>``                        string  a photo that waits for the intake, or why it failed (expires)
``object:<digest>``                 string  id of the result of an object in a bucket (expires)
==================================  ======  ==============================================================

What changes several keys is a Lua script beside this file: one round trip, all or nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, cast

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, ReadOnlyError

from app.errors import ResultsUnavailable
from app.grouping import Bounds, Grouping
from app.stores.connection import connect, reachable
from app.stores.tenants import Tenants

_SCRIPTS: Final = ("begin", "finish", "abandon", "release", "delete", "adopt", "review")
# Scripts that one round trip carries, how many such are open, and how many scripts may wait. Two, so that one
# which hangs does not stop all.
_GROUP: Final = 32
_CALLS: Final = 2
_WAITING_CALLS: Final = 4096
# How long whoever deletes a photo keeps others from storing it again, should they die meanwhile.
_CLEANUP_MS: Final = 10_000
# As long as an upload that nobody claimed is kept, see docs/aws/template.yaml: longer than any message lives.
_WAITING: Final = timedelta(days=15)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request's hold on one photo.

    Attributes:
        tenant: whose photo it is.
        sha256: the photo, hex.
        revision: models and thresholds that will judge it.
        token: a name for this request that no other has.
        idempotency_key: the client's key, or None.
        fingerprint: digest of everything the request asks for; "" without an idempotency key.
    """

    tenant: str
    sha256: str
    revision: str
    token: str
    idempotency_key: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """What begin found.

    ``claimed``: score it. ``seen``: ``value`` is the stored analysis. ``busy``: another request is scoring
    this photo; ask again. ``replay``: ``value`` is the id answered before. ``in_flight``: ``value`` is the
    milliseconds until the first request with this key gives up. ``reused``: the key came with other content.
    """

    kind: Literal["claimed", "seen", "busy", "replay", "in_flight", "reused"]
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """A result ready to be written, in two wordings: the second is used if its first tip was the user's last.

    Attributes:
        id: of the result, UUIDv7.
        user: whose diary it belongs to, or None.
        analysis: what a duplicate may reuse, JSON; None when this result itself reuses one.
        needs_review: put it in the review queue.
        tips: id of the first and the second tip, "" for none.
        bodies: the result as JSON with the first and with the second tip.
    """

    id: str
    user: str | None
    analysis: bytes | None
    needs_review: bool
    tips: tuple[str, str]
    bodies: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Run:
    """One script, with what it runs on."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int]


class ResultStore:
    """The results of all tenants. Any failure of the server is ResultsUnavailable, in about a second.

    Attributes:
        tenants: who they are, in the same store.
    """

    def __init__(self, url: str, *, dedupe_ms: int, idempotency_ms: int, claim_ms: int) -> None:
        self._client = connect(url)
        self._dedupe_ms = dedupe_ms
        self._idempotency_ms = idempotency_ms
        self._claim_ms = claim_ms
        folder = Path(__file__).parent
        self.tenants = Tenants(self._client)
        # In a group the round trip, and what it costs redis-py, is shared; a cluster's had to be split again.
        items = 1 if isinstance(self._client, RedisCluster) else _GROUP
        bounds = Bounds(calls=_CALLS * _GROUP // items, items=items, nbytes=_GROUP, waiting=_WAITING_CALLS)
        self._grouped: Grouping[_Run, list[bytes] | Exception] = Grouping(self._send, bounds, lambda _: 1)
        self._scripts = {n: self._client.register_script((folder / f"{n}.lua").read_text()) for n in _SCRIPTS}

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()

    async def ping(self) -> None:
        """Raise ResultsUnavailable unless the server answers and takes writes."""
        async with reachable():
            await self._client.set("fooddx:ready", b"1")

    async def begin(self, ticket: Ticket) -> Begun:
        """Look the request and the photo up, and claim the photo if nobody has scored it or is scoring it."""
        key = _keys(ticket.tenant)
        answer = await self._run(
            "begin",
            [
                key.idem(ticket.idempotency_key),
                key.seen(ticket.sha256),
                key.claim(ticket.sha256),
                key.pending,
            ],
            [ticket.token, ticket.fingerprint, ticket.revision, ticket.sha256, self._claim_ms],
        )
        return Begun(cast(Any, answer[0].decode()), answer[1] if len(answer) > 1 else b"")

    async def finish(
        self, ticket: Ticket, record: Record
    ) -> tuple[Literal["written", "gone", "lost"], bytes]:
        """Write a result and everything that belongs to it, at once.

        Returns:
            ``written`` and the result as it was written; ``gone`` when the analysis it reuses was deleted
            meanwhile (begin again); ``lost`` when the claim ran out.
        """
        key = _keys(ticket.tenant)
        sha = ticket.sha256
        answer = await self._run(
            "finish",
            [
                key.result(record.id), key.seen(sha), key.claim(sha), key.refs(sha), key.pending,
                key.idem(ticket.idempotency_key), key.diary(record.user), key.tip(record.user), key.reviews,
            ],
            [
                ticket.token, record.id, sha, ticket.revision, record.analysis or b"", self._dedupe_ms,
                ticket.fingerprint, self._idempotency_ms, record.user or "",
                "1" if record.needs_review else "",
                record.tips[0], record.bodies[0], record.tips[1], record.bodies[1],
            ],
        )  # fmt: skip
        return cast(Any, answer[0].decode()), answer[1] if len(answer) > 1 else b""

    async def abandon(self, ticket: Ticket) -> str | None:
        """Give up what a request that fails has claimed, if anything: the photo, its Idempotency-Key.

        Returns:
            None, or the token of the claim: the caller must now delete the photo, stored or not, and then
            call release with it.
        """
        key = _keys(ticket.tenant)
        sha = ticket.sha256
        keys = [key.idem(ticket.idempotency_key), key.claim(sha), key.refs(sha), key.pending]
        answer = await self._run("abandon", keys, [ticket.token, sha, _CLEANUP_MS])
        return answer[1].decode() if answer[0] == b"orphan" else None

    async def release(self, tenant: str, sha256: str, token: str, *, look_again: bool = False) -> None:
        """Let go of a claim that was kept while a photo was deleted; ``look_again``: the sweep is to, too."""
        key = _keys(tenant)
        await self._run(
            "release", [key.claim(sha256), key.pending], [token, sha256, "1" if look_again else ""]
        )

    async def delete(
        self, tenant: str, result_id: str, sha256: str, token: str, user: str | None, *, photo_gone: bool
    ) -> Literal["missing", "busy", "photo", "deleted"]:
        """Delete a result, in two calls when its photo goes with it.

        An Idempotency-Key that led to it stays known until it expires, and answers NotFound.

        Returns:
            ``photo``: nothing else rests on the photo, delete it and call again with ``photo_gone``, soon;
            ``deleted``; ``busy``: somebody is at work on this photo, ask again; ``missing``.
        """
        key = _keys(tenant)
        keys = [
            key.result(result_id), key.refs(sha256), key.seen(sha256), key.claim(sha256), key.pending,
            key.diary(user), key.reviews, key.labels,
        ]  # fmt: skip
        args: list[str | int] = [result_id, sha256, token, _CLEANUP_MS, "1" if photo_gone else ""]
        outcome: Literal["missing", "busy", "photo", "deleted"]
        outcome = cast(Any, (await self._run("delete", keys, args))[0].decode())
        return outcome

    async def forget_entry(self, tenant: str, user: str, result_id: str) -> None:
        """Take an id off a diary whose result is gone."""
        async with reachable():
            await self._client.zrem(_keys(tenant).diary(user), result_id)

    async def forget_user(self, tenant: str, user: str) -> None:
        """Delete what is kept of a user beside their results; an empty diary is gone by itself."""
        async with reachable():
            await self._client.delete(_keys(tenant).tip(user))

    async def stale_claims(self, tenant: str, before: datetime, limit: int = 100) -> list[str]:
        """Photos claimed before ``before`` and never finished."""
        key = _keys(tenant).pending
        return await self._members(key, "-inf", str(before.timestamp()), limit, byscore=True)

    async def adopt(self, tenant: str, sha256: str, token: str) -> bool:
        """Take over a stale claim; True when the caller must delete the photo and then call release."""
        key = _keys(tenant)
        answer = await self._run(
            "adopt", [key.claim(sha256), key.refs(sha256), key.pending], [token, sha256, _CLEANUP_MS]
        )
        return answer[0] == b"orphan"

    async def get(self, tenant: str, result_id: str) -> bytes | None:
        """A result as JSON, or None."""
        async with reachable():
            return cast("bytes | None", await self._client.get(_keys(tenant).result(result_id)))

    async def find(self, tenant: str, result_id: str) -> tuple[bytes | None, bytes | None]:
        """A result, and what waits to become it: each as JSON, or None."""
        key = _keys(tenant)
        async with reachable():
            found = cast(
                "list[bytes | None]", await self._client.mget([key.result(result_id), key.job(result_id)])
            )
        return found[0], found[1]

    async def put_job(self, tenant: str, result_id: str, job: bytes) -> None:
        """Keep what is known of a photo that has no result yet."""
        async with reachable():
            await self._client.set(_keys(tenant).job(result_id), job, ex=_WAITING)

    async def forget_job(self, tenant: str, result_id: str) -> None:
        """Nothing waits for this result any more."""
        async with reachable():
            await self._client.delete(_keys(tenant).job(result_id))

    async def first_of(self, tenant: str, digest: str, value: str) -> str:
        """What was first kept under ``digest``: ``value`` itself, or what somebody kept before."""
        async with reachable():
            # In one step, so that of two who come at once both get the same.
            kept = cast(
                "bytes | None",
                await self._client.set(_keys(tenant).object(digest), value, nx=True, get=True, ex=_WAITING),
            )
        return value if kept is None else kept.decode()

    async def get_many(self, tenant: str, result_ids: Sequence[str]) -> list[bytes]:
        """Results in the order of their ids; those deleted meanwhile are left out."""
        if not result_ids:
            return []
        key = _keys(tenant)
        async with reachable():
            found = cast(
                "list[bytes | None]",
                await self._client.mget([key.result(result_id) for result_id in result_ids]),
            )
        return [body for body in found if body is not None]

    async def diary(self, tenant: str, user: str, before: str | None, limit: int) -> list[str]:
        """Ids of a user's results, newest first, older than the id ``before``."""
        start = f"({before}" if before else "+"
        return await self._members(_keys(tenant).diary(user), start, "-", limit, bylex=True, desc=True)

    async def diary_between(self, tenant: str, user: str, start: datetime, end: datetime) -> list[str]:
        """Ids of a user's results from ``start`` on and before ``end``."""
        first, last = f"[{id_floor(start)}", f"({id_floor(end)}"
        return await self._members(_keys(tenant).diary(user), first, last, -1, bylex=True)

    async def reviews(self, tenant: str, after: str | None, limit: int) -> list[str]:
        """Ids of results that wait for a review, oldest first, newer than the id ``after``."""
        start = f"({after}" if after else "-"
        return await self._members(_keys(tenant).reviews, start, "+", limit, bylex=True)

    async def reviewed(self, tenant: str, result_id: str, body: bytes) -> bool:
        """Replace a result by its reviewed form, which is a label from then on; False if it is gone."""
        key = _keys(tenant)
        keys = [key.result(result_id), key.reviews, key.labels]
        answer = await self._run("review", keys, [result_id, body])
        return answer[0] == b"written"

    async def labels(self, tenant: str, after: int, limit: int) -> list[tuple[str, int]]:
        """Ids of reviewed results in the order of their last review, those past the place ``after``.

        Returns:
            Each id with its place, a positive number that no other label has: see review.lua.
        """
        async with reachable():
            found = await self._client.zrange(
                _keys(tenant).labels, f"({after}", "+inf",
                byscore=True, offset=0, num=limit, withscores=True,
            )  # fmt: skip
        return [(member.decode(), int(place)) for member, place in cast("list[tuple[bytes, float]]", found)]

    async def _members(self, key: str, start: str, end: str, limit: int, **order: bool) -> list[str]:
        """Members of a sorted set; ``limit`` -1 for all."""
        async with reachable():
            found = await self._client.zrange(key, start, end, offset=0, num=limit, **order)  # type: ignore[arg-type]
        return [member.decode() for member in cast("list[bytes]", found)]

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> list[bytes]:
        async with reachable():
            answer = await self._grouped(_Run(name, keys, args))
        if isinstance(answer, Exception):
            raise ResultsUnavailable(retry_after_s=1) from answer
        return answer

    async def _send(self, runs: Sequence[_Run]) -> list[list[bytes] | Exception]:
        """Run scripts in one round trip, each for itself."""
        if len(runs) == 1:
            return [await self._alone(runs[0])]
        pipe = self._client.pipeline(transaction=False)
        for run in runs:
            pipe.evalsha(self._scripts[run.script].sha, len(run.keys), *run.keys, *run.args)
        answers = await pipe.execute(raise_on_error=False)
        # A server that was restarted knows no scripts, and one that was demoted takes no writes. Alone, a
        # script is sent again where the first is so, and over another connection where the second is.
        return [
            await self._alone(run) if isinstance(answer, NoScriptError | ReadOnlyError) else answer
            for run, answer in zip(runs, answers, strict=True)
        ]

    async def _alone(self, run: _Run) -> list[bytes]:
        return cast("list[bytes]", await self._scripts[run.script](keys=run.keys, args=run.args))


def id_floor(moment: datetime) -> str:
    """The least UUIDv7 of a moment (RFC 9562: its first 48 bits are Unix milliseconds)."""
    return str(uuid.UUID(int=(moment - _EPOCH) // timedelta(milliseconds=1) << 80))


@dataclass(frozen=True, slots=True)
class _keys:  # noqa: N801 - reads as a function at every use
    tenant: str

    def _key(self, *parts: str) -> str:
        return ":".join((f"fooddx:{{{self.tenant}}}", *parts))

    def result(self, result_id: str) -> str:
        return self._key("result", result_id)

    def seen(self, sha256: str) -> str:
        return self._key("seen", sha256)

    def claim(self, sha256: str) -> str:
        return self._key("claim", sha256)

    def refs(self, sha256: str) -> str:
        return self._key("refs", sha256)

    def idem(self, key: str | None) -> str:
        return self._key("idem", key or "")

    def job(self, result_id: str) -> str:
        return self._key("job", result_id)

    def object(self, digest: str) -> str:
        return self._key("object", digest)

    def diary(self, user: str | None) -> str:
        return self._key("diary", user or "")

    def tip(self, user: str | None) -> str:
        return self._key("tip", user or "")

    @property
    def pending(self) -> str:
        return self._key("pending")

    @property
    def reviews(self) -> str:
        return self._key("reviews")

    @property
    def labels(self) -> str:
        return self._key("labels")
