"""``fooddx tenant``: on the store of a running service, and on one that nobody runs."""

import json

import pytest
import redis

from app.stores.embedded import EmbeddedStore
from app.stores.tenants import TENANTS
from app.tenants.keys import hash_key
from models.manifest import load_manifest, write_manifest


@pytest.fixture
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("FOODDX_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def running(data):
    """An embedded store as a service runs it."""
    data.mkdir()
    with EmbeddedStore(data / "valkey") as store:
        yield store


def stored(store, tenant):
    with redis.Redis.from_url(store.url) as client:
        return json.loads(client.hget(TENANTS, tenant))


def key_in(out):
    return next(line for line in out.splitlines() if line.startswith("fdx_"))


def test_a_tenant_is_added_and_its_key_is_shown_once(fooddx, running):
    status, out, _ = fooddx("tenant", "add", "clinic-a", "--per-second", 2.5, "--per-day", 100)
    assert status == 0
    found = stored(running, "clinic-a")
    assert [key["sha256"] for key in found["keys"]] == [hash_key(key_in(out))]
    assert found["limits"] == {"per_second": 2.5, "per_day": 100}
    assert key_in(out) not in json.dumps(found)
    status, out, _ = fooddx("tenant", "list")
    assert (status, len(out.splitlines())) == (0, 2)
    assert {"clinic-a", "enabled", "2.5", "100"} <= set(out.split())
    assert fooddx("tenant", "add", "clinic-a")[0] == 1


def test_a_key_is_rotated_with_both_valid(fooddx, running):
    first = key_in(fooddx("tenant", "add", "clinic")[1])
    status, out, _ = fooddx("tenant", "rotate", "clinic", "--overlap-days", 2)
    assert status == 0
    assert "The key before is valid until" in out
    new, old = stored(running, "clinic")["keys"]
    assert [new["sha256"], old["sha256"]] == [hash_key(key_in(out)), hash_key(first)]
    assert (new["ends_at"], old["ends_at"] is None) == (None, False)
    assert fooddx("tenant", "rotate", "clinic", "--overlap-days", -1)[0] == 1


def uses(tenant):
    return tenant["store"], tenant["models"], tenant["webhook"]


def test_what_a_tenant_uses_is_set_and_cleared(fooddx, running):
    hook = "https://hooks.clinic.example/fooddx?token=of-the-hook"
    status, _, _ = fooddx(
        "tenant", "add", "clinic",
        "--store", "s3://photos/clinic/", "--models", "meals-lite2, imagenet-lite0", "--webhook", hook,
    )  # fmt: skip
    assert status == 0
    before = stored(running, "clinic")
    assert uses(before) == ("s3://photos/clinic", ["meals-lite2", "imagenet-lite0"], hook)
    listed = fooddx("tenant", "list")[1]
    assert {"s3://photos/clinic", "meals-lite2,", "imagenet-lite0", "hooks.clinic.example"} <= set(
        listed.split()
    )
    assert "token" not in listed

    assert fooddx("tenant", "set", "clinic", "--models", "imagenet-lite0", "--webhook", "")[0] == 0
    after = stored(running, "clinic")
    assert uses(after) == ("s3://photos/clinic", ["imagenet-lite0"], "")
    assert (after["keys"], after["limits"]) == (before["keys"], before["limits"])
    assert fooddx("tenant", "set", "clinic", "--store", "", "--models", "")[0] == 0
    assert uses(stored(running, "clinic")) == ("", [], "")


def test_a_tenant_may_use_a_registered_model(fooddx, running, data):
    own = load_manifest("meals-lite2").model_copy(update={"name": "meals-clinic", "version": "3"})
    folder = data / "registry" / "meals-clinic-3"
    folder.mkdir(parents=True)
    write_manifest(own, folder / "manifest.toml")
    assert fooddx("tenant", "add", "clinic", "--models", "meals-clinic@3")[0] == 0
    assert stored(running, "clinic")["models"] == ["meals-clinic@3"]
    assert "no model" in fooddx("tenant", "set", "clinic", "--models", "meals-clinic@4")[2]


@pytest.mark.parametrize("command", ["add", "set"])
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--store", "/photos", "s3://bucket"),
        ("--store", "s3://photos/../other", "a prefix has no"),
        ("--models", "meals-lite2,no-such-model", "there is no model 'no-such-model'"),
        ("--models", "meals-lite2,,", "none between two commas"),
        ("--models", "meals-lite2,meals-lite2", "each model once"),
        ("--webhook", "http://hooks.clinic.example/", "is not an https:// URL"),
        ("--webhook", "https://169.254.169.254/latest", "not public"),
    ],
)
def test_what_a_tenant_cannot_use_is_not_stored(fooddx, running, command, option, value, words):
    if command == "set":
        fooddx("tenant", "add", "clinic")
    status, out, err = fooddx("tenant", command, "clinic", option, value)
    assert (status, out) == (1, "")
    assert words in err
    with redis.Redis.from_url(running.url) as client:
        assert client.hlen(TENANTS) == (command == "set")
    if command == "set":
        assert uses(stored(running, "clinic")) == ("", [], "")


def test_limits_and_state_are_changed(fooddx, running):
    fooddx("tenant", "add", "clinic", "--per-day", 5)
    assert "no limit" in fooddx("tenant", "limit", "clinic")[1]
    assert stored(running, "clinic")["limits"] == {"per_second": None, "per_day": None}
    assert fooddx("tenant", "disable", "clinic")[0] == 0
    assert stored(running, "clinic")["disabled"] is True
    assert "disabled" in fooddx("tenant", "list")[1]
    assert fooddx("tenant", "enable", "clinic")[0] == 0
    assert stored(running, "clinic")["disabled"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "Clinic A"), "id: "),
        (("add", "default"), "first start"),
        (("set", "nobody", "--store", ""), "no tenant nobody"),
        (("set", "nobody"), "say what to change"),
        (("add", "clinic", "--per-second", "0"), "per_second: "),
        (("disable", "nobody"), "no tenant nobody"),
    ],
)
def test_what_cannot_be_done_is_said(fooddx, running, arguments, words):
    status, out, err = fooddx("tenant", *arguments)
    assert (status, out) == (1, "")
    assert words in err


def test_no_service_need_run(fooddx, data):
    assert fooddx("tenant", "add", "clinic")[0] == 0
    assert "clinic" in fooddx("tenant", "list")[1]
    with EmbeddedStore(data / "valkey") as store:
        assert stored(store, "clinic")["id"] == "clinic"


def test_a_redis_that_is_away_is_told(fooddx, data, monkeypatch):
    monkeypatch.setenv("FOODDX_REDIS_URL", f"unix://{data}/nobody.sock")
    status, _, err = fooddx("tenant", "list")
    assert status == 1
    assert "cannot be reached" in err
