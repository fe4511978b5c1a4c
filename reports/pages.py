"""The pages of a report. Every text that a template prints is escaped by its environment; none has to remember to."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from depthgauge.reports import escaping
from depthgauge.reports.content import Drawing, Section, Step
from depthgauge.reports.glossary import Glossary, marked, typeset
from depthgauge.reports.numbers import NOTHING, interval, number, quantity
from depthgauge.reports.outline import Outline
from depthgauge.reports.strips import strip
from depthgauge.verdict import Status, Verdict

_TEMPLATES = Path(__file__).parent / "templates"

# a shape and a word beside every colour: a status must survive print and colour blindness
MARKS = {
    Status.HOLDS: ("✓", "holds"),
    Status.FAILS: ("✗", "fails"),
    Status.DEPENDS: ("◐", "depends"),
    Status.INCONCLUSIVE: ("?", "inconclusive"),
    Status.NOT_APPLICABLE: ("–", "not applicable"),
    Status.NOT_MEASURED: ("○", "not measured"),
}

_FIRST = ("depthgauge", "commit", "source", "python", "torch", "numpy", "device", "cpu", "cores", "memory_gib")


def report_page(sections: Sequence[Section], run: Mapping[str, Any]) -> str:
    """Render `report.md`: the findings, what became of every claim, and where the evidence is."""
    return _in_markdown("report.md.j2", sections, run)


def study_page(section: Section, run: Mapping[str, Any]) -> str:
    """`<study>.md`: one study alone, with its tables, its method and what failed."""
    own = run.get("apart", {}).get(section.name)  # of runs that were joined, its own environment
    told = run if own is None else {**run, "fingerprint": {**run["common"], **own}}
    return _in_markdown("study.md.j2", [section], told, section=section)


def _in_markdown(template: str, sections: Sequence[Section], run: Mapping[str, Any], **more: Section) -> str:
    outline = Outline.of(sections)
    about = {
        "outline": outline,
        "sections": outline.sections,
        "sure": _sure(outline),
        **_about(sections, run),
    }
    return re.sub(r"\n{3,}", "\n\n", MARKDOWN.get_template(template).render(**about, **more))


def script(name: str) -> dict[str, str | Markup]:
    """Variables of a template: a script of this package, and the hash by which the page's policy lets it run."""
    text = (_TEMPLATES / name).read_text("utf-8")
    digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}  # noqa: S704 -- a file of this package


def index_page(sections: Sequence[Section], run: Mapping[str, Any]) -> str:
    """`index.html`: the findings, what became of every claim, and the evidence, with every picture in one file."""
    outline, glossary = Outline.of(sections), Glossary()
    return HTML.get_template("index.html.j2").render(
        outline=outline,
        glossary=glossary,
        claims={row.id for row in outline.rows},
        sure=_sure(outline),
        **script("page.js"),
        **_about(sections, run),
    )


def _sure(outline: Outline) -> str:
    """How far a reader can rely on the decided claims, in a sentence or two."""
    counts = dict(outline.tally)
    decided = sum(counts.get(status, 0) for status in (Status.HOLDS, Status.FAILS, Status.DEPENDS))
    if not decided:
        return "No claim is decided."
    first = "A claim is decided only where its whole interval lies on one side of what it is held against"
    undecided = counts.get(Status.INCONCLUSIVE, 0)
    return f"{first}; {undecided} {'stays' if undecided == 1 else 'stay'} open." if undecided else f"{first}."


def _about(sections: Sequence[Section], run: Mapping[str, Any]) -> dict[str, Any]:
    fingerprint = run.get("fingerprint", {})
    return {
        "environment": described(fingerprint),
        "device": _plain(fingerprint.get("device")),
        "started": _moment(run.get("started")),
        "command": str(run.get("command", "")),
        "lost": bool(run.get("lost")),
        "coming": [str(name) for name in run.get("coming", ())],
        "presets": sorted({section.preset for section in sections if section.preset}),
        "cases": sum(section.cases for section in sections),
        "failed": sum(section.failed for section in sections),
        "diverged": sum(section.diverged for section in sections),
    }


def described(fingerprint: Mapping[str, object]) -> list[tuple[str, str]]:
    """Format a fingerprint for a reader, the most important entries first, without what is not known."""
    known = {name for name, value in fingerprint.items() if value is not None}
    names = [name for name in _FIRST if name in known] + sorted(known - set(_FIRST))
    return [(name.replace("_", " "), _plain(fingerprint[name])) for name in names]


