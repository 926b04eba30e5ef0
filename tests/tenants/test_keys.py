"""API keys: one per data folder, whoever comes first."""

from __future__ import annotations

import re
import secrets
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from app.tenants.keys import ensure_api_key

KEY = "fdx_a-key-that-is-long-enough"


class TestTheKeyOfAFolder:
    def test_is_made_once_for_its_owner_only(self, tmp_path):
        folder = tmp_path / "new" / "data"
        key = ensure_api_key(folder)
        assert re.fullmatch(r"fdx_[\w-]{32}", key)
        assert ensure_api_key(folder) == key
        assert (folder / "api_key").read_text() == key + "\n"
        assert stat.S_IMODE((folder / "api_key").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name for path in folder.iterdir()] == ["api_key"]

    def test_is_another_in_another_folder(self, tmp_path):
        assert ensure_api_key(tmp_path / "one") != ensure_api_key(tmp_path / "two")

    def test_may_be_ones_own(self, tmp_path):
        (tmp_path / "api_key").write_text(f"  {KEY}\n\n")
        assert ensure_api_key(tmp_path) == KEY

    def test_is_whole_for_a_second_process_that_comes_while_it_is_made(self, tmp_path, monkeypatch):
        made, seen = secrets.token_urlsafe, []

        def made_while_another_comes(size: int) -> str:
            monkeypatch.setattr(secrets, "token_urlsafe", made)
            seen.append(ensure_api_key(tmp_path))
            return made(size)

        monkeypatch.setattr(secrets, "token_urlsafe", made_while_another_comes)
        assert ensure_api_key(tmp_path) == seen[0] != ""
        assert [path.name for path in tmp_path.iterdir()] == ["api_key"]

    def test_is_agreed_on_by_many_threads(self, tmp_path):
        barrier = Barrier(16)

        def first_call(_: int) -> str:
            barrier.wait(20)
            return ensure_api_key(tmp_path)

        with ThreadPoolExecutor(16) as pool:
            (key,) = set(pool.map(first_call, range(16)))
        assert key == ensure_api_key(tmp_path)

    def test_is_agreed_on_by_many_processes(self, tmp_path):
        program = (
            "import sys, pathlib; from app.tenants.keys import ensure_api_key; sys.stdin.read();"
            "sys.stdout.write(ensure_api_key(pathlib.Path(sys.argv[1])))"
        )
        starters = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        for starter in starters:
            starter.stdin.close()
        keys = set()
        for starter in starters:
            with starter:
                keys.add(starter.stdout.read())
        assert keys == {ensure_api_key(tmp_path)}
