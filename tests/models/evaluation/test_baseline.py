import pytest
from rich.console import Console

from models.evaluation.baseline import BASE, train_baseline
from models.manifest import MANIFEST, load_manifest, write_manifest

DATA = "a" * 64


@pytest.fixture
def trained(monkeypatch):
    """The options of every run that was asked for; a run leaves the base model under its own name."""
    runs = []

    def train(options, _console):
        runs.append(options)
        folder = options.out / f"{options.name}-{options.version}"
        folder.mkdir(parents=True, exist_ok=True)
        own = load_manifest(BASE).model_copy(update={"name": options.name, "version": options.version})
        write_manifest(own, folder / MANIFEST)
        (folder / "metrics.json").write_text("{}")
        return folder

    monkeypatch.setattr("models.training.run.train", train)
    return runs


def test_the_baseline_is_heads_alone_and_trained_once_for_the_same_data(trained, tmp_path):
    def baseline(sha256):
        return train_baseline(tmp_path / "photos", sha256, tmp_path / "out", Console(quiet=True))

    first = baseline(DATA)
    assert (trained[0].recipe.epochs, trained[0].base) == (0, BASE)
    assert baseline(DATA) == first
    assert len(trained) == 1
    assert baseline("b" * 64).version != first.version
    assert len(trained) == 2


def test_a_run_that_was_cut_short_is_done_again(trained, tmp_path):
    for _ in range(2):
        manifest = train_baseline(tmp_path / "photos", DATA, tmp_path / "out", Console(quiet=True))
        (manifest.root / "metrics.json").unlink()
    assert len(trained) == 2