def _moment(stamp: object) -> str:
    """A time stamp to the minute, as it was stored: the zone is the machine's word, not the reader's; `–` for none."""
    text = _plain(stamp) or NOTHING  # a run.json that was made again from its chunks has lost it
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _plain(value: object) -> str:
    match value:
        case None:
            return NOTHING
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case _:
            return json.dumps(value, sort_keys=True, default=str)


def _observed(verdict: Verdict) -> str:
    """The effect and its interval; empty where there is no figure."""
    if verdict.observed is None or math.isnan(verdict.observed):
        return ""
    return interval(verdict.observed, verdict.low, verdict.high)


def _facts(verdict: Verdict) -> str:
    """What the effect is held against, how often it was measured, and under which condition."""
    parts = []
    if verdict.observed is not None and math.isnan(verdict.observed):
        parts.append("no figure, as not every run has a finite one")
    if verdict.predicted is not None and verdict.observed is not None:
        held = number(verdict.predicted)
        known = verdict.reference == "predicted"
        against = f"predicted {held}" if known else f"held against {held} ({_words(verdict.reference)})"
        parts.append(against + _margin(verdict))
    if verdict.n:
        counted = verdict.counted.removesuffix("s") if verdict.n == 1 else verdict.counted
        parts.append(f"{verdict.n:,} {counted}")
    return " · ".join((*parts, *filter(None, [verdict.condition])))


_BRIEF = 180  # characters of a reason that stand open


def _brief(why: str) -> str:
    """The beginning of a reason, up to the end of a clause; all of it where it is short."""
    if len(why) <= _BRIEF:
        return why
    ends = [why.rfind(mark, _BRIEF // 2, _BRIEF) for mark in ("; ", ": ", ", ", " ")]
    return f"{why[: next((end for end in ends if end > 0), _BRIEF)]} …"


def _begun(text: str) -> str:
    """A sentence with a capital in front, where it begins with a plain word."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+(?![\w./(=^*])", text) else text


def _place_of(verdict: Verdict, section: Section) -> str:
    """Where a page has the table that the verdict's figure stands in; empty where there is none."""
    table = next((table for table in section.tables if table.name == verdict.table), None)
    if table is None:
        return ""
    return f"#table-{table.stem}" if table.columns else f"tables/{table.stem}.csv"


def _margin(verdict: Verdict) -> str:
    if not verdict.margin or not math.isfinite(verdict.margin):
        return ""
    above = verdict.margin - 1
    digits = max(3, 1 - math.floor(math.log10(above))) if verdict.log and 0 < above < 1 else 3  # 1.001 is more than 1
    return f", give or take {'a factor of ' if verdict.log else ''}{number(verdict.margin, digits)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(drawn: Drawing | Step) -> tuple[int, int]:
    """Width and height of a picture in pixels, from its PNG header."""
    if drawn.png[12:16] != b"IHDR":
        return 680, 425
    width, height = struct.unpack(">II", drawn.png[16:24])
    return int(width), int(height)


def _source(drawn: Drawing | Step) -> str:
    """A picture's bytes as a data address."""
    kind, content = drawn.smallest
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=html,  # noqa: S701 -- what it does for HTML, `finalize` does for markdown
        finalize=_html_text if html else _markdown_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(nothing=NOTHING)
    environment.filters.update(
        quantity=quantity,
        observed=_observed if html else lambda verdict: escaping.Markdown(_observed(verdict)),
        number=number,
        counted=_counted,
        mark=lambda status: MARKS[status][0],
        word=lambda status: MARKS[status][1],
        fenced=escaping.fenced,
        verbatim=escaping.Markdown,
        attribute=escaping.attribute,
        code=escaping.code,
        lines=lambda text: Markup.escape(escaping.clean(text, newlines=True)),
        base64=lambda content: b64encode(content).decode(),
        anchor=escaping.slug,
        breakable=lambda name: Markup("<wbr>").join(re.split(r"(?<=[/_])", escaping.clean(name))),
        strip=strip,
        facts=_facts,
        begun=_begun,
        brief=_brief,
        place_of=_place_of,
        size=_size,
        source=_source,
        typeset=typeset,
        marked=marked,
    )
    return environment


def _markdown_text(value: object) -> str:
    return escaping.markdown(value if isinstance(value, str) else str(value))


def _html_text(value: object) -> object:
    return value if isinstance(value, Markup) else escaping.clean(str(value))


MARKDOWN = _environment(html=False)
HTML = _environment(html=True)
