"""Studies from Python: `depthgauge.run` measures and reports, and returns what it found.

    import depthgauge

    result = depthgauge.run("gradient_flow")
    result                                   # in a notebook: the findings, with their pictures
    result.verdicts.query("status == 'fails'")
    result.frame()                           # every measured row
    result.report()                          # the address of index.html

What was measured stays in its directory, as after the command of that name.
"""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from markupsafe import escape

from depthgauge import models, reports, running
from depthgauge.cli.ending import tally
from depthgauge.cli.growing import growing
from depthgauge.cli.report import load
from depthgauge.cli.run import default_directory
from depthgauge.cli.watching import both, watching
from depthgauge.factories import Target
from depthgauge.folder import write_whole
from depthgauge.reports.content import Drawing, Section
from depthgauge.reports.escaping import clean
from depthgauge.reports.headlines import by_topic, headlines
from depthgauge.request import Request, choose
from depthgauge.store import storage_errors
from depthgauge.study import Study
from depthgauge.worker import RunError, is_worker

_COLUMNS = (
    "id", "claim", "status", "says", "observed", "low", "high", "predicted", "reference", "unit", "n", "counted",
    "condition", "why", "method",
)  # fmt: skip
_NUMBERS = ("observed", "low", "high", "predicted")


@dataclass(frozen=True)
class Picture:
    """A figure of a study; a notebook shows it.

    Attributes:
        drawing: its message, caption, alternative text, PNG and SVG.
    """

    drawing: Drawing

    def save(self, path: str | Path) -> Path:
        """Write it as `.png` or `.svg`, by the name's ending.

        Raises:
            ValueError: the name ends in neither.
        """
        kinds = {".png": self.drawing.png, ".svg": self.drawing.svg}
        path = Path(path)
        if path.suffix not in kinds:
            raise ValueError(f"a picture is saved as .png or .svg; {path.name} ends in neither")
        write_whole(path, kinds[path.suffix])
        return path

    def _repr_png_(self) -> bytes:
        return self.drawing.png

    def __repr__(self) -> str:
        return f"<Picture {self.drawing.stem}: {self.drawing.title}>"


@dataclass(frozen=True)
class Result:
    """The result of a run: rows, verdicts, findings, figures.

    Attributes:
        outcome: the run's rows, requests and counts.
        sections: the content of its report, a study at a time, in the order of a report's questions.
    """

    outcome: running.Outcome
    sections: tuple[Section, ...]

    @property
    def directory(self) -> Path:
        """The run's directory, wherever the program has gone since."""
        return self.outcome.stored.directory

    @property
    def studies(self) -> tuple[str, ...]:
        """The studies' names."""
        return tuple(section.name for section in self.sections)

    def frame(self, study: str | None = None) -> pd.DataFrame:
        """The measured rows of a study, as `Stored.frame` has them; of all, with a column `study`, where none is named.

        Raises:
            StoreError: there is no such study in the run, or its directory is gone, or a file of it is damaged.
        """
        stored = self.outcome.stored
        if study is not None or len(self.studies) == 1:
            return stored.frame(study or self.studies[0])
        return pd.concat([stored.frame(name).assign(study=name) for name in self.studies], ignore_index=True)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """A row a claim: `study`, then the fields of `depthgauge.verdict.Verdict` that a reader needs."""
        rows = [
            {"study": section.name, **{name: getattr(verdict, name) for name in _COLUMNS}}
            for section in self.sections
            for verdict in section.verdicts
        ]
        frame = pd.DataFrame(rows, columns=["study", *_COLUMNS])
        return frame.astype({"status": str, **dict.fromkeys(_NUMBERS, float), "n": int})

    @property
    def answers(self) -> tuple[str, ...]:
        """The findings in sentences, the most useful first, by turns over the studies."""
        every = sum(len(section.answers) for section in self.sections)
        return tuple(headline.sentence.text for headline in headlines(self.sections, most=every))

    @property
    def figures(self) -> Mapping[str, Picture]:
        """The figures, by their name; `study.name` where there are several studies."""
        several = len(self.sections) > 1
        return {
            drawing.stem if several else drawing.name: Picture(drawing)
            for section in self.sections
            for drawing in section.drawings
        }

    def report(self) -> Path:
        """The address of the page, `index.html`, which one file holds with all its pictures."""
        return self.directory / "report" / "index.html"

    def __repr__(self) -> str:
        found = (clean(text) for text in self.answers[:3])
        lines = [tally(self.sections), *(f"  - {text}" for text in found), str(self.report())]
        return "\n".join(filter(None, lines))

    def _repr_html_(self) -> str:
        items = (_item(headline.sentence.text, headline.drawing) for headline in headlines(self.sections, most=5))
        counted = escape(tally(self.sections) or "No claim was asked.")
        page = f"<p>All of it: <code>{escape(str(self.report()))}</code></p>"
        return f"<p><b>{counted}</b></p><ul>{''.join(items)}</ul>{page}"


