"""Labels as CSV: what a training reads, and a spreadsheet opens without running any of it."""

from __future__ import annotations

import csv
import io
import re

from app.schemas import Label, Labels

COLUMNS = tuple(field.alias or name for name, field in Label.model_fields.items())
_FREE_TEXT = ("reviewer", "comment")
# Also full-width, and behind what a spreadsheet may skip.
_FORMULA = re.compile(r"[\s\x00-\x1f]*[=+\-@＝＋－＠]")


def to_csv(labels: Labels) -> str:
    """A page of labels with its header (RFC 4180).

    A spreadsheet takes a cell that begins with =, +, - or @ for a formula, quoted or not. An apostrophe in
    front prevents that; nobody trains on the columns that get one.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    for label in labels.items:
        row = label.model_dump(mode="json", by_alias=True)
        harmless = {name: f"'{row[name]}" for name in _FREE_TEXT if _FORMULA.match(row[name])}
        writer.writerow(row | harmless)
    return table.getvalue()
