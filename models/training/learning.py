"""How a network learns: heads on frozen features in minutes, then the network itself. Imports torch.

Every random choice is drawn from a generator seeded by what it is for (seed, epoch, photo), so a run that was
interrupted and resumed sees what it would have seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from models.heads import SCORES
from models.network import Network
from models.training.augment import phone_photo
from models.training.depthwise import FastDepthwise

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run depends on beside its data.

    Attributes:
        epochs: passes over the training photos; 0 leaves the backbone as it is and trains heads alone.
        sizes: edges of the training crops; each serves an equal share of the epochs, in this order. Small
            crops first cost less and regularise more (Tan, Le 2021, arXiv:2104.00298); the last one is the
            served size.
        batch: photos per step.
        rate: peak learning rate of the last block; heads learn ``head_factor`` times as fast, and each block
            further down at ``depth_decay`` of the one above it.
        frozen: how many stages from the bottom (stem, blocks…) keep ImageNet's weights and statistics.
        smoothing: label smoothing, of classes and of the gate: also what keeps a few per cent of wrong
            labels from being learnt by heart.
        mix: share of steps in which photos are blended or pasted into each other (mixup arXiv:1710.09412,
            CutMix arXiv:1905.04899).
        clip: largest norm of a step's gradient.
        average: decay of the exponential moving average of the weights, which is what is kept.
        gate_weight: weight of the food gate's loss beside the classes'.
    """

    epochs: int = 12
    sizes: tuple[int, ...] = (160, 192, 192, 224)
    batch: int = 64
    rate: float = 3e-4
    head_factor: float = 3.0
    depth_decay: float = 0.85
    weight_decay: float = 0.03
    frozen: int = 3
    smoothing: float = 0.1
    mix: float = 0.4
    drop: float = 0.2
    drop_path: float = 0.2
    clip: float = 1.0
    smallest_crop: float = 0.3
    average: float = 0.997
    gate_weight: float = 0.5
    seed: int = 20261121

    def for_input(self, size: int) -> Recipe:
        """The same for a network that is served ``size`` px instead of the last of ``sizes``."""
        return replace(self, sizes=tuple(round(edge * size / self.sizes[-1]) for edge in self.sizes))

    def size_of(self, epoch: int) -> int:
        """The edge of the crops in ``epoch``."""
        return self.sizes[min(epoch * len(self.sizes) // max(self.epochs, 1), len(self.sizes) - 1)]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the heads should say of N photos.

    Attributes:
        classes: int64 (N,), the class or NO_LABEL.
        gate: float32 (N,), 1 for food, 0 for anything else.
    """

    classes: torch.Tensor
    gate: torch.Tensor

    def __getitem__(self, places: Any) -> Targets:
        return Targets(self.classes[places], self.gate[places])


Progress = Callable[[int, float], None]
"""Told after each step: how many are done, and the running loss of the epoch."""

NOT_FOOD_WEIGHT = 3.0
HEAD_DECAY = 2.0
"""Strong, since there are ten times more weights than photos: on a tenth of 9,759 training photos held back,
0.05 gave a top-1 of 53.6 %, 0.5 gave 54.6 % and 2 gave 55.6 %."""
SCORE_PENALTY = 100.0
"""Ridge penalty on the direction of a score head, for features of unit variance."""


def features(
    network: Network,
    pixels: NDArray[np.uint8],
    size: int,
    *,
    batch: int = 64,
    done: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The frozen backbone's view of the centre of each photo: uint8 (N, S, S, 3) → float32 (N, F).

    ``size`` is the edge of the centre; ``done`` is told how many photos each batch was.
    """
    device = next(network.parameters()).device
    edge = (pixels.shape[1] - size) // 2
    network.eval()
    parts = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
        for start in range(0, len(pixels), batch):
            crops = torch.from_numpy(pixels[start : start + batch, edge : edge + size, edge : edge + size])
            parts.append(network.features(crops.to(device)).float().cpu())
            if done:
                done(len(crops))
    return torch.cat(parts)


def loss_of(logits: torch.Tensor, targets: Targets, recipe: Recipe) -> torch.Tensor:
    """Softmax over the classes where there is a label, and the gate on every photo.

    The gate is the last logit. Photos that are not food are few, so each counts ``NOT_FOOD_WEIGHT`` times.
    """
    smoothed = targets.gate * (1 - recipe.smoothing) + recipe.smoothing / 2
    weight = 1 + (NOT_FOOD_WEIGHT - 1) * (1 - targets.gate)
    gate = functional.binary_cross_entropy_with_logits(logits[:, -1], smoothed, weight)
    return _class_loss(logits[:, :-1], targets, recipe) + recipe.gate_weight * gate


def _class_loss(logits: torch.Tensor, targets: Targets, recipe: Recipe) -> torch.Tensor:
    labelled = targets.classes != NO_LABEL
    return functional.cross_entropy(
        logits[labelled], targets.classes[labelled], label_smoothing=recipe.smoothing, reduction="sum"
    ) / len(logits)


def fit_heads(
    known: torch.Tensor, targets: Targets, recipe: Recipe, classes: int, *, gated: bool
) -> torch.nn.Linear:
    """One linear layer on frozen features (N, F): the classes and, if ``gated``, the gate as the last row."""
    loss = loss_of if gated else _class_loss
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        head = torch.nn.Linear(known.shape[1], classes + gated)
        torch.nn.init.zeros_(head.bias)
        _descend(
            head,
            len(known),
            lambda at: loss(head(functional.dropout(known[at], recipe.drop)), targets[at], recipe),
        )
    return head.requires_grad_(requires_grad=False)


def fit_score_head(known: torch.Tensor, scores: torch.Tensor) -> torch.nn.Linear:
    """Four rows for "is the score above 1, 2, 3, 4?" on frozen features (N, F), from scores 1–5 (N,).

    The rows share one direction and differ in where they cut it (proportional odds; CORAL, Cao et al. 2020,
    arXiv:1901.07884), so their answers never contradict each other, and 200 photos are enough. The loss is
    convex and the features few thousand, so L-BFGS finds its one minimum on all photos at once.
    """
    centre, spread = known.mean(0), known.std(0) + 1e-3
    seen = ((known - centre) / spread).double()
    above = (scores[:, None] > torch.arange(1, SCORES)).double()
    direction = torch.zeros(known.shape[1], dtype=torch.float64, requires_grad=True)
    cuts = torch.zeros(SCORES - 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([direction, cuts], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        answers = (seen @ direction)[:, None] + cuts
        value = functional.binary_cross_entropy_with_logits(answers, above, reduction="sum")
        value = value + SCORE_PENALTY * direction.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    rows = torch.nn.Linear(known.shape[1], SCORES - 1)
    weight = (direction.detach() / spread).float()
    rows.weight.data = weight.repeat(SCORES - 1, 1)
    # At the minimum they fall already; the last digits of a search might not.
    falling = cuts.detach().sort(descending=True).values
    rows.bias.data = (falling - (centre / spread).double() @ direction.detach()).float()
    return rows.requires_grad_(requires_grad=False)


def _descend(model: torch.nn.Module, count: int, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """40 passes of AdamW in batches of 256, and 600 steps at least, at a rate that rises and falls once."""
    batch, rate = 256, 4e-3
    epochs = max(40, math.ceil(600 / math.ceil(count / batch)))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": HEAD_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate)
    steps = epochs * math.ceil(count / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    for _ in range(epochs):
        for at in torch.split(torch.randperm(count), batch):
            optimiser.zero_grad()
            loss(at).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()


class _Augmented(Dataset[tuple[torch.Tensor, int]]):
    """One epoch's photos: (size, size, 3) uint8 and the photo's place. Drawn alike each time."""

    def __init__(self, pixels: NDArray[np.uint8], recipe: Recipe, epoch: int) -> None:
        self._pixels, self._recipe, self._epoch = pixels, recipe, epoch
        self._augment = phone_photo(recipe.size_of(epoch), recipe.smallest_crop)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(_seed(self._recipe.seed, self._epoch, place))
        planes = torch.from_numpy(self._pixels[place]).permute(2, 0, 1).contiguous()
        return self._augment(planes).permute(1, 2, 0).contiguous(), place


class FineTuning:
    """Training of the whole network, from the heads that ``fit_heads`` found; resumable at any step.

    Batch normalisation keeps the base's statistics throughout. Going by each batch's own instead throws away
    much of what the base knows (a linear layer on features of EfficientNet-Lite2 falls from 58 to 42 % on the
    classes of the calibration split), and the first four epochs are spent on getting it back. Kept statistics
    ask for small steps: at a rate of 5e-4 the loss rises.

    Attributes:
        losses: mean training loss of each finished epoch.
    """

    def __init__(
        self,
        network: Network,
        pixels: NDArray[np.uint8],
        targets: Targets,
        recipe: Recipe,
        *,
        workers: int = 2,
        origin: str = "",
    ) -> None:
        """``origin`` says what data and weights this began with; a checkpoint of others is refused."""
        self.network, self.recipe = network, recipe
        self._origin = origin
        self._pixels, self._targets = pixels, targets
        self._workers = min(workers, os.cpu_count() or 1)
        self._device = next(network.parameters()).device
        self.epoch = self.step = 0
        self.losses: list[float] = []
        # What is left over after the last whole batch waits for another epoch.
        self._batch = min(recipe.batch, len(pixels))
        self.steps_per_epoch = len(pixels) // self._batch
        self.steps = recipe.epochs * self.steps_per_epoch
        self._frozen = network.stages()[: recipe.frozen]
        for stage in self._frozen:
            stage.requires_grad_(False)
        self._average = AveragedModel(
            network,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.average),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self._optimiser = torch.optim.AdamW(self._groups(), lr=recipe.rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser,
            [group["lr"] for group in self._optimiser.param_groups],
            total_steps=max(self.steps, 1),
            pct_start=0.08,
            cycle_momentum=False,
            div_factor=20,
            final_div_factor=200,
        )

    @property
    def averaged(self) -> Network:
        """The moving average of the network: what should be kept."""
        return cast(Network, self._average.module)

    def _groups(self) -> Iterator[dict[str, Any]]:
        recipe = self.recipe
        trained = self.network.stages()[recipe.frozen :]
        for depth, stage in enumerate(reversed(trained)):
            rate = recipe.rate * (recipe.head_factor if depth == 0 else recipe.depth_decay ** (depth - 1))
            parameters = list(stage.parameters())
            # Norms and biases are not decayed: pulling a scale to 0 regularises nothing.
            yield {
                "params": [p for p in parameters if p.ndim > 1],
                "lr": rate,
                "weight_decay": recipe.weight_decay,
            }
            yield {"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}

    def run(self, progress: Progress, checkpoint: Callable[[], None]) -> Iterator[int]:
        """Train from where it stands; yields after each epoch, whose number is then ``epoch`` - 1.

        ``checkpoint`` is called between steps and decides by itself when it is time to save.
        """
        while self.epoch < self.recipe.epochs:
            total, count = 0.0, 0
            for loss in self._epoch():
                total, count = total + loss, count + 1
                progress(self.epoch * self.steps_per_epoch + self.step, total / count)
                checkpoint()
            self.losses.append(total / max(count, 1))
            self.epoch, self.step = self.epoch + 1, 0
            yield self.epoch - 1

    def _epoch(self) -> Iterator[float]:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(_seed(recipe.seed, self.epoch))
        order = torch.randperm(len(self._pixels), generator=generator)
        batches = order[: self.steps_per_epoch * self._batch].view(-1, self._batch).tolist()
        loader = DataLoader(
            _Augmented(self._pixels, recipe, self.epoch),
            batch_sampler=batches[self.step :],
            num_workers=self._workers,
        )
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        for stage in self._frozen:
            stage.eval()
        for pixels, places in loader:
            torch.manual_seed(_seed(recipe.seed, self.epoch, self.step, 1))
            loss = self._train(pixels.to(self._device), self._targets[places])
            self.step += 1  # before anybody may save: what is saved has been done
            yield loss

    def _train(self, pixels: torch.Tensor, targets: Targets) -> float:
        recipe = self.recipe
        targets = Targets(targets.classes.to(self._device), targets.gate.to(self._device))
        share, other = 1.0, None
        if float(torch.rand(())) < recipe.mix:
            pixels, share, other = _mixed(pixels.float())
        with FastDepthwise(), torch.autocast(self._device.type, dtype=torch.bfloat16):
            logits = self.network(pixels)
        loss = loss_of(logits, targets, recipe)
        if other is not None:
            loss = share * loss + (1 - share) * loss_of(logits, targets[other], recipe)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self._optimiser.step()
        self._schedule.step()
        if not math.isfinite(value := float(loss.detach())):
            raise ValueError("the loss is not a number any more: a lower --rate may help")
        if self._schedule.last_epoch > self.steps_per_epoch // 2:
            self._average.update_parameters(self.network)
        return value

    def save(self, path: Path) -> None:
        """Write everything that ``resume`` needs; the file is whole or is the one before."""
        fresh = path.with_suffix(".part")
        torch.save(
            {
                "recipe": asdict(self.recipe),
                "origin": self._origin,
                "epoch": self.epoch,
                "step": self.step,
                "losses": self.losses,
                "network": self.network.state_dict(),
                "average": self._average.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "schedule": self._schedule.state_dict(),
            },
            fresh,
        )
        fresh.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what ``save`` wrote. Raises ValueError if it was of another recipe or origin."""
        state = torch.load(path, map_location=self._device, weights_only=True)
        if (state["recipe"], state["origin"]) != (asdict(self.recipe), self._origin):
            raise ValueError(
                f"{path} was made by another recipe, or from other photos or weights: raise the version, or "
                "delete it to begin anew"
            )
        self.network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]


def _seed(*parts: int) -> int:
    """A seed of its own for everything that is drawn: neighbours must not share a sequence."""
    words = np.random.SeedSequence(parts).generate_state(2, np.uint32).tolist()
    return int(words[0]) << 31 | int(words[1]) >> 1


def _mixed(pixels: torch.Tensor) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Blend each photo with another (mixup), or paste a rectangle of it (CutMix), half of the time each.

    Returns the photos, the share that is still the first photo, and which the other one is.
    """
    other = torch.randperm(len(pixels), device=pixels.device)
    if float(torch.rand(())) < 0.5:
        share = float(torch.distributions.Beta(0.2, 0.2).sample())
        return torch.lerp(pixels[other], pixels, share), share, other
    size = pixels.shape[1]
    edge = int(size * math.sqrt(1 - float(torch.rand(()))))
    top, left = (int(torch.randint(0, size - edge + 1, ())) for _ in range(2))
    pixels = pixels.clone()
    pixels[:, top : top + edge, left : left + edge] = pixels[other, top : top + edge, left : left + edge]
    return pixels, 1 - (edge / size) ** 2, other
