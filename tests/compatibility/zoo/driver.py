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


class Judge:
    """Judges entries one after the other in a process beside this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, name: str) -> dict[str, Any]:
        """The outcome of an entry as a mapping, see `zoo.contract.Outcome`."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            outcome: dict[str, Any] = json.loads(answer)
            return outcome
        self._process = None
        code = process.wait()
        ended = f"{signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        return {"result": "fails", "why": [f"ends the process: {ended} {last[:200]}".rstrip()]}

    def close(self) -> None:
        """End the worker."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile()
        environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "zoo.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip
