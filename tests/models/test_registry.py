import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.food.foods import TableError
from models.build import BuildError, weights_path
from models.manifest import ManifestError, available, load_catalogue, load_manifest
from models.registry import DEFAULT, Registry, RegistryError
from tests.runs import LABELS, write_run

LITE = ("imagenet-lite0", "imagenet-lite1", "imagenet-lite2")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "data" / "registry")


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def state(registry):
    return json.loads((registry.folder / "serving.json").read_text())


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def registered(registry):
    """Refs of the registered models, every one of which must be whole."""
    refs = [ref for ref in available(registry.folder) if "@" in ref]
    for manifest in (load_manifest(ref, registry.folder) for ref in refs):
        weights_path(manifest)
        load_catalogue(manifest)
    return refs


# register


def test_a_registered_model_is_a_copy_for_its_owner_alone(registry, run):
    manifest = registry.register(run)
    assert manifest.ref == "salad@1"
    assert load_manifest("salad@1", registry.folder) == manifest
    assert manifest.root == registry.folder / "salad-1"
    assert files(manifest.root).keys() == {
        "manifest.toml", "weights.safetensors", "labels.csv", "metrics.json",
    }  # fmt: skip
    for folder in (registry.folder, manifest.root):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert registered(registry) == ["salad@1"]
    assert registry.serving() == (DEFAULT,), "registering promotes nothing"


def test_tables_of_its_own_come_along_and_the_projects_do_not(registry, run):
    project = load_manifest("imagenet-lite0")
    for table in ("foods.csv", "mixes.csv"):
        (run / table).write_bytes(project.table(table).read_bytes())
    assert {"foods.csv", "mixes.csv"} <= files(registry.register(run).root).keys()


def test_the_same_content_again_changes_nothing_and_other_content_needs_another_version(registry, run):
    before = files(registry.register(run).root)
    (run / "metrics.json").write_text("{}")  # how it came to be does not make another model
    assert registry.register(run).ref == "salad@1"
    (run / "labels.csv").write_text(LABELS.replace("2,stone", "2,rock"))
    with pytest.raises(RegistryError, match="salad@1 is registered with other content: raise the version"):
        registry.register(run)
    assert files(registry.folder / "salad-1") == before


def test_a_table_that_is_only_in_one_of_two_makes_another_model(registry, run):
    registry.register(run)
    for table in ("foods.csv", "mixes.csv"):
        (run / table).write_bytes(load_manifest("imagenet-lite0").table(table).read_bytes())
    with pytest.raises(RegistryError, match="raise the version"):
        registry.register(run)


def test_a_version_of_the_projects_own_is_refused_and_another_one_is_not(registry, tmp_path):
    with pytest.raises(RegistryError, match="project's own"):
        registry.register(write_run(tmp_path / "a", "imagenet-lite0", "1"))
    assert registry.register(write_run(tmp_path / "b", "imagenet-lite0", "2")).ref == "imagenet-lite0@2"


@pytest.mark.parametrize(
    ("file", "content", "error", "words"),
    [
        ("weights.safetensors", "tampered with", BuildError, "has SHA-256"),
        ("weights.safetensors", None, BuildError, "no weights file"),
        ("labels.csv", LABELS.replace("pizza,pizza", "pizza,nothing"), TableError, "labels.csv:2"),
        ("labels.csv", LABELS + "3,water,\n", ManifestError, "4 labels, not 3"),
        ("labels.csv", None, ManifestError, "no table labels.csv"),
        ("manifest.toml", "name = 1", ManifestError, "name"),
        ("manifest.toml", None, ManifestError, "No such file"),
    ],
)
def test_what_could_not_serve_is_not_registered(registry, run, file, content, error, words):
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    with pytest.raises(error, match=words):
        registry.register(run)
    assert [ref for ref in available(registry.folder) if "@" in ref] == []


def test_a_trial_sees_the_copy_and_decides(registry, run):
    seen = []

    def refuse(manifest):
        seen.append((manifest.ref, manifest.root != run, weights_path(manifest).is_file()))
        raise BuildError("cannot be built")

    with pytest.raises(BuildError):
        registry.register(run, refuse)
    assert seen == [("salad@1", True, True)]
    assert registered(registry) == []
    assert {path.name for path in registry.folder.iterdir()} == {".lock"}


# promote and roll back


@settings(max_examples=25)
@given(st.lists(st.sampled_from((*LITE, None)), max_size=8))
def test_a_rollback_undoes_a_promotion_however_many_there_were(tmp_path_factory, steps):
    registry = Registry(tmp_path_factory.mktemp("registry"))
    registry.promote(LITE[0])
    served = [LITE[0]]
    for ref in steps:
        if ref is not None:
            registry.promote(ref)
            served += [ref] if served[-1] != ref else []
        elif len(served) > 1:
            served.pop()
            assert registry.rollback() == served[-1]
        assert Registry(registry.folder).serving() == (served[-1],)


def test_nothing_served_before_the_first_promotion(registry):
    with pytest.raises(RegistryError, match="nothing served before"):
        registry.rollback()


