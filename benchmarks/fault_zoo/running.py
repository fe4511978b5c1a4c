"""Running of many cases, each in a process of its own with a limit in time; rows are kept as they come."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fault_zoo.cases import Case

# Each is forked from one that has imported what they all need.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks.fault_zoo.ready"])


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
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_answer, args=(case, sender))
    process.start()
    sender.close()  # the child's end alone stays open, so that its death is seen
    try:
        if not receiver.poll(limit):
            return {**row, "failed": f"not done within {limit:g} s"}
        answered: dict[str, Any] = receiver.recv()
        return answered
    except EOFError:
        process.join()
        return {**row, "failed": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _answer(case: Case, sender: Connection) -> None:
    """Run the case in a process of its own, whose output nobody reads."""
    import torch  # noqa: PLC0415 - the process that waits needs none of it

    from benchmarks.fault_zoo.cases import run  # noqa: PLC0415 - as above

    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    torch.set_num_threads(1)
    sender.send(run(case))


def _line(row: dict[str, Any]) -> str:
    told = row.get("alarms", [])
    outcome = row["failed"].splitlines()[-1] if row["failed"] else f"{len(told)} alarms"
    if "found" in row:
        outcome += ", found" if row["found"] else ", missed"
    return f"{row['tool']} | {row['group']} | {row['name']} {row['seed']} | {outcome} | {row.get('seconds', 0):.1f} s"
