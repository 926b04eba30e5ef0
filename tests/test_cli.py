"""The ``fooddx`` command: what it prints, and its exit status."""

import csv
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.api.app import create_app
from tests.conftest import API_KEY
from tests.loopback import serving
from tests.photos import coffee_jpeg

COLUMNS = ["photo", "status", "score", "score_mean", "dishes", "tip", "ms", "id", "sha256", "error"]


@pytest.fixture
def service_url(make_local):
    """The service without Ray, on a real socket."""
    with serving(lambda: create_app(make_local().service)) as url:
        yield url


@pytest.fixture
def fooddx(fooddx, monkeypatch):
    """The command, with the key of the tests' service."""
    monkeypatch.setenv("FOODDX_API_KEY", API_KEY)
    return fooddx


@pytest.fixture
def folder(tmp_path):
    """A folder of two photos, a file that is none, a hidden file and a folder."""
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    (photos / "a.jpg").write_bytes(coffee_jpeg())
    (photos / "b.jpg").write_bytes(coffee_jpeg(64, 48))
    (photos / "notes.txt").write_text("no photo")
    (photos / ".hidden").write_text("what a file manager leaves")
    return photos


def test_a_photo_is_scored_as_a_table(fooddx, service_url, folder):
    status, out, err = fooddx("score", folder / "a.jpg", "--url", service_url)
    assert (status, err) == (0, "")
    head, row = out.splitlines()
    assert head.split() == ["photo", "score", "dishes", "tip", "ms"]
    assert row.split()[:3] == ["a.jpg", "4", "espresso"]


def test_json_holds_the_whole_result(fooddx, service_url, folder):
    status, out, _ = fooddx("score", folder / "a.jpg", "--url", service_url, "--format", "json")
    ((entry),) = json.loads(out)
    assert status == 0
    assert (entry["photo"], entry["error"]) == (str(folder / "a.jpg"), None)
    assert entry["result"]["dishes"][0]["name"] == "espresso"
    assert list(entry["result"])[:3] == ["id", "status", "score"]


def test_csv_has_a_row_for_each_photo_of_a_folder(fooddx, service_url, folder):
    status, out, _ = fooddx("score", folder, "--url", service_url, "--format", "csv", "--parallel", "2")
    assert status == 1, "a file of the folder is no photo"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == COLUMNS
    assert [row["photo"] for row in rows] == [str(folder / name) for name in ("a.jpg", "b.jpg", "notes.txt")]
    assert (rows[0]["status"], rows[0]["score"]) == ("scored", "4")
    assert float(rows[0]["ms"]) > 0
    assert len(rows[0]["sha256"]) == 64
    assert rows[0]["error"] == ""
    assert "unsupported_media_type" in rows[2]["error"]
    assert rows[2]["score"] == ""


def test_a_bad_photo_is_named_and_the_status_says_so(fooddx, service_url, folder):
    status, out, _ = fooddx("score", folder / "notes.txt", folder / "a.jpg", "--url", service_url)
    assert status == 1
    assert "image/png" in out
    assert "unsupported_media_type, request " in out
    assert "espresso" in out


def test_a_missing_file_is_named_and_the_others_are_scored(fooddx, service_url, folder):
    status, out, _ = fooddx("score", folder / "none.jpg", folder / "a.jpg", "--url", service_url)
    assert status == 1
    assert "cannot be read: No such file or directory" in out
    assert "espresso" in out


@pytest.mark.parametrize(("thresholds", "word"), [({"food": 1.0}, "no food"), ({"review": 0.0}, "unsure")])
def test_a_photo_without_a_score_says_why(fooddx, make_local, folder, thresholds, word):
    def app():
        service = make_local().service
        service.judges.serving = service.judges.serving.adjusted(thresholds)
        return create_app(service)

    with serving(app) as url:
        status, out, _ = fooddx("score", folder / "a.jpg", "--url", url)
    assert status == 0
    assert word in out


def test_a_profile_goes_along(fooddx, service_url, folder):
    profile = '{"user": "ana", "goals": ["less-salt"]}'
    arguments = ("score", folder / "a.jpg", "--url", service_url, "--format", "json", "--profile")
    status, out, _ = fooddx(*arguments, profile)
    assert (status, json.loads(out)[0]["result"]["user"]) == (0, "ana")
    status, out, _ = fooddx(*arguments, '{"goals": ["fame"]}')
    assert status == 1
    assert "profile.goals.0: " in json.loads(out)[0]["error"]


