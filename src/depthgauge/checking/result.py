"""What a check found: an answer a question, as text, page, table and JSON."""

# ruff: noqa: PLC0415 - pages and tables are made for whoever asks for them

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthgauge import environment
from depthgauge.checking.about import About
from depthgauge.checking.answers import WORST_FIRST, Answer, Finding, Status, worst

if TYPE_CHECKING:
    import pandas as pd

    from depthgauge.checking.against import Changes

_COLUMNS = (
    "question", "status", "kind", "text", "advice", "expected", "where", "measure", "value", "low", "high", "unit",
    "method", "tried", "before", "after",
)  # fmt: skip
_NUMBERS = ("value", "low", "high", "before", "after")


@dataclass(frozen=True, eq=False, repr=False)
class Checked:
    """What a check found.

    Attributes:
        asked: the answers, in the order of the questions.
        budget: seconds that it was given.
        about: the training that was asked about.
        stored: the environment of one that was read from a file; None for that of this process.
    """

    asked: tuple[Answer, ...]
    budget: float
    about: About = field(default_factory=About)
    stored: Mapping[str, Any] | None = None

    @cached_property
    def answers(self) -> Mapping[str, Answer]:
        """By the question's id."""
        return {answer.id: answer for answer in self.asked}

    @property
    def status(self) -> Status:
        """That of the worst answer."""
        return worst(answer.status for answer in self.asked)

    @property
    def exit_code(self) -> int:
        """0 where all is fine or to be looked at, 3 broken, 4 undecided, 5 where nothing could be measured."""
        statuses = [answer.status for answer in self.asked]
        if Status.BROKEN in statuses:
            return 3
        if all(status is Status.UNDECIDED for status in statuses):
            return 5
        return 4 if Status.UNDECIDED in statuses else 0

    @cached_property
    def run(self) -> Mapping[str, Any]:
        """The environment: versions, machine, device."""
        if self.stored is not None:
            return self.stored
        device = self.about.device if self.about.device.startswith("cuda") else "cpu"
        return environment.fingerprint(device, self.about.threads)

    # -- to be read ----------------------------------------------------------------------------------------------------

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
        """What `check.json` holds: strict JSON, with "nan", "inf" and "-inf" for numbers that JSON lacks."""
        from depthgauge.checking.written import as_dict

        return as_dict(self)

    def write(self, folder: str | Path, earlier: Checked | None = None) -> Path:
        """Write `check.json`, `card.md`, `index.html` and the evidence into a folder, and return the page's path.

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

        return read(Path(path))

    def against(self, earlier: Checked | str | Path) -> Changes:
        """What became better, worse or stayed the same since an earlier check, or its `check.json`."""
        from depthgauge.checking.against import against

        return against(self, earlier if isinstance(earlier, Checked) else Checked.read(earlier))

    def named(self, name: str, note: str = "") -> Checked:
        """The same under another name, that of the factory that made the training, with a note on it."""
        return replace(self, about=replace(self.about, name=name, note=note))

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
