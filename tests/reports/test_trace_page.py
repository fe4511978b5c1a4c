"""A trace as a page: its data are the trace's, it loads nothing, and a browser draws it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from depthgauge.reports import trace_page
from depthgauge.trace import Trace, parse

BROWSER = shutil.which("chromium")


def event(cat: str, name: str, start: float, end: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": end - start, "args": args}


def host(name: str, start: float, end: float, tid: int = 1) -> dict[str, Any]:
    return event("cpu_op", name, start, end, tid, **{"Input Dims": [[2, 3]], "Input type": ["float"]})


TRACE = parse([
    event("user_annotation", "ProfilerStep#3", 0, 100), event("user_annotation", "depthgauge: forward", 0, 60),
    host("aten::linear", 10, 50), host("aten::addmm", 12, 48), host("aten::relu", 50, 55),
    host("aten::mul_", 70, 90, tid=2), host("</script><b>mine", 92, 95, tid=2),
    event("kernel", "gemm_kernel", 20, 80, stream=7), event("kernel", "copy_kernel", 80, 84, stream=7),
])  # fmt: skip


def data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    assert found
    told: dict[str, Any] = json.loads(found[1])
    return told


def unpacked(told: dict[str, Any]) -> dict[str, list[tuple[str, int, int, int]]]:
    """Row -> name, start, end in ns, and depth."""
    rows = {}
    for row in told["rows"]:
        flat, at, events = row["events"], 0, []
        for place in range(0, len(flat), 5):
            at += flat[place]
            events.append((told["names"][flat[place + 2]][0], at, at + flat[place + 1], flat[place + 3]))
        rows[row["name"]] = events
    return rows


def test_rows_are_steps_threads_and_streams_and_hold_the_events() -> None:
    told = data(trace_page.page(TRACE, "planted"))
    rows = unpacked(told)
    assert list(rows) == ["steps and ranges", "thread 1", "thread 2", "stream 7"]
    assert rows["steps and ranges"] == [("ProfilerStep#3", 0, 100_000, 0), ("forward", 0, 60_000, 1)]
    assert rows["thread 1"] == [
        ("aten::linear", 10_000, 50_000, 0), ("aten::addmm", 12_000, 48_000, 1), ("aten::relu", 50_000, 55_000, 0),
    ]  # fmt: skip
    assert rows["stream 7"] == [("gemm_kernel", 20_000, 80_000, 0), ("copy_kernel", 80_000, 84_000, 0)]
    assert [row["deep"] for row in told["rows"]] == [2, 2, 1, 1]
    assert told["steps"] == [[0, 100_000]]
    assert (told["end"], told["shapes"]) == (100_000, ["", "2×3"])


def test_the_page_loads_nothing_and_runs_its_own_script_alone() -> None:
    page = trace_page.page(TRACE, "a <title>")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == ["data:,"]
    assert not re.search(r"https?://", page)
    assert page.count("</script>") == 2  # an operator's name ends none
    assert "<b>mine" not in page
    assert "a &lt;title&gt;" in page


def test_the_table_sums_by_name() -> None:
    page = trace_page.page(TRACE, "planted")
    row = re.search(r"<tr><td>gemm_kernel</td>.*?</tr>", page)
    assert row
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[0])
    assert cells == ["gemm_kernel", "stream 7", "1", "60.0 µs", "60.0 µs"]


def test_the_shortest_are_left_out_of_a_long_trace_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_page, "_MOST", 5)
    page = trace_page.page(TRACE, "planted")
    assert "the 4 shortest are left out of the drawing" in page
    assert sum(len(row["events"]) // 5 for row in data(page)["rows"]) == 5
    assert "9 events" in page


def test_an_empty_trace_has_a_page() -> None:
    page = trace_page.page(Trace((), (), (), ()), "empty")
    assert "The trace holds no operator" in page
    assert data(page)["rows"] == []


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_draws_every_event(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    path.write_bytes(trace_page.page(TRACE, "planted").encode())
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:  # the browser may still be leaving
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={empty}")
        command = [BROWSER, *flags, "--window-size=1400,900", "--dump-dom", path.as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert '<body data-drawn="9">' in seen
    assert '<div id="tools">' in seen  # its buttons are shown by the script
