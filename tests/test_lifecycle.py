"""Any order of scoring, repeating, failing, deleting, crashing and sweeping, against a simple model.

After every step each acknowledged, undeleted result is readable and its photo exists, and there is no other
result. After a sweep there is no other photo either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from app.errors import IdempotencyKeyReused, NotFound, TruncatedImage
from app.messages import PhotoJob
from app.schemas import Result
from tests.conftest import Local
from tests.rooms import Tenant, crash, meal

T = TypeVar("T")
numbers = st.integers(0, 2)
users = st.sampled_from([None, "ann", "bob"])
keys = st.sampled_from([None, "k1", "k2"])


class Lifecycle(RuleBasedStateMachine):
    """One tenant's results, and the model of them.

    Attributes:
        model: the results that must be there, by id.
        keyed: what each Idempotency-Key was used for, and the id it led to.
        crashed: photos that a crash may have left.
    """

    ids = Bundle("ids")

    def __init__(self, make_local: Callable[..., Local], url: str) -> None:
        super().__init__()
        self.url = url
        self.runner = asyncio.Runner()
        self.me = self.runner.run(self._arrive(make_local))
        self.records = self.me.service.records
        self.model: dict[str, Result] = {}
        self.keyed: dict[str, tuple[int, str | None, str]] = {}
        self.crashed: set[str] = set()

    async def _arrive(self, make_local: Callable[..., Local]) -> Tenant:
        return Tenant(make_local(budget_ms=60_000))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, and wait for the clean-up it may leave to the background."""

        async def to_the_end() -> T:
            try:
                return await work
            finally:
                await self.me.service.pipeline.drained()

        return self.runner.run(to_the_end())

    def kept(self) -> set[str]:
        return self.run(self.me.kept(self.url))

    def teardown(self) -> None:
        self.run(self.me.service.close())
        self.runner.close()

    @rule(target=ids, number=numbers, user=users, key=keys)
    def score(self, number: int, user: str | None, key: str | None):
        scored = self.me.score(meal(number), key, user=user)
        used = self.keyed.get(key)
        if used and used[:2] != (number, user):
            with pytest.raises(IdempotencyKeyReused):
                self.run(scored)
            return multiple()
        if used and used[2] not in self.model:
            with pytest.raises(NotFound):
                self.run(scored)
            return multiple()
        result = self.run(scored)
        if used:
            assert result == self.model[used[2]]
            return multiple()
        assert result.duplicate_of is None or result.duplicate_of in self.model
        return self._acknowledged(result, number, key)

    def _acknowledged(self, result: Result, number: int, key: str | None) -> str:
        assert result.id not in self.model
        self.model[result.id] = result
        if key:
            self.keyed[key] = (number, result.user, result.id)
        return result.id

    @rule(target=ids, photos=st.lists(st.tuples(numbers, users), min_size=2, max_size=5))
    def score_at_once(self, photos: list[tuple[int, str | None]]):
        async def all_of_them() -> list[Result]:
            return await asyncio.gather(*(self.me.score(meal(n), user=user) for n, user in photos))

        results = self.run(all_of_them())
        return multiple(*(self._acknowledged(r, n, None) for r, (n, _) in zip(results, photos, strict=True)))

    @rule(target=ids, number=numbers, user=users, key=keys, goes_away=st.booleans())
    def fail(self, number: int, user: str | None, key: str | None, goes_away: bool):
        """The photo cannot be scored, or its client is gone by then. One that is known needs no scoring."""

        async def before(_: PhotoJob) -> None:
            if not goes_away:
                raise TruncatedImage
            request.cancel()

        async def attempt() -> None:
            nonlocal request
            request = asyncio.create_task(self.me.score(meal(number), key, user=user))
            await asyncio.wait([request])

        request: asyncio.Task[Result]
        if key in self.keyed:
            return multiple()
        self.me.scorer.before = before
        self.run(attempt())
        self.me.scorer.before = None
        if request.cancelled() or request.exception():
            assert request.cancelled() == goes_away
            return multiple()
        return self._acknowledged(request.result(), number, key)

    @rule(result_id=ids)
    def delete(self, result_id: str) -> None:
        deletion = self.records.delete(self.me.name, result_id)
        if self.model.pop(result_id, None):
            self.run(deletion)
        else:
            with pytest.raises(NotFound):
                self.run(deletion)

    @rule(user=st.sampled_from(["ann", "bob"]))
    def delete_user(self, user: str) -> None:
        self.run(self.records.delete_user(self.me.name, user))
        self.model = {result_id: r for result_id, r in self.model.items() if r.user != user}

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        self.run(crash(self.me, self.url, meal(number)))
        self.crashed.add(self.me.photo(meal(number)).sha256)

    @rule()
    def sweep(self) -> None:
        self.run(self.records.sweep(self.me.name))
        self.crashed.clear()

    @invariant()
    def every_result_is_there_and_no_other(self) -> None:
        kept = self.kept()
        assert {key.removeprefix("result:") for key in kept if key.startswith("result:")} == set(self.model)
        for result_id, result in self.model.items():
            assert self.run(self.records.get(self.me.name, result_id)) == result
        assert not [key for key in kept if key.startswith("claim:")]
        assert ("pending" in kept) <= bool(self.crashed)

    @invariant()
    def every_result_has_its_photo_and_no_other_photo_is_there(self) -> None:
        photos, expected = self.me.photos(), {result.image.sha256 for result in self.model.values()}
        assert expected <= photos <= expected | self.crashed

    @invariant()
    def every_diary_holds_its_users_results(self) -> None:
        for user in ("ann", "bob"):
            diary = self.run(self.records.diary(self.me.name, user, None, 1000, ZoneInfo("UTC")))
            expected = [result for _, result in sorted(self.model.items()) if result.user == user]
            assert list(diary.items) == expected[::-1]


def test_any_order_of_events(make_local, store, monkeypatch):
    monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(0))
    run_state_machine_as_test(
        lambda: Lifecycle(make_local, store.url),
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None, print_blob=True),
    )
