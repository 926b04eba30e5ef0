"""The Intake's shell, with queues that note down what is asked of them and no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from app.deployments import intake as deployments
from app.deployments import parts
from app.deployments.intake import Intake
from app.settings import Settings
from app.stores.embedded import EmbeddedStore
from app.tenants.access import Access
from app.tenants.tenants import Tenant
from tests.conftest import API_KEY, MODEL, RecordingMeter

NAMES = {"queue": "intake", "dead_letter_queue": "dead", "notice_queue": "notices"}


class Queue:
    """One without messages; what fails a poll is in ``broken``."""

    made: dict[str, Queue]
    broken: Exception | None

    def __init__(self, url: str) -> None:
        self.polls, self.closed = 0, False
        self.made[url.rpartition("/")[2]] = self

    async def receive(self, max_messages: int, wait_s: int) -> list[Any]:
        self.polls += 1
        if self.broken:
            raise self.broken
        await asyncio.sleep(0.01)
        return []

    async def close(self) -> None:
        self.closed = True


class Replica(Intake):
    """Serve awaits its end; Python, which would call it too, would not."""

    def __del__(self) -> None:  # type: ignore[override]
        """Nothing more."""


Story = Callable[[Intake], Awaitable[None]]


@pytest.fixture
def play(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Story], dict[str, Queue]]:
    """Run a story with a replica, which is asked to go afterwards; its queues."""
    monkeypatch.setattr(Queue, "made", {}, raising=False)
    monkeypatch.setattr(Queue, "broken", None, raising=False)
    monkeypatch.setattr(deployments, "Queue", Queue)
    monkeypatch.setattr(parts, "RayMeter", RecordingMeter)
    queues = {setting: f"http://127.0.0.1:1/0/{name}" for setting, name in NAMES.items()}
    settings = Settings(data_dir=tmp_path, models=(MODEL,), store="s3://bucket", **queues)  # type: ignore[arg-type]

    def run(story: Story) -> dict[str, Queue]:
        async def whole() -> None:
            handle = SimpleNamespace(options=lambda **_: None)
            replica = Replica(settings, SecretStr(store.url), Tenant.first(API_KEY), handle)
            try:
                await story(replica)
            finally:
                await Intake.__del__(replica)
                for chore in replica._chores:
                    chore.cancel()

        asyncio.run(whole())
        return Queue.made

    return run


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a double has no event
            await asyncio.sleep(0.01)


def test_it_polls_until_it_is_to_go_and_lets_go_of_every_queue(play: Any) -> None:
    async def story(replica: Intake) -> None:
        await until(lambda: Queue.made["intake"].polls > 2)
        replica.check_health()

    made = play(story)
    assert {name: queue.closed for name, queue in made.items()} == dict.fromkeys(NAMES.values(), True)


def test_no_message_is_taken_before_it_is_known_whose_they_are(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    refresh = Access.refresh

    async def away_at_first(self: Access) -> bool:
        nonlocal asked
        asked += 1
        return asked > 2 and await refresh(self)  # the chores ask as well

    monkeypatch.setattr(Access, "refresh", away_at_first)

    async def story(_: Intake) -> None:
        await until(lambda: asked == 2)
        assert Queue.made["intake"].polls == 0
        await until(lambda: Queue.made["intake"].polls)

    play(story)


def test_it_is_ill_once_messages_are_not_taken_any_more(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "broken", ZeroDivisionError("a defect"))

    async def story(replica: Intake) -> None:
        await until(replica._running.done)
        with pytest.raises(RuntimeError, match="has ended") as ill:
            replica.check_health()
        assert isinstance(ill.value.__cause__, ZeroDivisionError)

    play(story)
