"""The scores: shares of faults found and of false alarms, with intervals, a column a tool; and a row a fault."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.fault_zoo import halves
from depthgauge import stats

Row = dict[str, Any]


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each tool and half: shares with Wilson's 95 % intervals, median and largest seconds.

    A tool that failed on a training, or was not done in time, has neither found a fault nor raised an alarm; failures
    are counted beside.
    """
    kept = [row for row in rows if row.get("sound", True)]
    tools = dict.fromkeys((row["tool"], row["half"] or "score") for row in kept if row["group"] != "generated")
    return [_of_tool(tool, half, [row for row in kept if row["tool"] == tool]) for tool, half in tools]


def _of_tool(tool: str, half: str, rows: list[Row]) -> Row:
    own = [row for row in rows if row["half"] in {half, ""}]
    seconds = [row["seconds"] for row in own if "seconds" in row]
    sound = [row for row in own if row["group"] in {"sound", "twin"}]
    generated = [row for row in own if row["group"] == "generated"]
    faults = [row for row in own if row["group"] == "fault"]
    return {
        "tool": tool,
        "half": half,
        "found at the right place": share(faults, lambda row: bool(row.get("found"))),
        "any alarm on a fault": share(faults, lambda row: bool(row.get("alarms"))),
        "false alarms on sound trainings": share(sound, lambda row: bool(row.get("alarms"))),
        "broken on sound trainings": share(sound, _broken),
        "false alarms on generated trainings": share(generated, lambda row: bool(row.get("alarms"))),
        "broken on generated trainings": share(generated, _broken),
        "median seconds": statistics.median(seconds) if seconds else None,
        "most seconds": max(seconds, default=None),
        "failed": sum(bool(row["failed"]) for row in own),
    }


def share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> Row:
    """Count the rows of which it holds, with Wilson's interval; no interval of fewer rows than that needs."""
    events, n = sum(holds(row) for row in rows), len(rows)
    if not n:
        return {"events": 0, "n": 0, "low": None, "high": None}
    estimate = stats.rate(events, n)
    bounded = estimate.low == estimate.low  # NaN: no interval
    return {
        "events": events,
        "n": n,
        "low": estimate.low if bounded else None,
        "high": estimate.high if bounded else None,
    }


def _broken(row: Row) -> bool:
    return any(alarm["status"] == "broken" for alarm in row.get("alarms", ()))


def within(page: str, told: str) -> str:
    """The page with the tables between its two comments.

    Raises:
        ValueError: it does not have them.
    """
    before, begun, rest = page.partition("<!-- scores")
    opening, _, rest = rest.partition("-->\n")
    _, ended, after = rest.partition("<!-- end of scores -->")
    if not (begun and ended):
        raise ValueError("the page has no place for the scores")
    return f"{before}{begun}{opening}-->\n\n{told}\n{ended}{after}"


def markdown(rows: Sequence[Row]) -> str:
    """The tables of the docs: tools, then faults, the set last written first, then each false alarm of the check."""
    parts = [_tools(summary(rows)), _faults(rows), _false_alarms(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tools(scores: list[Row]) -> str:
    measures = [name for name in scores[0] if name not in {"tool", "half"}] if scores else []
    lines = ["| tool | set | " + " | ".join(measures) + " |", "|" + "---|" * (len(measures) + 2)]
    lines += [
        f"| {score['tool']} | {score['half']} | " + " | ".join(_cell(score[name]) for name in measures) + " |"
        for score in sorted(scores, key=lambda score: (halves.HALVES[::-1].index(score["half"]), score["tool"]))
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    if not value["n"]:
        return ""
    told = f"{value['events']} of {value['n']}"
    return told if value["low"] is None else f"{told} ({100 * value['low']:.0f} to {100 * value['high']:.0f} %)"


def _faults(rows: Sequence[Row]) -> str:
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    outcome = {(row["tool"], row["name"], row["half"]): row for row in rows if row["group"] == "fault"}
    lines = ["| fault | reported | " + " | ".join(tools) + " |", "|" + "---|" * (len(tools) + 2)]
    for half in halves.HALVES[::-1]:
        for fault in halves.faults(half):
            told = [_outcome(outcome.get((tool, fault.name, half))) for tool in tools]
            if any(told):
                about = (fault.build.__doc__ or "").strip().partition("\n")[0]
                lines.append(f"| {about} | {_report(fault.source)} | " + " | ".join(told) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _report(source: str) -> str:
    return f"[report]({source})" if source.startswith("https://") else source


def _outcome(row: Row | None) -> str:
    if row is None:
        return ""
    if row["failed"]:
        return "failed"
    return "found" if row.get("found") else "elsewhere" if row.get("alarms") else "missed"


def _false_alarms(rows: Sequence[Row]) -> str:
    lines = [
        f"| {row['name']} {row['seed']} | {alarm['question']} | {alarm['kind']} | {alarm['status']} | {alarm['text']} |"
        for row in rows
        if row["group"] != "fault" and row.get("sound", True)
        for alarm in row.get("alarms", ())
        if alarm["question"]
    ]
    head = ["| sound training | question | kind | status | what the check says |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""