def test_only_a_model_that_is_there_is_promoted_or_gone_back_to(registry, run):
    with pytest.raises(ManifestError, match="no model 'salad@1'"):
        registry.promote("salad@1")
    manifest = registry.register(run)
    registry.promote("salad@1")
    registry.promote(LITE[0])
    before = state(registry)
    (manifest.root / "manifest.toml").unlink()
    with pytest.raises(ManifestError):
        registry.rollback()
    assert state(registry) == before


def test_a_comparison_with_what_no_longer_serves_does_not_count(registry):
    registry.promote(LITE[0])
    registry.promote(LITE[1])
    with pytest.raises(RegistryError, match="meanwhile imagenet-lite1 serves"):
        registry.promote(LITE[2], over=LITE[0])
    registry.promote(LITE[2], over=LITE[1])
    assert registry.serving() == (LITE[2],)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"serving": 1}', b'{"served": "x"}', b"\xff", None])
def test_a_damaged_record_is_told_and_left_alone(registry, content):
    registry.promote(LITE[0])
    path = registry.folder / "serving.json"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    for call in (registry.serving, registry.entries, registry.rollback, lambda: registry.promote(LITE[1])):
        with pytest.raises(RegistryError, match=r"serving\.json"):
            call()
    assert content is None or path.read_bytes() == content


def test_entries_say_what_serves_and_what_its_training_measured(registry, run):
    registry.promote(registry.register(run).ref)
    entries = {entry.ref: entry for entry in registry.entries()}
    assert set(LITE) <= entries.keys()
    assert [ref for ref, entry in entries.items() if entry.serving] == ["salad@1"]
    assert entries["salad@1"].figures == {"top1": 0.75, "top5": 1.0}
    assert entries["salad@1"].created is not None
    assert (entries[LITE[0]].figures, entries[LITE[0]].created) == ({}, None)
    (registry.folder / "salad-1" / "metrics.json").write_text('{"fine-tuned": "well"}')
    assert [entry.figures for entry in registry.entries() if entry.serving] == [{}]
    (registry.folder / "salad-1" / "labels.csv").unlink()
    with pytest.raises(RegistryError, match="salad@1 is damaged"):
        registry.entries()


# Writers that are killed, and several at a time

KILLED = """
import os, sys
from pathlib import Path
from models import registry
left, to_disk = int(sys.argv[1]), registry.to_disk
def killed(path):
    global left
    if not left:
        os._exit(9)  # as SIGKILL: nothing is cleaned up
    left -= 1
    to_disk(path)
registry.to_disk = killed
here = registry.Registry(Path(sys.argv[2]))
"""
PROMOTING = """
import sys
from pathlib import Path
from models.registry import Registry
for _ in range(int(sys.argv[2])):
    for ref in sys.argv[3:]:
        Registry(Path(sys.argv[1])).promote(ref)
"""


def python(program, *arguments):
    return [sys.executable, "-c", program, *map(str, arguments)]


def killed_at_every_step(registry, command, *arguments):
    """Kill a writer before each of its steps to the disk in turn, until it gets through; how often it was."""
    for steps in range(20):
        end = subprocess.run(python(KILLED + command, steps, registry.folder, *arguments), check=False)
        if end.returncode == 0:
            return
        assert end.returncode == 9
        yield steps
    raise AssertionError("it never got through")


def test_a_registration_that_is_killed_leaves_all_of_it_or_nothing(registry, run):
    seen = [
        registered(registry) for _ in killed_at_every_step(registry, "here.register(Path(sys.argv[3]))", run)
    ]
    assert all(found in ([], ["salad@1"]) for found in seen)
    assert seen.count([]) >= 4, "three files and their folder"
    assert registered(registry) == ["salad@1"]
    assert {path.name for path in registry.folder.iterdir()} == {".lock", "salad-1"}


def test_a_promotion_that_is_killed_leaves_the_old_state_or_the_new(registry):
    registry.promote(LITE[0])
    old = state(registry)
    new = {"serving": LITE[1], "history": [DEFAULT, LITE[0]]}
    steps = killed_at_every_step(registry, "here.promote(sys.argv[3])", LITE[1])
    assert [state(registry) for _ in steps] == [old, new]
    assert state(registry) == new


def test_promotions_at_the_same_time_lose_none_and_a_reader_sees_no_half_of_one(registry, run):
    registry.register(run)
    rounds = 20
    writers = [
        subprocess.Popen(python(PROMOTING, registry.folder, rounds, *refs))
        for refs in (LITE[:2], (LITE[2], "salad@1"))
    ]
    while any(writer.poll() is None for writer in writers):
        assert registry.serving()[0] in {DEFAULT, *LITE, "salad@1"}
    assert [writer.returncode for writer in writers] == [0, 0]
    # No writer promotes what serves, since it is the only one to promote its two by turns.
    assert len(state(registry)["history"]) == 2 * 2 * rounds


def test_the_same_model_registered_twice_at_once_is_there_once(registry, run):
    command = "import sys; from pathlib import Path; from models.registry import Registry;"
    command += "Registry(Path(sys.argv[1])).register(Path(sys.argv[2]))"
    both = [subprocess.Popen(python(command, registry.folder, run)) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert registered(registry) == ["salad@1"]
    assert files(registry.folder).keys() >= {str(Path("salad-1", "labels.csv"))}
