"""One page of HTML that shows an evaluation: tables, pictures inlined, nothing fetched, no photo in it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from models.evaluation.corruptions import CORRUPTIONS
from models.evaluation.pictures import (
    DARK,
    LIGHT,
    Draw,
    Results,
    class_bars,
    coverage_and_risk,
    gate_curves,
    png,
    reliability_diagrams,
    robustness_bars,
    score_confusions,
)

_CSS = """
:root { color-scheme: light dark; --ink: #24292b; --soft: #5d6663; --page: #fff; --line: #d7dcda; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe4e1; --soft: #9aa5a0; --page: #171b19; --line: #3a413d; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { max-width: 46rem; margin: .25rem 0 .75rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child, .words :nth-child(2) { text-align: left; }
.facts td { white-space: normal; vertical-align: top; }
tr.first > * { padding-top: .9rem; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""

_FIGURES = (
    ("food top-1", "food top-5", "knows the food", "class top-1", "class top-5"),
    ("score exact", "score within one", "score error"),
    ("answered", "answered exact", "answered within one", "answered error"),
    ("gate recall", "false alarms", "to review"),
    ("calibration error of the food", "calibration error of the score"),
)
_GROUP_FIGURES = (
    "photos", "food top-1", "food top-5", "score exact", "score within one", "score error", "gate recall",
    "false alarms", "to review",
)  # fmt: skip
_IN_POINTS = {"score error", "answered error"}


def report(record: Mapping[str, Any]) -> str:
    """The page for what ``python -m models.evaluate --data`` writes to ``evaluation.json``."""
    results: Results = record["models"]
    data = record["data"]
    names = list(results)
    body = [
        "<h1>Evaluation</h1>",
        f"<p>{', '.join(map(escape, names))}; {data['photos']} photos, {_split(data['split'])}; "
        f"{escape(record['date'].replace('T', ' '))}</p>",
        *_overall(results),
        *_picture(
            "Scores",
            "True scores down, given ones across, whatever the review threshold; the numbers are photos.",
            score_confusions,
            results,
        ),
        *_picture(
            "Coverage and risk",
            "How many scores are off by more than one point if only the surest photos get one. The dots are "
            "the models' own thresholds, the food gate's effect included.",
            coverage_and_risk,
            results,
        ),
        *_picture(
            "Calibration",
            "How often an answer is right, by how sure the model is of it. Below the line it is too sure.",
            reliability_diagrams,
            results,
        ),
        *_picture(
            "The food gate",
            "Each line is a model at every threshold; the dots are the thresholds it is served with.",
            gate_curves,
            results,
        ),
        *_robustness(results),
        "<h2>Groups</h2>",
        _groups(results),
        *_picture(
            "Classes",
            "The share of photos, in brackets their number, whose likeliest food is the true one: bars for "
            "the first model, dots for the others.",
            class_bars,
            results,
        ),
        *_confusions(results),
        *_provenance(record),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation: {escape(names[0])}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _overall(results: Results) -> Iterator[str]:
    yield "<h2>Overall</h2>"
    yield (
        "<p>Food: the likeliest one against the true one, whatever the gate says. Score: the distribution's "
        "mean against the true score, on every photo that has one; answered: on those that would get a score "
        "without a nutritionist. Errors are in points.</p>"
    )
    rows: list[list[str]] = []
    breaks: list[int] = []
    for block in _FIGURES:
        breaks.append(len(rows))
        rows += ([key, *(_cell(result["overall"][key], key) for result in results.values())] for key in block)
    breaks.append(len(rows))
    for key in ("score error", "food top-1"):
        cells = [_difference(result["against the first"], key) for result in results.values()]
        rows.append([f"{key}, against the first (95 %)", "–", *cells[1:]])
    breaks.append(len(rows))
    for key in next(iter(results.values()))["speed"]:
        rows.append([key, *(f"{result['speed'][key]:.1f}" for result in results.values())])
    yield _table(["", *results], rows, breaks)


def _robustness(results: Results) -> Iterator[str]:
    first = next(iter(results.values()))["robustness"]
    photos = max((found["photos"] for found in first.values()), default=0)
    strengths = "; ".join(f"{one.name}: {one.strength}" for one in CORRUPTIONS)
    text = f"The same {photos} photos, spoilt in one way at a time. {strengths}."
    yield from _picture("Robustness", text, robustness_bars, results)


def _groups(results: Results) -> str:
    rows: list[list[str]] = []
    breaks: list[int] = []
    for group in next(iter(results.values()))["groups"]:
        breaks.append(len(rows))
        for name, result in results.items():
            found = result["groups"][group]
            rows.append([f"{group}, {name}", *(_cell(found[key], key) for key in _GROUP_FIGURES)])
    return _table(["", *_GROUP_FIGURES], rows, breaks)


def _confusions(results: Results) -> Iterator[str]:
    yield "<h2>Worst confusions</h2>"
    yield (
        "<p>Foods taken for others, by what it does to the score: the number of photos times the points "
        "that the score is off.</p>"
    )
    for place, (name, result) in enumerate(results.items()):
        rows = [
            [
                one["truth"],
                one["predicted"],
                *map(str, (one["photos"], one["difference"], one["consequence"])),
            ]
            for one in result["worst confusions"]
        ]
        table = _table(["food", "taken for", "photos", "points each", "points in all"], rows)
        opened = "" if place else " open"
        yield f'<details{opened} class="words"><summary>{escape(name)}</summary>{table}</details>'


def _provenance(record: Mapping[str, Any]) -> Iterator[str]:
    data = record["data"]
    facts = {
        "command": f"<code>{escape(record['command'])}</code>",
        "machine": escape(_listed(record["machine"])),
        "versions": escape(_listed(record["versions"])),
        "data": escape(f"{data['source']}, {_split(data['split'])}"),
        "photos": escape(_listed(data["groups"])),
        "SHA-256 of the data": f"<code>{data['sha256']}</code>",
        "left out": escape("; ".join(_left_out(data)) or "nothing"),
    }
    for name, result in record["models"].items():
        model = result["model"]
        said = {"version": model["version"], "classes": model["classes"], "foods": model["foods"]}
        facts[escape(name)] = escape(_listed(said | model["thresholds"] | model["training"]))
    yield "<h2>Where these come from</h2>"
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in facts.items())
    yield f'<div class="scroll words facts"><table>{rows}</table></div>'


def _left_out(data: Mapping[str, Any]) -> Iterator[str]:
    yield from data["warnings"]
    if data["photos that cannot be decoded"]:
        yield f"{data['photos that cannot be decoded']} photos cannot be decoded"


def _picture(title: str, text: str, draw: Draw, results: Results) -> Iterator[str]:
    light, dark = (png(draw, results, theme) for theme in (LIGHT, DARK))
    width = int.from_bytes(light[16:20]) * 7 // 10  # pixels, by the header; drawn finer than they are shown
    yield f"<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>"
    yield (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_inlined(dark)}">'
        f'<img src="{_inlined(light)}" width="{width}" alt="{escape(title)}: {escape(text)}"></picture>'
    )


def _inlined(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], breaks: Sequence[int] = ()) -> str:
    """``breaks`` are the numbers of the rows with some air above them."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    for number, row in enumerate(rows):
        mark = ' class="first"' if number in breaks else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _cell(value: float | int | None, name: str) -> str:
    """Shares in per cent, errors in points, numbers as they are."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if name in _IN_POINTS else f"{100 * value:.1f} %"


def _difference(found: Mapping[str, float | None], name: str) -> str:
    values = (found[name], found[f"{name}, low"], found[f"{name}, high"])
    if None in values:
        return "–"
    mean, low, high = (f"{value:+.3f}" for value in values)
    return f"{mean} ({low} … {high})"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _split(split: str) -> str:
    return "every photo" if split == "all" else f"{split} split"