@pytest.mark.parametrize(
    "name", ["[bold]x.jpg", "a[red]b.jpg", "[link=x]", b"\xff\xfe.jpg", "ü ★.jpg", "-x.jpg"]
)
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_any_file_name_is_printed(fooddx, service_url, tmp_path, name, form):
    name = os.fsdecode(name)
    (tmp_path / name).write_bytes(coffee_jpeg(64, 48))
    status, out, _ = fooddx("score", tmp_path / name, "--url", service_url, "--format", form)
    assert status == 0
    shown = os.fsencode(name).decode("utf-8", "replace")
    assert shown in (json.loads(out)[0]["photo"] if form == "json" else out)


def test_the_models_of_a_service(fooddx, service_url):
    status, out, _ = fooddx("models", "--url", service_url)
    assert status == 0
    assert "imagenet-lite0" in out
    assert "224 px" in out
    assert "food 0.15" in out
    status, out, _ = fooddx("models", "--url", service_url, "--format", "json")
    assert (status, json.loads(out)["serving"]["name"]) == (0, "imagenet-lite0")


def test_the_url_may_come_from_the_environment(fooddx, service_url, monkeypatch):
    monkeypatch.setenv("FOODDX_URL", service_url)
    assert fooddx("models")[0] == 0


# What goes wrong


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("score",),
        ("score", "a.jpg", "--format", "xml"),
        ("score", "a.jpg", "--parallel", "many"),
        ("models", "--verbose"),
        ("serve", "now"),
    ],
)
def test_bad_usage_is_status_2_and_shows_the_usage(fooddx, arguments):
    status, out, err = fooddx(*arguments)
    assert (status, out) == (2, "")
    assert "usage: fooddx" in err


def test_a_folder_without_photos_is_bad_usage(fooddx, tmp_path):
    status, _, err = fooddx("score", tmp_path)
    assert status == 2
    assert "no photo there" in err


def test_a_folder_that_cannot_be_read_is_bad_usage(fooddx, tmp_path, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.iterdir", forbidden)
    status, _, err = fooddx("score", tmp_path)
    assert (status, err.strip()) == (2, f"fooddx: {tmp_path}: Permission denied")


def test_a_service_that_is_not_there_is_told_in_a_line(fooddx, folder, monkeypatch):
    monkeypatch.setattr("app.client.time.sleep", lambda _: None)
    for command, shown in ((("score", folder / "a.jpg", folder / "none.jpg"), True), (("models",), False)):
        status, out, err = fooddx(*command, "--url", "http://127.0.0.1:9")
        assert (status, "a.jpg" in out) == (1, shown)
        assert "make run" in err
        assert len(err.strip().splitlines()) == 1


def test_a_photo_that_gets_no_answer_costs_no_other_its_row(fooddx, folder, monkeypatch):
    """The service goes away after the first photo."""
    monkeypatch.setattr("app.client.time.sleep", lambda _: None)
    posted = []

    def post(request: httpx.Request) -> httpx.Response:
        posted.append(request)
        if len(posted) > 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"id": "1", "status": "scored", "score": 4})

    client = functools.partial(httpx.Client, transport=httpx.MockTransport(post))
    monkeypatch.setattr("app.client.httpx.Client", client)
    status, out, err = fooddx("score", folder, "--parallel", "1", "--format", "csv")
    rows = {Path(row["photo"]).name: row for row in csv.DictReader(io.StringIO(out))}
    assert (status, err.strip()) == (1, "")
    assert rows["a.jpg"]["score"] == "4"
    assert rows["b.jpg"]["error"].startswith("no answer from ")


@pytest.mark.parametrize("url", ["http://a:[/b]", "nonsense"])
def test_a_wrong_url_is_told_in_a_line(fooddx, folder, url):
    status, _, err = fooddx("score", folder / "a.jpg", "--url", url)
    assert status == 1
    assert url in err


def test_a_wrong_setting_is_told_in_a_line(fooddx, monkeypatch):
    monkeypatch.delenv("FOODDX_API_KEY")
    monkeypatch.setenv("FOODDX_PROT", "8000")
    status, _, err = fooddx("models", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "unknown environment variable FOODDX_PROT" in err


def test_the_command_starts_fast_and_helps():
    """Scoring photos must not import what only serving needs."""
    script = (
        "import sys; from app.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'openvino', 'PIL', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(command in done.stdout for command in ("serve", "doctor", "score", "models"))
