"""How peers are started and ended, and what they are installed from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgpack
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.peers import servers
from loadtests.peers.environments import requirements
from loadtests.peers.run import samples, turned
from loadtests.peers.servers import PEERS, PeerError, started, wrapped
from loadtests.photos import make_photo

# Answers everything with 200, and has a child that would outlive it.
SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(servers, "BUILD", tmp_path)
    return tmp_path


def test_a_server_and_all_it_started_are_gone_at_the_end(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_command", lambda _, port: [sys.executable, "-c", SERVER, str(port)])
    with started("ray", "compute") as server:
        pids = [process.pid for process in server.processes()]
        assert int((build / "run" / "ray" / "log").read_text().splitlines()[0]) in pids
        with pytest.raises(PeerError, match="niceness"):
            server.check_niceness()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not (build / "run" / "ray" / "data").exists()


def test_a_server_that_ends_at_once_is_an_error_that_names_its_log(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_command", lambda *_: [sys.executable, "-c", "print('no port')"])
    with pytest.raises(PeerError, match=str(build / "run" / "mosec" / "log")), started("mosec", "compute"):
        pass


def test_a_wrapped_photo_keeps_its_hole() -> None:
    photo = wrapped(make_photo(0.01), "key")
    one, other = (msgpack.unpackb(photo.unique()) for _ in range(2))
    assert one["api_key"] == other["api_key"] == "key"
    assert one["image"] != other["image"]
    assert one["image"][:2] == b"\xff\xd8"


def test_samples_are_distinct() -> None:
    photos = samples()
    assert len({photo.tail for photo in photos}) == len(photos)


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=6).map(lambda ids: [str(i) for i in ids]))
def test_in_as_many_rounds_as_servers_each_has_each_place_once(names: list[str]) -> None:
    orders = [turned(names, turn) for turn in range(len(names))]
    assert all(sorted(places) == sorted(names) for places in zip(*orders, strict=True))
    assert orders[0] == names


@pytest.mark.parametrize("name", PEERS)
def test_packages_are_pinned_and_tied_to_no_index(name: str) -> None:
    lines = requirements(name).read_text().splitlines()
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
