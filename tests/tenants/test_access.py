"""Who may call now: known at once, looked up where not, and counted."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.errors import ResultsUnavailable, Unauthenticated
from app.stores.tenants import Allowance
from app.tenants.access import Access
from app.tenants.tenants import Limits, Tenant

FIRST, KEY, WRONG = ("fdx_the-key-of-the-first-start", "fdx_a-key-that-is-long-enough", "fdx_nobodys-key")


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Memory:
    """A store that is a list, or away."""

    def __init__(self, *tenants: Tenant) -> None:
        self.tenants = list(tenants)
        self.away = False
        self.asked = 0
        self.counted: list[str] = []

    async def all(self) -> list[Tenant]:
        self.asked += 1
        if self.away:
            raise ResultsUnavailable
        return self.tenants

    async def admit(self, tenant_id: str, limits: Limits) -> Allowance | None:
        self.counted.append(tenant_id)
        return Allowance(True, 5, 4, 1.0) if limits.any else None


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def caller(access: Access, key: str) -> str:
    return (await access.enter(f"Bearer {key}"))[0].id


@in_loop
async def test_the_first_tenant_needs_no_store(clock):
    store = Memory()
    store.away = True
    assert await caller(Access(Tenant.first(FIRST), store, clock), FIRST) == "default"
    assert store.asked == 0


@in_loop
async def test_a_tenant_that_was_just_added_is_found(clock):
    store = Memory()
    access = Access(Tenant.first(FIRST), store, clock)
    await access.refresh()
    store.tenants.append(Tenant.first(KEY, "clinic"))
    clock.now += 1
    assert await caller(access, KEY) == "clinic"
    assert await caller(access, FIRST) == "default"
    assert store.counted == ["clinic", "default"]


@in_loop
async def test_guessing_does_not_keep_the_store_busy(clock):
    store = Memory()
    access = Access(Tenant.first(FIRST), store, clock)
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            await caller(access, WRONG)
    assert store.asked == 1
    with pytest.raises(Unauthenticated):
        await access.enter(None)
    assert store.asked == 1


@in_loop
async def test_without_the_store_known_tenants_go_on_and_nobody_is_told_a_lie(clock):
    store = Memory(Tenant.first(KEY, "clinic"))
    access = Access(Tenant.first(FIRST), store, clock)
    store.away = True
    with pytest.raises(ResultsUnavailable):
        await caller(access, KEY)
    store.away = False
    await access.refresh()
    store.away = True
    await access.refresh()
    assert await caller(access, KEY) == "clinic"
    with pytest.raises(Unauthenticated):
        await caller(access, WRONG)


@in_loop
async def test_a_disabled_tenant_is_refused_after_the_next_look(clock):
    store = Memory(Tenant.first(KEY, "clinic"))
    access = Access(Tenant.first(FIRST), store, clock)
    await access.refresh()
    store.tenants[0] = store.tenants[0].model_copy(update={"disabled": True})
    assert await caller(access, KEY) == "clinic"
    await access.refresh()
    with pytest.raises(Unauthenticated):
        await caller(access, KEY)


@in_loop
async def test_the_first_tenant_cannot_be_replaced_from_the_store(clock):
    access = Access(Tenant.first(FIRST), Memory(Tenant.first(KEY, "default")), clock)
    await access.refresh()
    assert await caller(access, FIRST) == "default"
    with pytest.raises(Unauthenticated):
        await caller(access, KEY)
