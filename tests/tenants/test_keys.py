"""API keys: one per data folder, whoever comes first, and a ring that holds no key."""

from __future__ import annotations

import re
import secrets
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenants.keys import DEFAULT_TENANT, Keyring, ensure_api_key, hash_key

KEY = "fdx_a-key-that-is-long-enough"
RING = Keyring({hash_key(KEY): "a", hash_key("fdx_another-key-of-another-one"): "b"})
words = st.text(min_size=1).filter(lambda text: text.strip() not in ("", KEY))


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


class TestTheRing:
    def test_knows_whose_a_key_is(self):
        assert RING.tenant(f"Bearer {KEY}") == "a"
        assert RING.tenant("Bearer fdx_another-key-of-another-one") == "b"
        assert Keyring.of(KEY).tenant(f"Bearer {KEY}") == DEFAULT_TENANT
        assert Keyring.of(KEY, "mine").tenant(f"Bearer {KEY}") == "mine"

    @pytest.mark.parametrize(
        "header", [f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} ", f"Bearer {KEY}\t"]
    )
    def test_is_easy_about_case_and_space(self, header):
        assert RING.tenant(header) == "a"

    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer ", "Bearer   ", KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Bearer {KEY} x",
         f"Bearer {KEY.upper()}", f"Bearer {hash_key(KEY)}", f"Bearer, {KEY}", "Bearer \u00fc\u4f60"],
    )  # fmt: skip
    def test_knows_nobody_without_a_key(self, header):
        assert RING.tenant(header) is None

    @given(words)
    def test_knows_no_other_key(self, given_key: str):
        assert RING.tenant(f"Bearer {given_key}") is None

    @given(st.text())
    def test_survives_any_header(self, header: str):
        assert RING.tenant(header) in (None, "a", "b")

    def test_that_is_empty_knows_nobody(self):
        assert Keyring({}).tenant(f"Bearer {KEY}") is None

    def test_holds_no_key(self):
        assert KEY not in repr(RING)
