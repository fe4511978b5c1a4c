"""A worker that is started again whenever an entry ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent


class Worker:
    """The process that judges, and what it writes to its error stream."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        )

    def ask(self, key: str) -> str:
        """Its answer; an empty string where it ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(key + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def end(self) -> str:
        """How it ended, with the last line that it wrote."""
        self._process.communicate()
        code = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or [""]
        self._errors.close()
        return f"{signal.Signals(-code).name if code < 0 else f'exit {code}'} {lines[-1][:200]}".rstrip()


class Judge:
    """Judges entries one after the other in a process beside this one."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, key: str) -> dict[str, Any]:
        """The outcome of an entry as a mapping, see `zoo.contract.Outcome`."""
        self._worker = self._worker or Worker()
        answer = self._worker.ask(key)
        if answer:
            outcome: dict[str, Any] = json.loads(answer)
            return outcome
        ended, self._worker = self._worker.end(), None
        return {"result": "fails", "why": [f"ends the process: {ended}"]}

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
