"""Runs `depthgauge` in processes of their own, forked from one that has imported everything.

python tests/forking.py    # a line of JSON in, a line out: {"start": ...} -> pid, {"end": pid} -> exit code or null
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path


def serve() -> None:
    """Answers until standard input ends; returns in a child, with what it is to run."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" not in asked:
            ended, status = os.waitpid(asked["end"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        elif (answer := os.fork()) == 0:
            return become(**asked["start"])
        print(answer if answer is not None else "null", flush=True)  # noqa: T201 - the protocol
    return None


def become(words: list[str], folder: str, said: list[str]) -> None:
    """`python -m depthgauge WORDS` in that folder, its output in the two files; ends as the interpreter does."""
    os.chdir(folder)
    for descriptor, path in enumerate([os.devnull, *said]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["depthgauge", *words]
    sys.path[0] = str(Path.cwd())
    runpy.run_module("depthgauge", run_name="__main__", alter_sys=True)


# All that a run and a report import.
NEEDED = (
    "depthgauge.cli", "depthgauge.reports.rendering", "depthgauge.running", "depthgauge.worker", "jinja2",
    "markdown_it", "matplotlib.pyplot", "pyarrow.parquet", "scipy.stats", "torch",
)  # fmt: skip

if __name__ == "__main__":
    for module in NEEDED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy every page otherwise
    serve()
