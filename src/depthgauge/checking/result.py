"""The result of a check: an answer a question, as text, page, table and JSON."""

# ruff: noqa: PLC0415 - pages and tables are made for whoever asks for them

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthgauge.checking.answers import WORST_FIRST, Answer, Finding
from depthgauge.checking.found import Found

if TYPE_CHECKING:
    import pandas as pd

    from depthgauge.checking.against import Changes

_COLUMNS = (
    "question", "status", "kind", "text", "advice", "expected", "where", "measure", "value", "low", "high", "unit",
    "method", "tried", "before", "after",
)  # fmt: skip
_NUMBERS = ("value", "low", "high", "before", "after")


class Checked(Found):
    """The result of `depthgauge.check`, and all that can be made of it."""

    @property
    def card(self) -> str:
        """The card as text, as wide as the terminal: the worst first."""
        from depthgauge.checking.card import text

        return text(self, shutil.get_terminal_size().columns)

    @property
    def markdown(self) -> str:
        """The card as markdown."""
        from depthgauge.checking.card import page

        return page(self)

    def to_frame(self) -> pd.DataFrame:
        """A row a finding, the worst question first, and one for each question that is fine."""
        import pandas as pd

        ordered = sorted(self.asked, key=lambda answer: WORST_FIRST.index(answer.status))
        rows = [_row(answer, finding) for answer in ordered for finding in answer.findings or (_fine(answer),)]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(dict.fromkeys(_NUMBERS, float))

    def to_dict(self) -> dict[str, Any]:
        """Content of `check.json`: strict JSON, with "nan", "inf" and "-inf" for numbers that JSON lacks."""
        from depthgauge.checking.written import as_dict

        return as_dict(self)

    def write(self, folder: str | Path, earlier: Found | None = None) -> Path:
        """Write `check.json`, `card.md`, `card.svg`, `index.html` and the evidence, and return the page's path.

        Args:
            folder: made where it is missing; other files in it stay.
            earlier: a check that the pages hold this one against.

        Raises:
            OSError: it cannot be written.
        """
        from depthgauge.checking.written import write

        return write(self, Path(folder), earlier)

    @staticmethod
    def read(path: str | Path) -> Checked:
        """The check that a `check.json`, or a folder with one, holds; without the tables.

        Raises:
            JsonError: it is none; the message is one sentence.
        """
        from depthgauge.checking.written import read

        found = read(Path(path))
        return Checked(found.asked, found.budget, found.about, found.stored)

    def against(self, earlier: Found | str | Path) -> Changes:
        """Tell what became better or worse since an earlier check, or its `check.json`."""
        from depthgauge.checking.against import against

        return against(self, earlier if isinstance(earlier, Found) else Checked.read(earlier))

    def named(self, name: str, note: str = "") -> Checked:
        """The same under another name, that of the factory that made the training, with a note on it."""
        return replace(
            self, about=replace(self.about, name=name, note=". ".join(filter(None, (note, self.about.note))))
        )

    def __repr__(self) -> str:
        """The statuses in a line."""
        told = ", ".join(f"{answer.id} {answer.status.value}" for answer in self.asked)
        return f"<Checked {self.status.value}: {told}>"

    def _repr_html_(self) -> str:
        from depthgauge.checking.page import fragment

        return fragment(self)


def _fine(answer: Answer) -> Finding:
    return Finding("", answer.status, answer.says, measure=answer.measure)


def _row(answer: Answer, finding: Finding) -> tuple[Any, ...]:
    measure, tried = finding.measure, finding.tried
    figures = (measure.name, measure.value, measure.low, measure.high, measure.unit, measure.method)
    trial = (tried.what, tried.before, tried.after) if tried else ("", float("nan"), float("nan"))
    what = (answer.id, finding.status.value, finding.kind, finding.text, finding.advice, finding.expected)
    return (*what, ", ".join(finding.where), *figures, *trial)
