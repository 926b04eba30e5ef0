"""The embedded store: a real server process, its folder, and what a crash of either side leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from app.errors import ResultsUnavailable
from app.stores.embedded import EmbeddedStore, EmbeddedStoreError
from app.stores.results import ResultStore
from tests.stores.test_results import Shop, a_record

A_SERVICE = """
import sys, time
from pathlib import Path
from app.stores.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1])).start()
sys.stdout.write(f"{store.pid}\\n")
sys.stdout.flush()
time.sleep(600)
"""


def connected(store: EmbeddedStore) -> redis.Redis:
    return redis.Redis.from_url(store.url)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether the process is gone, or waits only for its parent to take notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestItsLife:
    def test_data_survives_stop_and_start(self, tmp_path):
        for expected in (None, b"1"):
            with EmbeddedStore(tmp_path) as store, connected(store) as client:
                assert client.get("key") == expected
                client.set("key", "1")
        assert store.pid is None

    def test_one_object_may_start_again_and_stop_twice(self, tmp_path):
        store = EmbeddedStore(tmp_path)
        store.stop()
        for _ in range(2):
            with store, connected(store) as client:
                assert client.ping()
            store.stop()

    def test_every_acknowledged_write_survives_a_kill(self, tmp_path):
        """Many clients write while the server is killed; all that was acknowledged is there afterwards."""
        store = EmbeddedStore(tmp_path).start()
        acknowledged: list[tuple[str, bytes]] = []

        async def writer(shop: Shop) -> None:
            with contextlib.suppress(ResultsUnavailable):
                while True:
                    record = a_record(user="ann")
                    ticket = shop.ticket(record.id, sha256=uuid.uuid4().hex)
                    await shop.results.begin(ticket)
                    outcome, body = await shop.results.finish(ticket, record)
                    assert outcome == "written"
                    acknowledged.append((record.id, body))

        async def story() -> None:
            results = ResultStore(store.url, dedupe_ms=10**7, idempotency_ms=10**7, claim_ms=10**7)
            shop = Shop(results, store.url)
            try:
                async with asyncio.TaskGroup() as writers:
                    for _ in range(16):
                        writers.create_task(writer(shop))
                    while len(acknowledged) < 200:  # noqa: ASYNC110 - any moment in the middle will do
                        await asyncio.sleep(0.001)
                    os.kill(store.pid, signal.SIGKILL)
                store.stop()
                store.start()
                ids = [result_id for result_id, _ in acknowledged]
                assert await results.get_many(shop.tenant, ids) == [body for _, body in acknowledged]
                assert set(ids) <= set(await results.diary(shop.tenant, "ann", None, -1))
            finally:
                await results.close()

        try:
            asyncio.run(story())
        finally:
            store.stop()

    def test_a_write_is_on_the_disk_before_it_is_acknowledged(self, store):
        """What a power cut would show, and no test can: the settings that decide it."""
        with connected(store) as client:
            found = client.config_get("append*", "maxmemory-policy")
            assert (found["appendonly"], found["appendfsync"]) == ("yes", "always")
            assert found["maxmemory-policy"] == "noeviction"

    def test_tells_that_it_died(self, tmp_path):
        store = EmbeddedStore(tmp_path)
        assert not store.died()
        with store:
            assert not store.died()
            os.kill(store.pid, signal.SIGKILL)
            wait_for(store.died)
        assert not store.died()

    def test_one_that_cannot_start_points_to_its_log(self, tmp_path):
        (tmp_path / "appendonlydir").write_text("a file where a folder must be")
        store = EmbeddedStore(tmp_path)
        with pytest.raises(EmbeddedStoreError, match=re.escape(str(tmp_path / "valkey.log"))):
            store.start()
        assert (tmp_path / "valkey.log").read_text()
        assert store.pid is None


class TestOneServerPerFolder:
    REFUSED = "another service is already using the data in .*: stop it, or set FOODDX_DATA_DIR"

    def test_a_second_is_refused_and_the_first_goes_on(self, tmp_path):
        with EmbeddedStore(tmp_path) as first:
            second = EmbeddedStore(tmp_path)
            with pytest.raises(EmbeddedStoreError, match=self.REFUSED):
                second.start()
            second.stop()
            with connected(first) as client:
                assert client.ping()

    def test_a_second_is_refused_even_where_the_first_does_not_answer(self, tmp_path):
        with EmbeddedStore(tmp_path) as first:
            os.kill(first.pid, signal.SIGSTOP)
            try:
                with pytest.raises(EmbeddedStoreError, match=self.REFUSED):
                    EmbeddedStore(tmp_path).start()
            finally:
                os.kill(first.pid, signal.SIGCONT)

    def test_a_killed_service_takes_its_server_along_and_the_next_one_takes_over(self, tmp_path):
        with subprocess.Popen(
            [sys.executable, "-c", A_SERVICE, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as service:
            pid = int(service.stdout.readline())
            with redis.Redis.from_url(EmbeddedStore(tmp_path).url) as client:
                client.set("key", "1")
            service.kill()
        with EmbeddedStore(tmp_path) as store, connected(store) as client:
            assert client.get("key") == b"1"
        wait_for(lambda: ended(pid))


class TestWhoCanReachIt:
    def test_it_listens_on_no_port(self, store):
        process = psutil.Process(store.pid)
        assert process.net_connections(kind="inet") == []
        assert [c.laddr for c in process.net_connections(kind="unix") if c.status == "NONE" and c.laddr]

    def test_only_its_owner_enters_folder_and_socket(self, tmp_path):
        folder = tmp_path / "open"
        folder.mkdir(mode=0o755)
        with EmbeddedStore(folder) as store:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE(store.socket.stat().st_mode) == 0o700

    def test_a_folder_with_a_long_path(self, tmp_path):
        folder = tmp_path / ("deep" * 20) / ("er" * 30)
        with EmbeddedStore(folder) as store, connected(store) as client:
            assert client.set("key", "1")
            assert store.socket.parent.parent == Path(tempfile.gettempdir())
            assert stat.S_IMODE(store.socket.parent.stat().st_mode) == 0o700
            assert any(folder.iterdir())
        with EmbeddedStore(folder) as store, connected(store) as client:
            assert client.get("key") == b"1"
        store.socket.parent.rmdir()

    def test_long_paths_do_not_share_a_socket(self, tmp_path):
        one, two = (EmbeddedStore(tmp_path / ("deep" * 30) / name) for name in ("one", "two"))
        assert one.socket != two.socket

    def test_a_folder_of_someone_else_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
        with pytest.raises(EmbeddedStoreError, match="belongs to another user"):
            EmbeddedStore(tmp_path).start()
