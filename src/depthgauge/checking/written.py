"""A check on disk: `check.json` for programs; for people `card.md`, `card.svg`, `index.html`, figures and tables."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from depthgauge.checking import card, evidence, page, picture
from depthgauge.checking.about import About
from depthgauge.checking.against import Changes, against
from depthgauge.checking.answers import Answer, Finding, Measure, Status, Tried
from depthgauge.checking.found import Found
from depthgauge.checking.questions import QUESTIONS
from depthgauge.folder import write_whole
from depthgauge.jsonfile import JsonError, conform
from depthgauge.jsonfile import read as read_json
from depthgauge.reports.escaping import slug
from depthgauge.reports.rendering import strict
from depthgauge.reports.tables import csv_text

T = TypeVar("T")

SCHEMA = 1
_NOT_JSON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NUMBERS = {"value", "low", "high", "before", "after", "seconds", "budget"}  # entries that may be no JSON numbers
_JSON = 16 << 20  # bytes


def as_dict(checked: Found, changes: Changes | None = None) -> dict[str, Any]:
    """Return what `check.json` holds; `changes`, where it was held against an earlier check."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "status": checked.status.value,
        "exit_code": checked.exit_code,
        "asked": {"questions": [answer.id for answer in checked.asked], "budget": checked.budget},
        "about": asdict(checked.about),
        "run": dict(checked.run),
        "answers": {answer.id: _answer(answer) for answer in checked.asked},
    }
    if changes is not None:
        rows = {row.id: {"change": row.change.value, "says": row.says} for row in changes.rows}
        told["against"] = {"earlier": changes.earlier, "answers": rows, "notes": list(changes.notes)}
    return dict(strict(told))


def _answer(answer: Answer) -> dict[str, Any]:
    natures = {kind: each.nature for question in QUESTIONS for kind, each in question.all_kinds.items()
               if question.id == answer.id}  # fmt: skip
    findings = [{**asdict(finding), "nature": natures.get(finding.kind, "")} for finding in answer.findings]
    derived = ("status", "value", "low", "high", "unit", "advice", "expected", "where")
    return {
        "question": answer.question,
        "says": answer.says,
        **{name: getattr(answer, name) for name in derived},
        "seconds": answer.seconds,
        "measure": asdict(answer.measure),
        "findings": findings,
    }


# -- writing -----------------------------------------------------------------------------------------------------------


def write(checked: Found, folder: Path, earlier: Found | None = None) -> Path:
    """Write everything, `check.json` last, and return the path of `index.html`; as `check_place`."""
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {answer.id: evidence.drawn(answer) for answer in checked.asked}
    changes = None if earlier is None else against(checked, earlier)
    pictures = {name: each for name, each in drawn.items() if isinstance(each, evidence.Picture)}
    for name, each in pictures.items():
        _put(folder / "figures" / f"{name}.png", each.png)
    for answer in checked.asked:
        for name, frame in answer.tables.items():
            _put(folder / "tables" / f"{answer.id}.{slug(name)}.csv", csv_text(frame))
    _put(folder / "card.md", card.page(checked, changes, tuple(pictures)).encode())
    _put(folder / "index.html", page.page(checked, drawn, changes).encode())
    _put(folder / "card.svg", picture.svg(checked).encode())
    text = json.dumps(as_dict(checked, changes), indent=1, allow_nan=False)
    _put(folder / "check.json", f"{text}\n".encode())
    return folder / "index.html"


def check_place(folder: Path) -> None:
    """Check that the page of a check may be written there.

    Raises:
        FileExistsError: somebody's `index.html` is there, and no check's.
    """
    page = folder / "index.html"
    if page.exists() and not any((folder / name).exists() for name in ("check.json", "card.md")):
        why = "a page is there that is no check's, and one of a check would take its place"
        raise FileExistsError(errno.EEXIST, why, str(page))


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)  # an earlier check.json may be the baseline of the next


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Found:
    """Read a check back; as `Checked.read`."""
    file = path / "check.json" if path.is_dir() else path
    told = read_json(file, at_most=_JSON, utf8=True)
    try:
        return _checked(told)
    except (JsonError, KeyError, AttributeError, TypeError, ValueError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise JsonError(f"{file} is no check.json of depthgauge check: it {why}") from error


def _checked(told: Any) -> Found:
    if not isinstance(told, Mapping):
        raise JsonError("is no object")
    if told.get("schema") != SCHEMA:
        raise JsonError(f"has the schema {told.get('schema')!r:.40}, where this version reads {SCHEMA}")
    numbers = _numbers(told)
    answers = tuple(_read_answer(name, each) for name, each in dict(numbers["answers"]).items())
    about = conform(_known(About, numbers["about"]), About, "about")
    budget = conform(numbers["asked"]["budget"], float, "asked.budget")
    return Found(answers, budget, about, conform(numbers["run"], dict[str, Any], "run"))


def _read_answer(name: str, told: Mapping[str, Any]) -> Answer:
    where = f"answers.{name}"
    findings = tuple(_read_finding(each, where) for each in told["findings"])
    says, question = (conform(told[key], str, f"{where}.{key}") for key in ("says", "question"))
    seconds = conform(told["seconds"], float, f"{where}.seconds")
    return Answer(name, question, says, findings, _read(Measure, told["measure"], where), seconds=seconds)


def _read_finding(told: Mapping[str, Any], where: str) -> Finding:
    texts = {key: conform(told[key], str, f"{where}.{key}") for key in ("kind", "text", "advice", "expected")}
    return Finding(
        **texts,
        status=Status(told["status"]),
        where=conform(told["where"], tuple[str, ...], f"{where}.where"),
        measure=_read(Measure, told["measure"], where),
        tried=None if told["tried"] is None else _read(Tried, told["tried"], where),
    )


def _read(kind: type[T], told: Mapping[str, Any], where: str) -> T:
    return conform(_known(kind, told), kind, where)


def _known(kind: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a later version of the same schema has added."""
    return {field.name: told[field.name] for field in fields(kind) if field.name in told}


def _numbers(value: Any, key: str = "") -> Any:
    """Undo `strict`: the strings that stand for numbers become these."""
    if isinstance(value, Mapping):
        return {name: _numbers(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner, key) for inner in value]
    return _NOT_JSON.get(value, value) if key in _NUMBERS and isinstance(value, str) else value