def run(
    *studies: str | Study,
    preset: str = "quick",
    seeds: int | None = None,
    model: str | Target | None = None,
    device: str = "cpu",
    workers: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    sources: str | Path | Sequence[str | Path] = (),
) -> Result:
    """Run studies and write their report, as `depthgauge run` does; what is finished is not measured again.

    Args:
        studies: names, or studies; none: all there are.
        preset: how much to measure: `quick`, `standard`, `full`.
        seeds: repetitions, in place of the preset's own.
        model: run on this model alone: a name, or `package.module:factory`.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        workers: processes; 0 runs in this one. Default: one a core, on a GPU one.
        out: the run directory; by default `runs/STUDIES-PRESET`.
        fresh: forget what is stored in it; files that are not depthgauge's stay.
        sources: place or places of your own studies: files, folders, packages.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a number is out of its range.
        RunError: it is called as a worker imports the file of a study: it then belongs below
            `if __name__ == "__main__":`.
        UnknownStudyError: as `depthgauge.running.run`, whose other errors it raises, too.
        LostStudyError: as `depthgauge.reports.render`.
    """
    if is_worker():
        raise RunError(
            "a worker imports this file for the study in it, and would run it again: put the call of depthgauge.run"
            ' below `if __name__ == "__main__":`'
        )
    _check(studies, preset, seeds, model, workers)
    target = models.target(model) if isinstance(model, str) else model
    places = tuple(map(str, [sources] if isinstance(sources, str | Path) else sources))
    request = Request(preset, seeds, target, device)
    chosen = choose(studies, preset, places)
    questions = {study.name: study.question for study in chosen}
    names = tuple(study if isinstance(study, str) else study.name for study in studies)
    where = Path(out) if out is not None else default_directory(names, preset, device, target)
    with growing(where, tuple(questions), workers) as (follow, sections):
        with watching(questions) as watch:
            outcome = running.run(
                *studies,
                out=where,
                request=request,
                workers=workers,
                fresh=fresh,
                sources=places,
                observe=both(watch, follow),
            )
        kept = sections()
    return _reported(outcome, kept, places)


def _check(studies: Sequence[object], preset: object, seeds: object, model: object, workers: object) -> None:
    """Check the arguments of `run`, whose names the command line checks for itself."""
    if wrong := [one for one in studies if not isinstance(one, str | Study)]:
        raise TypeError(
            f"a study is named or given itself, not as {type(wrong[0]).__name__}; several stand side by side:"
            ' depthgauge.run("activation", "precision")'
        )
    if not isinstance(preset, str):
        raise TypeError(f"preset is {preset!r}, where a name such as 'quick' was expected")
    if not isinstance(model, str | Target | None):
        raise TypeError("model is a name or 'package.module:factory', not the model itself")
    for name, number, least in (("seeds", seeds, 1), ("workers", workers, 0)):
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} is {number!r}, where a whole number was expected")
        if number < least:
            raise ValueError(f"{name} is {number}, where {least} is the least")


def _reported(outcome: running.Outcome, kept: dict[str, Section], sources: Sequence[str]) -> Result:
    """Write the report on all studies of the directory, and return those of the run."""
    earlier = load(outcome.stored, [name for name in outcome.stored.studies if name not in outcome.studies], sources)
    try:
        with storage_errors(f"the report of {outcome.stored.directory} cannot be written"):
            reports.render(outcome.stored, {**earlier, **outcome.studies}, kept=kept)
    except reports.IncompleteReportError as error:
        warnings.warn(str(error), stacklevel=3)
    stored = replace(outcome.stored, directory=outcome.stored.directory.absolute())
    return Result(replace(outcome, stored=stored), by_topic([kept[name] for name in outcome.studies]))


def _item(text: str, drawing: Drawing | None) -> str:
    if drawing is None:
        return f"<li>{escape(text)}</li>"
    picture = f"data:image/png;base64,{b64encode(drawing.png).decode()}"
    return f'<li>{escape(text)}<br><img alt="{escape(drawing.alt)}" src="{picture}" style="max-width: 40em"></li>'
