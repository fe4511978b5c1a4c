"""Running of many cases, each in a process of its own with a limit in time; rows are kept as they come."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.fault_zoo.cases import Case

ROOT = Path(__file__).parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    """Read what is stored; a line that a crash cut off is left out."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            kept.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return kept


def run_all(cases: Iterable[Case], path: Path, *, jobs: int, limit: float) -> None:
    """Run those of the cases that have no row yet, `jobs` at a time, and append a row for each."""
    done = {row["key"] for row in rows(path)}
    waiting = [case for case in cases if case.key not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        path.write_bytes(path.read_bytes() + b"\n")  # after a line that a crash cut off
    with ThreadPoolExecutor(jobs) as pool, path.open("a") as file:
        for row in pool.map(lambda case: _in_process(case, limit), waiting):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(_line(row), flush=True)  # noqa: T201 - what a person reads


def _in_process(case: Case, limit: float) -> dict[str, Any]:
    row: dict[str, Any] = {"key": case.key, **dataclasses.asdict(case)}
    command = [sys.executable, "-m", "benchmarks.fault_zoo", "one", json.dumps(dataclasses.asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"not done within {limit:g} s"}
    last = ran.stdout.rstrip().rpartition("\n")[2]
    if ran.returncode or not last.startswith("{"):
        return {**row, "failed": ran.stderr[-500:] or f"ended with {ran.returncode}"}
    answered: dict[str, Any] = json.loads(last)
    return answered


def _line(row: dict[str, Any]) -> str:
    told = row.get("alarms", [])
    outcome = row["failed"].splitlines()[-1] if row["failed"] else f"{len(told)} alarms"
    if "found" in row:
        outcome += ", found" if row["found"] else ", missed"
    return f"{row['tool']} | {row['group']} | {row['name']} {row['seed']} | {outcome} | {row.get('seconds', 0):.1f} s"
