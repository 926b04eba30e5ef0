"""The pictures of an evaluation report, for light and dark pages: functions of ``evaluation.json``."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, Any]]
"""The figures by the models' names, see ``models.evaluation.measure.measure``."""

PER_ROW = 4
_COLOURS = ("#3b82c4", "#e08214", "#2a9d74", "#a06cd5", "#d1495b", "#8a8d91")
_DPI = 144


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of the ink and of the page; the page itself shows through."""

    ink: str
    page: str
    grid: str


LIGHT = Theme("#24292b", "#ffffff", "#d7dcda")
DARK = Theme("#dfe4e1", "#171b19", "#3a413d")

Draw = Callable[[Results, Theme], Figure]


def png(draw: Draw, results: Results, theme: Theme) -> bytes:
    """A picture as a PNG file with a transparent ground."""
    style: Any = {
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "font.size": 9,
    }
    with rc_context(style):
        figure = draw(results, theme)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def score_confusions(results: Results, theme: Theme) -> Figure:
    """True scores down, given ones across; the shade is the share of the row."""
    shades = LinearSegmentedColormap.from_list("shades", [theme.page, _COLOURS[0]])
    figure, axes = _grid(len(results), 2.6, 2.9)
    for panel, (name, result) in zip(axes, results.items(), strict=True):
        counts = np.array(result["confusion"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panel.imshow(shares, cmap=shades, vmin=0, vmax=1)
        for row, column in np.ndindex(counts.shape):
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8)
        panel.set(xlabel="score given", ylabel="true score", title=name)
        panel.set_xticks(range(5), list("12345"))
        panel.set_yticks(range(5), list("12345"))
        panel.grid(visible=False)
        panel.tick_params(length=0)
    return figure


def reliability_diagrams(results: Results, theme: Theme) -> Figure:
    """How often an answer is right, by how sure the model is of it; on the diagonal it means what it says."""
    figure, axes = _grid(2, 4.2, 3.8)
    panels = (("reliability", "the likeliest food"), ("score_reliability", "the score"))
    for panel, (curve, title) in zip(axes, panels, strict=True):
        panel.plot([0, 1], [0, 1], color=theme.grid, linewidth=1)
        for colour, (name, result) in _coloured(results):
            rows = np.array(result["curves"][curve]).reshape(-1, 3)
            panel.plot(rows[:, 0], rows[:, 1], "o-", color=colour, label=name, markersize=3.5, linewidth=1.3)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="right", title=title)
    axes[0].legend(loc="upper left")
    return figure


def coverage_and_risk(results: Results, _: Theme) -> Figure:
    """What the review threshold buys: the more photos go to a person, the fewer scores are far off."""
    figure, (panel,) = _grid(1, 6.4, 3.6)
    for colour, (name, result) in _coloured(results):
        rows = np.array(result["curves"]["coverage_risk"]).reshape(-1, 3)
        panel.plot(rows[:, 1], rows[:, 2], color=colour, label=name, linewidth=1.5)
        overall = result["overall"]
        if overall["answered within one"] is not None:
            far_off = 1 - overall["answered within one"]
            panel.plot(overall["answered"], far_off, "o", color=colour, clip_on=False, zorder=3)
    panel.set(xlim=(0, 1), xlabel="share of photos that get a score", ylabel="scores off by more than one")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper left")
    return figure


def gate_curves(results: Results, _: Theme) -> Figure:
    """Meals that pass the gate, against other photos that do; the dots are the manifests' thresholds."""
    figure, (panel,) = _grid(1, 6.4, 3.6)
    for colour, (name, result) in _coloured(results):
        rows = np.array(result["curves"]["gate"]).reshape(-1, 3)
        panel.plot(rows[:, 2], rows[:, 1], color=colour, label=name, linewidth=1.5)
        overall = result["overall"]
        if overall["false alarms"] is not None and overall["gate recall"] is not None:
            at = overall["false alarms"], overall["gate recall"]
            panel.plot(*at, "o", color=colour, clip_on=False, zorder=3)
    # Few photos of anything else: below one of a hundred there is nothing to see.
    panel.set_xscale("symlog", linthresh=0.01, linscale=0.5)
    ticks = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set(xlim=(0, 1), xlabel="false alarms: other photos that pass", ylabel="meals that pass")
    # Nobody serves a gate that turns every other meal away.
    served = [result["overall"]["gate recall"] or 0 for result in results.values()]
    panel.set_ylim(0.5 if min(served) > 0.5 else 0, 1)
    panel.legend(loc="lower right")
    return figure


def robustness_bars(results: Results, _: Theme) -> Figure:
    """The same photos, spoilt in one way each."""
    first = next(iter(results.values()))["robustness"]
    kinds = [name for name in next(iter(first.values())) if name != "photos"]
    figure, axes = _grid(len(kinds), 3.4, 0.9 + 0.12 * len(first) * (len(results) + 1))
    height = 0.8 / len(results)
    places = np.arange(len(first))
    for panel, kind in zip(axes, kinds, strict=True):
        for number, (colour, (name, result)) in enumerate(_coloured(results)):
            shares = [found[kind] or 0 for found in result["robustness"].values()]
            panel.barh(places + number * height - 0.4, shares, height, align="edge", color=colour, label=name)
        panel.set(xlim=(0, 1), ylim=(len(first) - 0.45, -0.55), title=kind)
        panel.set_yticks(places, list(first) if panel is axes[0] else [""] * len(first))
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    return figure


def class_bars(results: Results, theme: Theme) -> Figure:
    """Top-1 of each class of the data: bars for the first model, dots for the others."""
    (name, first), *others = results.items()
    ranked = sorted(first["classes"].items(), key=lambda item: (-(item[1]["food top-1"] or 0), item[0]))
    columns = min(3, math.ceil(len(ranked) / 24)) or 1
    rows = max(1, math.ceil(len(ranked) / columns))
    figure, axes = _grid(columns, 3.4, 1.0 + 0.15 * rows)
    for start, panel in zip(range(0, columns * rows, rows), axes, strict=True):
        part = ranked[start : start + rows]
        places = range(len(part))
        shares = [found["food top-1"] or 0 for _, found in part]
        panel.barh(places, shares, color=_COLOURS[0], alpha=0.6, label=name)
        for (other, result), colour in zip(others, _COLOURS[1:], strict=False):
            shares = [result["classes"][key]["food top-1"] or 0 for key, _ in part]
            panel.plot(shares, places, "o", color=colour, markersize=3, label=other, clip_on=False)
        panel.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
        panel.set_yticks(places, [f"{key} ({found['photos']})" for key, found in part], fontsize=7)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_color(theme.grid)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines[-1:] + lines[:-1], labels[-1:] + labels[:-1], loc="outside lower center", ncols=4)
    return figure


def _grid(panels: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels of this size, in inches, PER_ROW side by side."""
    across, down = min(panels, PER_ROW), math.ceil(panels / PER_ROW)
    figure = Figure(figsize=(across * width, down * height), dpi=_DPI, layout="constrained")
    axes: list[Axes] = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def _coloured(results: Results) -> list[tuple[str, tuple[str, Mapping[str, Any]]]]:
    return [(_COLOURS[place % len(_COLOURS)], item) for place, item in enumerate(results.items())]
