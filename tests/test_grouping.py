"""Grouping, with calls that end when the test says so."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Overloaded
from app.grouping import Bounds, Grouping


class Receiver:
    """Takes groups, and answers each when it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self._gates: list[asyncio.Event] = []

    async def __call__(self, items: list[int]) -> list[str]:
        self.groups.append(items)
        self._gates.append(asyncio.Event())
        try:
            await self._gates[-1].wait()
        except asyncio.CancelledError:
            self.cancelled.append(items)
            raise
        return [f"{item}!" for item in items]

    def let_go(self, call: int) -> None:
        self._gates[call].set()


def bounds(calls: int = 1, items: int = 8, nbytes: int = 1000, waiting: int = 100) -> Bounds:
    return Bounds(calls, items, nbytes, waiting)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 10))  # type: ignore[arg-type]


def test_one_leaves_at_once_and_those_who_wait_leave_together() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(), lambda _: 1)
        first = asyncio.create_task(send(0))
        await settled()
        assert receiver.groups == [[0]]
        later = [asyncio.create_task(send(item)) for item in (1, 2, 3)]
        await settled()
        assert receiver.groups == [[0]]
        assert len(send) == 4
        receiver.let_go(0)
        await settled()
        assert receiver.groups == [[0], [1, 2, 3]]
        receiver.let_go(1)
        assert await first == "0!"
        assert await asyncio.gather(*later) == ["1!", "2!", "3!"]
        assert len(send) == 0

    play(story)


def test_who_comes_in_the_same_moment_goes_along() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(), lambda _: 1)
        tasks = [asyncio.create_task(send(item)) for item in range(3)]
        await settled()
        assert receiver.groups == [[0, 1, 2]]
        receiver.let_go(0)
        await asyncio.gather(*tasks)

    play(story)


def test_a_group_is_bounded_by_its_bytes_and_a_large_item_goes_alone() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(calls=9, nbytes=10), lambda item: item)
        tasks = [asyncio.create_task(send(item)) for item in (4, 6, 1, 99, 2, 3)]
        await settled()
        assert receiver.groups == [[4, 6], [1], [99], [2, 3]]
        for call in range(4):
            receiver.let_go(call)
        await asyncio.gather(*tasks)

    play(story)


def test_a_failed_call_is_everybodys_in_it_and_nobody_elses() -> None:
    async def fails_for_odd(items: list[int]) -> Sequence[int]:
        if items[0] % 2:
            raise ConnectionError("gone")
        return items

    async def story() -> None:
        send = Grouping(fails_for_odd, bounds(calls=2, items=1), lambda _: 1)
        outcomes = await asyncio.gather(*map(send, range(5)), return_exceptions=True)
        assert [isinstance(outcome, ConnectionError) for outcome in outcomes] == [0, 1, 0, 1, 0]
        assert await send(2) == 2

    play(story)


def test_a_receiver_that_loses_an_outcome_is_an_error_and_no_wait_without_end() -> None:
    async def loses(items: list[int]) -> Sequence[int]:
        return items[1:]

    async def story() -> None:
        outcomes = await asyncio.gather(
            *map(Grouping(loses, bounds(), lambda _: 1), (1, 2)), return_exceptions=True
        )
        assert any(isinstance(outcome, ValueError) for outcome in outcomes)

    play(story)


def test_who_gives_up_before_leaving_takes_it_back() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(), lambda _: 1)
        first, second, third = (asyncio.create_task(send(item)) for item in range(3))
        await settled()
        assert receiver.groups == [[0, 1, 2]]
        fourth, fifth = (asyncio.create_task(send(item)) for item in (3, 4))
        await settled()
        fourth.cancel()
        await settled()
        receiver.let_go(0)
        await settled()
        assert receiver.groups[1] == [4]
        receiver.let_go(1)
        assert await asyncio.gather(first, second, third, fifth) == ["0!", "1!", "2!", "4!"]

    play(story)


def test_a_call_is_cancelled_when_the_last_one_in_it_has_given_up() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(), lambda _: 1)
        first, second = (asyncio.create_task(send(item)) for item in range(2))
        await settled()
        first.cancel()
        await settled()
        assert receiver.cancelled == []
        second.cancel()
        await settled()
        assert receiver.cancelled == [[0, 1]]
        third = asyncio.create_task(send(2))
        await settled()
        receiver.let_go(1)
        assert await third == "2!", "its place is free again"

    play(story)


def test_too_many_that_wait_are_refused() -> None:
    async def story() -> None:
        receiver = Receiver()
        send = Grouping(receiver, bounds(waiting=2), lambda _: 1)
        first = asyncio.create_task(send(0))
        await settled()
        later = [asyncio.create_task(send(item)) for item in (1, 2)]
        await settled()
        with pytest.raises(Overloaded):
            await send(3)
        receiver.let_go(0)
        await settled()
        receiver.let_go(1)
        await asyncio.gather(first, *later)

    play(story)


def test_a_call_is_made_in_no_ones_context() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    async def note(items: list[int]) -> list[int]:
        seen.append(request.get())
        return items

    async def story() -> None:
        request.set("of the first")
        await Grouping(note, bounds(), lambda _: 1)(1)

    play(story)
    assert seen == ["none"]


@given(
    sizes=st.lists(st.integers(1, 12), max_size=60),
    calls=st.integers(1, 4),
    items=st.integers(1, 7),
    nbytes=st.integers(1, 20),
)
def test_everybody_gets_their_own_outcome_and_no_bound_is_passed(
    sizes: list[int], calls: int, items: int, nbytes: int
) -> None:
    open_calls = 0

    async def call(group: list[tuple[int, int]]) -> list[int]:
        nonlocal open_calls
        open_calls += 1
        assert open_calls <= calls
        assert 1 <= len(group) <= items
        assert len(group) == 1 or sum(size for _, size in group) <= nbytes
        await asyncio.sleep(0)
        open_calls -= 1
        return [place for place, _ in group]

    async def story() -> None:
        send = Grouping(call, Bounds(calls, items, nbytes, 100), lambda item: item[1])
        assert await asyncio.gather(*map(send, enumerate(sizes))) == list(range(len(sizes)))

    play(story)
