"""The report of a stored run, written as one whole: all of it or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from depthgauge.reports import pages
from depthgauge.reports.content import Section, examine
from depthgauge.reports.escaping import clean
from depthgauge.reports.headlines import by_topic
from depthgauge.reports.replacing import replacing, restore
from depthgauge.store import Stored
from depthgauge.study import Study
from depthgauge.verdict import Verdict

FINDINGS = "findings.json"  # the machine's view, by which a report of studies is known


class IncompleteReportError(Exception):
    """The report is written, but some study's part of it is not complete.

    Attributes:
        path: the report.
        errors: for each study concerned, what was raised by reading, analysing or drawing it.
    """

    def __init__(self, path: Path, problems: Mapping[str, str], errors: Mapping[str, tuple[Exception, ...]]) -> None:
        sentences = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        super().__init__(clean(f"the report is written, but not complete: {sentences}"))
        self.path = path
        self.errors = errors


class LostStudyError(Exception):
    """No report is written: an earlier one has the answers of a study that this one could not analyse."""


def render(
    stored: Stored,
    studies: Mapping[str, Study],
    *,
    progress: Callable[[str], None] | None = None,
    kept: dict[str, Section] | None = None,
) -> Path:
    """Write `report/` into the stored run's directory, in place of an earlier one, and return its `report.md`.

    Args:
        stored: the run.
        studies: the studies by name; it may hold more than those that are stored.
        progress: told in a few words what is being done.
        kept: study -> its section, where it was examined before; those that are examined now are added.

    Raises:
        LostStudyError: the earlier report has the answers of a study that is not in `studies`; it stays as it is.
        IncompleteReportError: a study could not be read, analysed or drawn. The report is written all the same, says so
            on that study's page, and holds everything else.
        OSError: it could not be written; an earlier report is still there.
    """
    path = stored.directory / "report"
    restore(path)
    if lost := [name for name in _answered(path / FINDINGS) & set(stored.studies) if name not in studies]:
        raise LostStudyError(
            clean(
                f"the report in {path} stays as it is: without the code of {' and '.join(sorted(lost))} a new one would"
                " lose its answers; name the present file or folder by --studies"
            )
        )
    tell = progress or (lambda _: None)
    sections: list[Section] = []
    errors: dict[str, tuple[Exception, ...]] = {}
    kept = {} if kept is None else kept
    for name in sorted(stored.studies):
        section, raised = (kept[name], ()) if name in kept else examine(stored, name, studies.get(name), tell)
        kept[name] = section
        sections.append(section)
        if raised:
            errors[name] = raised
    sections = list(by_topic(sections))
    tell("writing pages")
    with replacing(path, FINDINGS) as folder:
        _write(folder, sections, stored.run)
    if errors:
        problems = {section.name: section.problems[0] for section in sections if section.name in errors}
        raise IncompleteReportError(path / "report.md", problems, errors)
    return path / "report.md"


def render_partly(stored: Stored, sections: Sequence[Section], coming: Sequence[str]) -> bool:
    """Write the report on the studies that a run has finished; it says which are to come.

    An earlier report that has the answers of others stays; then nothing is written, and the answer is False.

    Args:
        stored: the run, which goes on.
        sections: the studies that are finished.
        coming: names of the others.
    """
    path = stored.directory / "report"
    restore(path)
    if _answered(path / FINDINGS) - {section.name for section in sections}:
        return False
    with replacing(path, FINDINGS) as folder:
        _write(folder, list(by_topic(sections)), {**stored.run, "coming": list(coming)})
    return True


def _answered(findings: Path) -> set[str]:
    """The studies whose code the report of these findings had."""
    try:
        studies = json.loads(findings.read_bytes())["studies"]
        return {name for name, study in studies.items() if study["question"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()  # there is no report, or one that somebody has edited


def _write(folder: Path, sections: list[Section], run: Mapping[str, Any]) -> None:
    (folder / "figures").mkdir()
    (folder / "tables").mkdir()
    for section in sections:
        for drawing in section.drawings:
            (folder / "figures" / f"{drawing.stem}.png").write_bytes(drawing.png)
            (folder / "figures" / f"{drawing.stem}.svg").write_bytes(drawing.svg)
        for table in section.tables:
            (folder / "tables" / f"{table.stem}.csv").write_bytes(table.csv)
        (folder / f"{section.slug}.md").write_bytes(pages.study_page(section, run).encode())
    (folder / "report.md").write_bytes(pages.report_page(sections, run).encode())
    (folder / "index.html").write_bytes(pages.index_page(sections, run).encode())
    (folder / FINDINGS).write_bytes(findings(sections, run).encode())


def findings(sections: list[Section], run: Mapping[str, Any]) -> str:
    """`findings.json`: strict JSON, keys sorted, non-finite numbers as the strings "nan", "inf" and "-inf"."""
    apart = run.get("apart", {})  # of runs that were joined
    studies = {
        section.name: {
            "question": section.question,
            "topic": section.topic,
            "preset": section.preset,
            "model": section.model or None,
            "unfinished": section.unfinished,
            "waiting": section.waiting,
            "cases": section.cases,
            "failed": section.failed,
            "diverged": section.diverged,
            "answers": [asdict(answer) for answer in section.answers],
            "verdicts": [_verdict(verdict, section) for verdict in section.verdicts],
            "tables": {table.name: f"tables/{table.stem}.csv" for table in section.tables},
            "figures": [f"figures/{drawing.stem}.{kind}" for drawing in section.drawings for kind in ("png", "svg")],
            "problems": list(section.problems),
            "stopped": list(section.stopped),
            **({"run": apart[section.name]} if section.name in apart else {}),
        }
        for section in sections
    }
    whole = {"schema": 2, "run": run.get("common", run.get("fingerprint", {})), "studies": studies}
    return json.dumps(strict(whole), sort_keys=True, indent=1, allow_nan=False) + "\n"


def _verdict(verdict: Verdict, section: Section) -> dict[str, Any]:
    settled = section.settle.get(verdict.id)
    return {
        **asdict(verdict),
        "topic": section.topics.get(verdict.id, section.topic),
        "settle": settled.text if settled else "",
        "settle_command": settled.command if settled else "",
    }


def strict(value: Any) -> Any:
    """`value` as strict JSON has it: non-finite numbers as the strings "nan", "inf" and "-inf"."""
    match value:
        case Mapping():
            return {str(key): strict(inner) for key, inner in value.items()}
        case list() | tuple():
            return [strict(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(float(value))
        case _:
            return value
