"""How a network learns: heads that find what is there, and a run that may be stopped at any step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.build import weights_path
from models.manifest import load_manifest
from models.network import Network, load_network, rows_of, stacked
from models.training.learning import (
    NO_LABEL,
    FineTuning,
    Recipe,
    Targets,
    features,
    fit_heads,
    fit_score_head,
    loss_of,
)

MANIFEST = load_manifest("imagenet-lite0")
RECIPE = Recipe(epochs=2, sizes=(32,), batch=4, frozen=3)
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


def clusters(count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes that lie apart, and the classes."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(count) % 3
    centres = 3 * torch.randn(3, size, generator=generator)
    return centres[classes] + torch.randn(count, size, generator=generator), classes


def photos(count: int) -> tuple[np.ndarray, Targets]:
    """Plain coloured photos of three classes; every sixth is not food."""
    classes = np.arange(count) % 3
    noise = np.random.default_rng(1).integers(-30, 30, (count, 36, 36, 3))
    pixels = np.clip(COLOURS[classes][:, None, None] + noise, 0, 255).astype(np.uint8)
    gate = torch.from_numpy((np.arange(count) % 6 != 5).astype(np.float32))
    return pixels, Targets(torch.where(gate > 0, torch.from_numpy(classes), NO_LABEL), gate)


def network() -> Network:
    made = load_network(MANIFEST, weights_path(MANIFEST), drop=0.2, drop_path=0.1)
    torch.manual_seed(0)
    made.replace_heads(torch.nn.Linear(made.heads.in_features, 4))
    return made


class TestHeads:
    def test_learn_classes_and_gate_and_leave_the_unlabelled_out(self):
        known, classes = clusters(300)
        gate = (known[:, 0] > 0).float()
        shown = torch.where(torch.arange(300) % 5 == 0, NO_LABEL, classes)
        head = fit_heads(known, Targets(shown, gate), Recipe(), 3, gated=True)
        logits = head(known)
        assert (logits[:, :3].argmax(1) == classes).float().mean() > 0.95
        assert ((logits[:, 3] > 0) == (gate > 0)).float().mean() > 0.9

    def test_without_a_gate_have_no_row_for_one(self):
        known, classes = clusters(60)
        head = fit_heads(known, Targets(classes, torch.ones(60)), Recipe(), 3, gated=False)
        assert head.out_features == 3

    def test_survive_a_few_wrong_labels(self):
        known, classes = clusters(600)
        wrong = torch.arange(600) % 20 == 0  # five per cent
        noisy = torch.where(wrong, (classes + 1) % 3, classes)
        head = fit_heads(known, Targets(noisy, torch.ones(600)), Recipe(), 3, gated=False)
        assert (head(known).argmax(1) == classes).float().mean() > 0.95

    def test_are_the_same_each_time(self):
        known, classes = clusters(60)
        targets = Targets(classes, torch.ones(60))
        one, two = (fit_heads(known, targets, Recipe(), 3, gated=True) for _ in range(2))
        assert torch.equal(one.weight, two.weight)


class TestScoreHead:
    def test_orders_scores_and_never_contradicts_itself(self):
        generator = torch.Generator().manual_seed(1)
        scores = 1 + torch.arange(250) % 5
        known = torch.randn(250, 8, generator=generator)
        known[:, 0] = scores + 0.5 * torch.randn(250, generator=generator)
        rows = fit_score_head(known, scores)
        answers = rows(known)
        assert tuple(answers.shape) == (250, 4)
        assert (answers.diff(dim=1) <= 0).all(), "above 4 is never likelier than above 3"
        found = 1 + torch.sigmoid(answers).sum(1)
        assert (found - scores).abs().mean() < 0.7


class TestLoss:
    TARGETS = Targets(torch.tensor([0, 1, NO_LABEL]), torch.tensor([1.0, 1.0, 0.0]))

    def test_is_small_for_the_right_answer_and_large_for_a_wrong_one(self):
        right = torch.tensor([[9.0, 0, 0, 5], [0, 9.0, 0, 5], [0, 0, 9.0, -5]])
        wrong = right[[1, 0, 0]]
        assert loss_of(right, self.TARGETS, Recipe()) < loss_of(wrong, self.TARGETS, Recipe())

    def test_does_not_look_at_the_classes_of_what_has_none(self):
        logits = torch.zeros(3, 4)
        other = logits.clone()
        other[2, :3] = torch.tensor([5.0, -5, 0])
        assert loss_of(logits, self.TARGETS, Recipe()) == loss_of(other, self.TARGETS, Recipe())


class TestFineTuning:
    def run(self, tuning: FineTuning, steps: int | None = None) -> None:
        """All of it, or so many steps."""

        class Stop(Exception):
            pass

        count = 0

        def progress(_: int, __: float) -> None:
            nonlocal count
            count += 1
            if count == steps:
                raise Stop

        try:
            for _ in tuning.run(progress, lambda: None):
                pass
        except Stop:
            pass

    def test_learns_moves_what_is_free_and_leaves_what_is_frozen(self):
        pixels, targets = photos(24)
        made = network()
        before = {name: value.clone() for name, value in made.state_dict().items()}
        tuning = FineTuning(made, pixels, targets, RECIPE, workers=0)
        self.run(tuning)
        after = made.state_dict()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert not any(
            name.startswith(("backbone.conv_stem", "backbone.bn1.", "backbone.blocks.0.")) for name in moved
        )
        assert any(name.startswith("backbone.blocks.6.") for name in moved)
        assert "backbone.classifier.weight" in moved
        assert len(tuning.losses) == 2

    def test_stopped_and_resumed_it_arrives_where_it_would_have(self, tmp_path: Path):
        pixels, targets = photos(24)
        whole = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        self.run(whole)
        first = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        self.run(first, steps=8)
        first.save(tmp_path / "checkpoint.pt")
        second = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        second.resume(tmp_path / "checkpoint.pt")
        assert (second.epoch, second.step) == (1, 2)
        self.run(second)
        for name, value in whole.averaged.state_dict().items():
            assert torch.allclose(value.float(), second.averaged.state_dict()[name].float(), atol=1e-5), name

    def test_another_recipe_does_not_go_on_from_there(self, tmp_path: Path):
        pixels, targets = photos(24)
        tuning = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        tuning.save(tmp_path / "checkpoint.pt")
        other = FineTuning(network(), pixels, targets, dataclasses.replace(RECIPE, rate=1e-3), workers=0)
        with pytest.raises(ValueError, match="another recipe"):
            other.resume(tmp_path / "checkpoint.pt")

    def test_other_photos_do_not_go_on_from_there(self, tmp_path: Path):
        pixels, targets = photos(24)
        FineTuning(network(), pixels, targets, RECIPE, workers=0, origin="these").save(tmp_path / "c.pt")
        others = FineTuning(network(), pixels, targets, RECIPE, workers=0, origin="others")
        with pytest.raises(ValueError, match="from other photos or weights"):
            others.resume(tmp_path / "c.pt")

    def test_what_is_saved_between_steps_counts_the_step_that_was_done(self, tmp_path: Path):
        pixels, targets = photos(24)
        tuning = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        path = tmp_path / "c.pt"
        next(iter(tuning.run(lambda *_: None, lambda: None if path.exists() else tuning.save(path))))
        again = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        again.resume(path)
        assert (again.epoch, again.step) == (0, 1)
        for _ in again.run(lambda *_: None, lambda: None):
            pass  # to the last step, of which the schedule knows exactly as many

    def test_fewer_photos_than_a_batch_are_one_batch(self):
        pixels, targets = photos(3)
        tuning = FineTuning(network(), pixels, targets, RECIPE, workers=0)
        self.run(tuning)
        assert tuning.steps == 2


class TestParts:
    def test_features_do_not_depend_on_the_batch(self):
        pixels, _ = photos(6)
        made = network()
        alone, together = features(made, pixels, 32, batch=1), features(made, pixels, 32, batch=6)
        assert torch.allclose(alone, together, atol=0.1)  # in bfloat16
        counted: list[int] = []
        features(made, pixels, 32, batch=4, done=counted.append)
        assert counted == [4, 2]

    def test_layers_stack_and_come_apart(self):
        one, two = torch.nn.Linear(5, 2), torch.nn.Linear(5, 3)
        both = stacked([one, two])
        known = torch.randn(4, 5)
        assert torch.allclose(both(known), torch.cat([one(known), two(known)], 1))
        assert torch.equal(rows_of(both, slice(2, 5)).weight, two.weight)

    def test_half_precision_keeps_the_norms_whole(self):
        state = network().compact_state()
        assert state["conv_stem.weight"].dtype == torch.float16
        assert state["bn1.running_var"].dtype == state["bn1.weight"].dtype == torch.float32
